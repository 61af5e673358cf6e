"""Sums written over their residual: only where nobody reads it afterwards, and with the reference's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.dyadic import common_dyadic, dyadic
from qir.graph import Graph, Stage, Value
from qir.runtime import Session
from qir.types import DType, TensorType

pytest.importorskip("numba")

from qir.runtime.cpu import Cpu
from qir.runtime.cpu.kernels.intrinsics import KIND
from qir.runtime.cpu.planner.joined import Finish
from qir.runtime.cpu.planner.steps import Step

pytestmark = pytest.mark.skipif(KIND == "generic", reason="kernels of AVX2")
CHANNELS = 24


def requantize(graph: Graph, x: Value, ratio: float, dtype: str, name: str) -> Value:
    m, s = (
        graph.add_constant(f"{name}.{k}", np.asarray(v, np.int32)) for k, v in zip("ms", dyadic(ratio), strict=True)
    )
    kind = DType(dtype)
    return graph.add_node(
        "qir.Requantize", [x, m, s],
        {"x_zero_point": 0, "zero_point": 0, "lo": kind.lo, "hi": kind.hi, "dtype": dtype}, outputs=[name],
    ).output  # fmt: skip


def blocks(size: tuple[int, int], count: int, seed: int, late: bool = False) -> Graph:
    """`count` residual blocks of 1x1 convolutions on an int16 stream.

    late: the first block's sum is read at the end.
    """
    rng = np.random.default_rng(seed)
    graph = Graph("stream", Stage.INTEGER)
    image = graph.add_input("x", TensorType(DType("uint8"), ("N", CHANNELS, *size)))

    def conv(x: Value, name: str) -> Value:
        w = graph.add_constant(f"{name}.w", rng.integers(-127, 128, (CHANNELS, CHANNELS, 1, 1)).astype(np.int8))
        attrs = {"strides": [1, 1], "group": 1, "pads": [0] * 4, "pad_value": [0], "dilations": [1, 1]}
        return graph.add_node("qir.Conv", [x, w], {**attrs, "weight_zero_point": 0}, outputs=[name]).output

    def added(a: Value, b: Value, name: str) -> Value:
        (m_a, m_b), shift = common_dyadic([0.7, -0.6])
        return graph.add_node(
            "qir.Add", [a, b],
            {"a_multiplier": m_a, "b_multiplier": m_b, "shift": shift, "a_zero_point": 0, "b_zero_point": 0,
             "zero_point": 0, "lo": -32768, "hi": 32767, "dtype": "int16"}, outputs=[name],
        ).output  # fmt: skip

    stream, narrow = requantize(graph, conv(image, "c"), 0.2, "int16", "s"), image
    sums: list[Value] = []
    for i in range(count):
        narrow = requantize(graph, conv(narrow, f"a{i}"), 0.002, "uint8", f"n{i}")
        stream = added(requantize(graph, conv(narrow, f"b{i}"), 0.2, "int16", f"r{i}"), stream, f"sum{i}")
        sums.append(stream)
        narrow = requantize(graph, stream, 0.004, "uint8", f"q{i}")
    ends = [requantize(graph, conv(narrow, "last"), 0.002, "uint8", "y")]
    if late:
        ends.append(requantize(graph, added(requantize(graph, conv(narrow, "z"), 0.2, "int16", "t"), sums[0], "u"),
                               0.004, "uint8", "v"))  # fmt: skip
    graph.set_outputs(ends)
    return graph


def in_place(cpu: Cpu, **options: Any) -> list[bool]:
    """For each sum that keeps 16 bits: whether it is written over its residual."""
    steps = [s for s in cpu.plan(1, **options).steps if isinstance(s, Step)]
    ends = [o for s in steps for o in s.epilogue if isinstance(o, Finish)]
    return [o.in_place for o in ends if o.summand is not None and o.wide is not None]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 3), (5, 7), (16, 31)])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_bits_are_the_references(size: tuple[int, int], threads: int) -> None:
    """Blocks of rows that four do not divide: no row may be done twice."""
    graph = blocks(size, 3, seed=sum(size))
    cpu = Cpu(graph, threads=threads)
    assert in_place(cpu) == [True, True]  # the last sum is not kept in 16 bits
    for batch in (1, 2, 3):
        feeds: dict[str, Any] = {"x": np.random.default_rng(batch).integers(0, 256, (batch, CHANNELS, *size), np.uint8)}
        for _ in range(2):
            np.testing.assert_array_equal(cpu.run(feeds)["y"], Session(graph, "reference").run(feeds)["y"])


def test_what_is_read_later_stays() -> None:
    graph = blocks((5, 7), 4, seed=1, late=True)
    cpu = Cpu(graph, threads=2)
    # the first block may overwrite what came in; its own sum is wanted at the end, and by nobody after that
    assert in_place(cpu) == [True, False, True]
    feeds: dict[str, Any] = {"x": np.random.default_rng(0).integers(0, 256, (2, CHANNELS, 5, 7), np.uint8)}
    want = Session(graph, "reference").run(feeds)
    for name, array in cpu.run(feeds).items():
        np.testing.assert_array_equal(array, want[name])


def test_what_is_asked_for_stays() -> None:
    graph = blocks((3, 5), 3, seed=2)
    cpu = Cpu(graph, threads=2)
    feeds: dict[str, Any] = {"x": np.random.default_rng(0).integers(0, 256, (2, CHANNELS, 3, 5), np.uint8)}
    for names in (["s"], ["sum0", "y"], ["sum1"], ["s", "sum0", "sum1", "sum2", "y"]):
        want = Session(graph, "reference").run(feeds, outputs=names)
        for name, array in cpu.run(feeds, names).items():
            np.testing.assert_array_equal(array, want[name], err_msg=f"{name} of {names}")
