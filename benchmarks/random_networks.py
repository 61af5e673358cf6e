#!/usr/bin/env python3
"""Random float networks through the whole pipeline, with every recipe in turn.

    python benchmarks/random_networks.py --count 5000 --seed 1 [--out random_networks.md]

Network i comes from the seed (seed, i) alone: `--only I` repeats one, with the traceback and the graph's text.
"""

from __future__ import annotations

import argparse
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

import qir
from qir.io import audit, to_onnx
from qir.passes.recipes import RECIPES
from qir.runtime.measure.exactness import exactness
from qir.testing import Dice, RandomNetwork, random_network
from qir.verify import is_integer_only, verify

NAMES = tuple(RECIPES)


def check(network: RandomNetwork, recipe: str) -> int:
    """Load, prepare, calibrate, quantize, lower, export, check, run; the number of tensors compared.

    Raises AssertionError where something does not hold.
    """
    model = to_onnx(network.graph)
    onnx.checker.check_model(model, full_check=True)
    graph = qir.load(model)
    data = None if recipe == "data_free" else [network.feeds(4, salt=i) for i in range(2)]
    integer, _ = qir.quantize(graph, data, recipe=recipe)
    verify(integer, qir.Stage.INTEGER)
    exported = to_onnx(integer)
    onnx.checker.check_model(exported, full_check=True)
    offences = [*is_integer_only(integer), *audit(exported)]
    assert not offences, offences
    feeds = {
        k: np.concatenate([v, network.feeds(1, salt=4, stretch=100.0)[k]]) for k, v in network.feeds(2, salt=3).items()
    }
    result = exactness(integer, feeds)
    assert result.exact, (
        f"{len(result.differing)} of {result.tensors} tensors differ: {dict(list(result.differing.items())[:3])}"
    )
    return result.tensors


def network_of(seed: int, index: int) -> RandomNetwork:
    return random_network(Dice(int(np.random.default_rng((seed, index)).integers(2**62))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    if args.only is not None:
        network = network_of(args.seed, args.only)
        print(network)
        print(check(network, NAMES[args.only % len(NAMES)]), "tensors, all equal")
        return
    start, tensors, operators = time.perf_counter(), 0, Counter[str]()
    failures: list[str] = []
    for i in range(args.start, args.start + args.count):
        recipe = NAMES[i % len(NAMES)]
        try:
            network = network_of(args.seed, i)
            operators.update({n.op for n in network.graph.nodes})
            tensors += check(network, recipe)
        except Exception as error:  # reported, with what repeats it
            where = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"--seed {args.seed} --only {i} ({recipe}): {type(error).__name__}: {error}"[:300])
            print(failures[-1], f"[{Path(where.filename).name}:{where.lineno}]", flush=True)
        done = i + 1 - args.start
        if done % 100 == 0 or done == args.count:
            spent = time.perf_counter() - start
            args.out.write_text(text(args, done, tensors, operators, failures, spent))
    print(args.out.read_text().splitlines()[2])


def text(
    args: argparse.Namespace, done: int, tensors: int, operators: Counter[str], failures: list[str], seconds: float
) -> str:
    """The table; of a run that was stopped, as far as it came."""
    lines = [
        "# Random networks", "",
        f"`python benchmarks/random_networks.py --count {args.count} --seed {args.seed}`: {done} networks done,",
        f"recipes {', '.join(NAMES)} in turn,",
        f"{tensors:,} tensors compared bit by bit between the reference and onnxruntime, {len(failures)} failures, "
        f"{seconds:.0f} s.", "",
        "Networks with each operator: " + ", ".join(f"{k} {v}" for k, v in operators.most_common()) + ".", "",
        *(f"- {f}" for f in failures),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
