"""HAWQ-V3's 18 mixed-precision problems from its own per-layer figures, and the time of a 53-layer one -> ilp.md.

python benchmarks/ilp.py KIT/hawq_v3_ilp.json [-o benchmarks/ilp.md]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from qir.passes.assign_bits import Assignment, Choice, Problem, solve
from qir.passes.cost_model import COSTS, Work


def problem_of(network: dict[str, Any]) -> Problem:
    """HAWQ-V3's figures as a problem: Omega = trace * ||Q(W) - W||^2."""
    layers: dict[str, list[Choice]] = {}
    for i, trace in enumerate(network["trace"]):
        work = Work(network["macs"][i], network["parameters"][i])
        layers[str(i)] = [
            Choice(
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
    layers: dict[str, list[Choice]] = {}
    for i in range(53):
        work, scale = Work(int(rng.integers(1e6, 2e8)), int(rng.integers(1e3, 2e6))), float(rng.lognormal(0, 2))
        layers[str(i)] = [
            Choice(b, scale * (4.0 ** -b[0] + 4.0 ** -b[1]), {k: f(work, b) for k, f in COSTS.items()}) for b in pairs
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
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
