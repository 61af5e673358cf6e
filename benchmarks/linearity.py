"""Time of every data-free pass on graphs of 1,000 to 10,000 nodes; writes linearity.md beside this file.

python benchmarks/linearity.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qir.graph import Graph, Stage, Value
from qir.passes.manager import Pass, PassManager
from qir.passes.prepare.absorb_bias import AbsorbBias
from qir.passes.prepare.equalize import Equalize
from qir.passes.prepare.fold_batchnorm import FoldBatchNorm
from qir.passes.simplify.tidy import Simplify
from qir.types import DType, TensorType

SIZES = (1000, 3000, 10000)
CHANNELS = 4


def big_graph(nodes: int, seed: int = 0) -> Graph:
    """A residual network of at least `nodes` nodes: conv-BN-Relu, depthwise conv-BN, hard swish and SiLU spelled out,
    identities, no-op reshapes, residual sums."""
    rng = np.random.default_rng(seed)
    graph = Graph(f"big{nodes}", Stage.FLOAT)
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", CHANNELS, 4, 4)))
    three, zero, six = (graph.add_constant(n, np.asarray(v, np.float32)) for n, v in (("3", 3), ("0", 0), ("6", 6)))
    shape = graph.add_constant("shape", np.asarray([0, CHANNELS, 4, 4]))

    def constant(*size: int, positive: bool = False) -> Value:
        data = rng.normal(scale=0.5, size=size)
        return graph.add_constant("c", (np.abs(data) + 0.5 if positive else data).astype(np.float32))

    def conv(v: Value, group: int = 1) -> Value:
        k = 1 if group == 1 else 3
        attrs = {"group": group, "pads": [k // 2] * 4}
        y = graph.add_node("Conv", [v, constant(CHANNELS, CHANNELS // group, k, k), constant(CHANNELS)], attrs).output
        norm = [constant(CHANNELS, positive=i in (0, 3)) for i in range(4)]
        return graph.add_node("BatchNormalization", [y, *norm]).output

    def op(name: str, *inputs: Value) -> Value:
        return graph.add_node(name, list(inputs)).output

    value = x
    while len(graph) < nodes:
        y = op("Relu", conv(value))
        y = op("Clip", conv(y, CHANNELS), zero, six)
        y = op("Reshape", op("Identity", y), shape)
        y = conv(y)
        y = op("Div", op("Mul", y, op("Clip", op("Add", y, three), zero, six)), six)
        y = op("Mul", y, op("Sigmoid", y))
        value = op("Add", value, op("Mul", y, three))
    graph.set_outputs([value])
    return graph


def pipeline() -> list[Pass]:
    """The data-free passes of the float side, in order."""
    return [Simplify(), FoldBatchNorm(), Simplify(), Equalize(), AbsorbBias(padded=True)]


def measure(sizes: tuple[int, ...] = SIZES) -> dict[str, dict[int, float]]:
    """Step -> nodes -> seconds."""
    found: dict[str, dict[int, float]] = {}

    def note(step: str, size: int, start: float) -> None:
        found.setdefault(step, {})[size] = time.process_time() - start

    for size in sizes:
        start = time.process_time()
        graph = big_graph(size)
        note("build", size, start)
        start = time.process_time()
        graph.clone()
        note("clone", size, start)
        start = time.process_time()
        str(graph)
        note("text", size, start)
        for i, step in enumerate(pipeline(), 1):
            start = time.process_time()
            graph, _ = PassManager([step]).run(graph)
            note(f"{i} {step.name}", size, start)
        for name, later in further_steps(graph):
            start = time.process_time()
            graph = later(graph)
            note(name, size, start)
    return found


def further_steps(graph: Graph) -> list[tuple[str, Callable[[Graph], Graph]]]:
    """Ranges without data, quantizers and lowering to integers."""
    from qir.passes.calibration.data_free import data_free_ranges
    from qir.passes.quantization.insert_qdq import InsertQdq
    from qir.passes.quantization.lower_to_dyadic import LowerToDyadic

    def quantizers(g: Graph) -> Graph:
        return InsertQdq(ranges=data_free_ranges(g)).apply(g)[0]

    return [
        ("6 data_free_ranges + insert_qdq", quantizers),
        ("7 lower_to_dyadic", lambda g: LowerToDyadic().apply(g)[0]),
    ]


def main() -> None:
    found = measure()
    lines = [
        "# Time against size of the graph",
        "",
        "CPU seconds of each step (clone and verification included), and the exponent p of time ~ nodes^p between the",
        "first and the last size; 1 is linear. Written by `python benchmarks/linearity.py`.",
        "",
        "| step | " + " | ".join(f"{n:,} nodes" for n in SIZES) + " | p |",
        "| --- |" + " ---: |" * (len(SIZES) + 1),
    ]
    for step, times in found.items():
        p = np.log(times[SIZES[-1]] / times[SIZES[0]]) / np.log(SIZES[-1] / SIZES[0])
        lines.append(f"| {step} | " + " | ".join(f"{times[n]:.2f}" for n in SIZES) + f" | {p:.2f} |")
    text = "\n".join(lines) + "\n"
    Path(__file__).with_name("linearity.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
