"""HAWQ-V3's 18 mixed-precision problems from its own per-layer figures, and ResNets of qir.models -> ilp.md.

python benchmarks/ilp.py KIT/hawq_v3_ilp.json [-o benchmarks/ilp.md]

The second part takes ResNet18 and ResNet50 as `qir.models` builds them: sensitivities, costs and groups are measured
from the graphs, latencies on this machine's CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qir.cost import macs
from qir.graph import Graph
from qir.models import resnet18, resnet50
from qir.passes.calibration.collect import calibrate
from qir.passes.mixed_precision import search
from qir.passes.mixed_precision.assign_bits import ROUNDING, Assignment, BitChoice, Problem, solve
from qir.passes.mixed_precision.cost_model import COSTS, Work
from qir.passes.mixed_precision.sensitivity import Sensitivity, measure_sensitivity
from qir.passes.recipes import RECIPES
from qir.runtime.measure.latency import Table, latency_table

SIZE, SAMPLES, PROBES = 64, 4, 1
"""Input size, images and probes for the sensitivities of the ResNets of qir.models."""
LEVELS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
SHOWN = (0.25, 0.5, 0.75)
PAIRS = ((4, 4), (4, 8), (8, 8))


def problem_of(network: dict[str, Any]) -> Problem:
    """HAWQ-V3's figures as a problem: Omega = trace * ||Q(W) - W||^2."""
    layers: dict[str, list[BitChoice]] = {}
    for i, trace in enumerate(network["trace"]):
        work = Work(network["macs"][i], network["parameters"][i])
        layers[str(i)] = [
            BitChoice(
                (b, b), trace * network[f"delta_w{b}"][i],
                {
                    "size": COSTS["size"](work, (b, b)), "bops": COSTS["bops"](work, (b, b)),
                    "latency": network[f"latency_int{b}_ms"][i],
                },
            ) for b in (4, 8)
        ]  # fmt: skip
    return Problem(layers, [[str(i) for i in group] for group in network["tied"]])


def row(name: str, cost: str, level: str, found: Assignment, int8: Assignment, same: str) -> str:
    """One line of the table."""
    bits = "".join(str(w) for w, _ in found.bits.values())
    c = found.costs
    speed = int8.costs["latency"] / c["latency"]
    return (
        f"| {name} | {cost} | {level} | {c['size'] / 1e6:.2f} | {c['bops'] / 1e9:.1f} | {c['latency']:.3f} "
        f"| {speed:.2f}x | {found.perturbation:.6f} | {same} | {1000 * found.seconds:.0f} | `{bits}` |"
    )


def measured(build: Callable[..., Graph]) -> tuple[Graph, Sensitivity, Table]:
    """(prepared float graph, sensitivities, latencies) of a network with random weights."""
    prepare = RECIPES["w8a8"].prepare
    small, _ = prepare.run(build(0, size=SIZE))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, 3, SIZE, SIZE)).astype(np.float32)
    feeds = [{small.inputs[0].name: part} for part in np.split(x, 2)]
    ranges = calibrate(small, feeds, method="mse", bits=(4, 8))
    found = measure_sensitivity(small, feeds, ranges, choices=PAIRS, probes=PROBES, loss="mse")
    # the logits of random weights are huge: softmax is saturated, and derivatives of a cross entropy would all be zero
    assert all(row[4, 4] > row[8, 8] > 0 for row in found.layers.values()), "layers without sensitivity show nothing"
    full, _ = prepare.run(build(0))
    integer, _ = RECIPES["w8a8"].quantize(ranges).run(full)
    return full, found, latency_table(integer, "cpu", layers=full)


def model_part(name: str, build: Callable[..., Graph]) -> list[str]:
    """Lines of one network: limits between the ends of each cost."""
    graph, sensitivity, cpu = measured(build)
    # the cost model's latency: units for 4 bits twice as fast as those for 8, at 1 T MAC/s in 8 bits
    model = {n.name: {b: COSTS["linear"](Work(macs(n), 0), b) / 8e12 for b in PAIRS} for n in graph.nodes}
    lines: list[str] = []
    for table, costs in ((model, ("size", "bops", "latency")), (cpu, ("latency",))):
        problem = search.problem_of(graph, sensitivity, latency=table)
        int8, int4 = problem.uniform((8, 8)), problem.uniform((4, 4))
        source = "model" if table is model else "CPU"
        lines += [
            model_row(name, "-", source, f"INT{b}", problem.uniform((b, b)), int8) for b in (4, 8)
        ]  # fmt: skip
        for cost in costs:
            low, high = sorted((least(problem, cost), int8.costs[cost]))
            found: list[Assignment] = []
            for level in LEVELS:
                limit = low + level * (high - low)
                found.append(solve(problem, {cost: limit}))
                assert found[-1].costs[cost] <= limit * (1 + ROUNDING), (name, cost, level)
                if level in SHOWN:
                    lines.append(model_row(name, cost, source, f"{level:.2f}", found[-1], int8))
            steps = list(itertools.pairwise(f.perturbation for f in [*found, int8]))
            assert all(b <= a for a, b in steps), (name, cost)
            assert int4.perturbation >= found[0].perturbation, (name, cost)
            if source == "model":  # layers are lumps: neighbouring levels may have one choice, those shown may not
                shown = [f.perturbation for v, f in zip(LEVELS, found, strict=True) if v in SHOWN]
                assert all(b < a for a, b in itertools.pairwise([int4.perturbation, *shown, int8.perturbation]))
    return lines


def least(problem: Problem, cost: str) -> float:
    """The least that a cost can be; that of uniform INT4 wherever fewer bits cost less."""
    return sum(min(c.costs[cost] for c in choices) for _, choices in problem.blocks())


def model_row(name: str, cost: str, source: str, level: str, found: Assignment, int8: Assignment) -> str:
    """One line of the second table."""
    c = found.costs
    bits = "".join("8" if b == (8, 8) else "4" if b == (4, 4) else "m" for b in found.bits.values())
    return (
        f"| {name} | {cost} | {level} | {c['size'] / 1e6:.2f} | {c['bops'] / 1e9:.1f} | {source} "
        f"| {1e3 * c['latency']:.3f} | {int8.costs['latency'] / c['latency']:.3f}x | {found.perturbation:.4g} "
        f"| {1e3 * found.seconds:.0f} | `{bits}` |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args()
    head = "network | limited | level | size (MB) | BOPS (G) | latency (ms) | over INT8 | perturbation | as given | ms"
    lines = [f"| {head} | bits by layer |", "| " + " | ".join(["---"] * 11) + " |"]
    reproduced = 0
    for name, network in json.loads(args.figures.read_text())["networks"].items():
        problem = problem_of(network)
        int8 = problem.uniform((8, 8))
        for bits in (4, 8):
            lines.append(row(name, "-", f"INT{bits}", problem.uniform((bits, bits)), int8, ""))
        for cost, given in network["optimal"].items():
            for want in given:
                found = solve(problem, {cost: want["limit"]})
                same = [w for w, _ in found.bits.values()] == want["bits"]
                same = same and bool(np.isclose(found.perturbation, want["perturbation"], rtol=1e-12))
                reproduced += same
                lines.append(row(name, cost, f"{want['fraction']:.2f}", found, int8, "yes" if same else "NO"))
    rng = np.random.default_rng(0)
    pairs = [(4, 4), (4, 8), (8, 4), (8, 8)]
    layers: dict[str, list[BitChoice]] = {}
    for i in range(53):
        work = Work(int(rng.integers(10**6, 2 * 10**8)), int(rng.integers(10**3, 2 * 10**6)))
        scale = float(rng.lognormal(0, 2))
        layers[str(i)] = [
            BitChoice(b, scale * (4.0 ** -b[0] + 4.0 ** -b[1]), {k: f(work, b) for k, f in COSTS.items()})
            for b in pairs
        ]
    problem = Problem(layers)
    low, high = problem.uniform((4, 4)).costs, problem.uniform((8, 8)).costs
    start = time.perf_counter()
    solve(problem, {k: (low[k] + high[k]) / 2 for k in ("size", "bops")})
    seconds = time.perf_counter() - start
    text = f"""# Mixed precision by integer linear programming
Made by `benchmarks/ilp.py`. Per-layer figures (Hessian traces, weight errors, T4 latencies) are HAWQ-V3's own; the
first and the last layer are not in them. Level: where the limit lies between the INT4 and the INT8 value. Both
networks' 18 choices and perturbations were given with the figures; reproduced here: {reproduced} of 18.
53 layers with 4 choices each, limits on size and BOPS: {seconds:.2f} s (CBC, one thread).

""" + "\n".join(lines)
    heads = (
        "network | limited | level | size (MB) | BOPS (G) | latency by | ms | over INT8 | perturbation | ms of solving"
    )
    models = [f"| {heads} | bits by layer |", "| " + " | ".join(["---"] * 11) + " |"]
    for name, build in (("resnet18", resnet18), ("resnet50", resnet50)):
        models += model_part(name, build)
    text += f"""

## ResNet18 and ResNet50 of qir.models

Their weights are random, so what is shown is that limits are met and perturbations fall, not which layers matter in a
trained network. Sensitivities: Gauss-Newton traces of the logits' squared error (a cross entropy of these networks'
huge logits has no gradient), noise of weights and activations, {SAMPLES} random images of {SIZE} x {SIZE}, probes a
batch: {PROBES}. Choices 4/4 (`4`), 4/8 (`m`) and 8/8 (`8`); the first and the last layer keep 8/8; layers that read one
tensor agree. Level: where the limit lies between the least that can be had and INT8. Latency by "model": 4-bit units
twice as fast as 8-bit ones, the least is uniform INT4. At the levels {", ".join(map(str, LEVELS))} of size, BOPS
and this latency every limit was met and the perturbation never grew; from INT4 over 0.25, 0.5 and 0.75 to INT8 it fell
with every step (asserted by the script).

Latency by "CPU": each layer timed by qir's CPU runtime at batch one, once, on a shared machine. That runtime does not
compute faster with 4-bit weights (uniform INT4 need not be faster than INT8; where a layer seems to gain, it may be
noise), so a limit between uniform INT4 and INT8 means nothing there; the least is that of each layer's faster choice.
Limits were met and the perturbation never grew; the choices are no advice.

""" + "\n".join(models)
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
