"""Ends of layers that one kernel does: the reference's bits at every limit, and the planner takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.dyadic import common_dyadic, dyadic, dyadic_array
from qir.graph import Graph, Stage, Value
from qir.runtime import Session
from qir.types import DType, TensorType

pytest.importorskip("numba")

from qir.runtime.cpu import Cpu
from qir.runtime.cpu.kernels import finish as modes
from qir.runtime.cpu.kernels.intrinsics import KIND
from qir.runtime.cpu.planner.joined import Finish
from qir.runtime.cpu.planner.steps import Step

CHANNELS = 24


def rescale(graph: Graph, x: Value, dtype: str, ratio: Any, zero: int, limits: tuple[int, int]) -> Value:
    m, s = dyadic_array(np.asarray(ratio))
    return graph.add_node(
        "qir.Requantize", [x, graph.add_constant("m", m), graph.add_constant("s", s)],
        {"x_zero_point": 0, "zero_point": zero, "lo": limits[0], "hi": limits[1], "dtype": dtype},
    ).output  # fmt: skip


def layer(seed: int, mode: int, dtype: str, negative: bool) -> Graph:
    """A 1x1 convolution that ends as `mode` says, in 8 bits of `dtype`."""
    rng = np.random.default_rng(seed)
    graph = Graph("end", Stage.INTEGER)
    x = graph.add_input("x", TensorType(DType("uint8"), ("N", 16, 3, 5)))
    w = graph.add_constant("w", rng.integers(-127, 128, (CHANNELS, 16, 1, 1)).astype(np.int8))
    bias = graph.add_constant("b", rng.integers(-(10**5), 10**5, CHANNELS).astype(np.int32))
    acc = graph.add_node(
        "qir.Conv", [x, w, bias],
        {"strides": [1, 1], "group": 1, "pads": [0] * 4, "pad_value": [0], "dilations": [1, 1], "weight_zero_point": 0},
    ).output  # fmt: skip
    narrow = (-120, 127) if dtype == "int8" else (3, 250)
    zero = int(rng.integers(*narrow))
    ratios = rng.uniform(0.5, 2, (CHANNELS, 1, 1))
    if mode == modes.TO_BYTES:
        outputs = [rescale(graph, acc, dtype, ratios * 0.002, zero, narrow)]
    else:
        # half of the channels run into the limits of int16
        value = rescale(graph, acc, "int16", ratios * 0.2, 5, (-32768, 32767))
        outputs = [] if mode in (modes.WIDE_TO_BYTES, modes.SUM_TO_BYTES) else [value]
        if mode >= modes.SUM_TO_BYTES:
            other = graph.add_input("other", TensorType(DType("int16"), ("N", CHANNELS, 3, 5)))
            (a, b), shift = common_dyadic([-0.7 if negative else 0.7, 0.4])
            last = mode == modes.SUM_TO_BYTES
            (a, b), shift = common_dyadic([0.004, -0.003 if negative else 0.002]) if last else ((a, b), shift)
            kind, limits = (dtype, narrow) if last else ("int16", (-30000, 32767))
            operands = [value, other] if seed % 2 else [other, value]
            value = graph.add_node(
                "qir.Add", operands,
                {"a_multiplier": a, "b_multiplier": b, "shift": shift, "a_zero_point": 5 if seed % 2 else 0,
                 "b_zero_point": 0 if seed % 2 else 5, "zero_point": zero if last else -9, "lo": limits[0],
                 "hi": limits[1], "dtype": kind},
            ).output  # fmt: skip
            outputs = [value]
        if mode in (modes.WIDE_TO_BYTES, modes.SUM_WIDE_TO_BYTES):
            m, s = dyadic(0.0041)
            graph_m, graph_s = (graph.add_constant("k", np.asarray(v, np.int32)) for v in (m, s))
            value = graph.add_node(
                "qir.Requantize", [value, graph_m, graph_s],
                {"x_zero_point": 0, "zero_point": zero, "lo": narrow[0], "hi": narrow[1], "dtype": dtype},
            ).output  # fmt: skip
            outputs = [*outputs, value]
    graph.set_outputs(outputs)
    return graph


def executor(graph: Graph) -> Cpu:
    return Cpu(graph, threads=1)


@pytest.mark.skipif(KIND == "generic", reason="kernels of AVX2")
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("mode", range(6))
def test_ends(mode: int, dtype: str) -> None:
    for seed in range(4):
        graph = layer(seed, mode, dtype, negative=seed >= 2)
        cpu = executor(graph)
        rng = np.random.default_rng(seed + 100)
        for batch in (1, 2):
            feeds: dict[str, Any] = {"x": rng.integers(0, 256, (batch, 16, 3, 5)).astype(np.uint8)}
            if len(graph.inputs) > 1:
                feeds["other"] = rng.choice([-32768, 32767, -1, 0, 77], (batch, CHANNELS, 3, 5)).astype(np.int16)
            want, got = Session(graph, "reference").run(feeds), cpu.run(feeds)
            assert want.keys() == got.keys()
            for name, array in want.items():
                np.testing.assert_array_equal(got[name], array, err_msg=f"seed {seed}, batch {batch}: {name}")
        steps = [s for s in cpu.plan(1).steps if isinstance(s, Step) and s.op == "qir.Conv"]
        (end,) = [o for s in steps for o in s.epilogue]
        assert isinstance(end, Finish) and end.mode == mode


@pytest.mark.skipif(KIND == "generic", reason="kernels of AVX2")
def test_a_zero_point_of_16_bits_is_left_to_the_general_kernels() -> None:
    graph = layer(1, modes.WIDE_TO_BYTES, "uint8", negative=False)
    node = graph.outputs[0].producer
    assert node is not None
    node.attrs["x_zero_point"] = -9
    feeds = {"x": np.random.default_rng(0).integers(0, 256, (1, 16, 3, 5)).astype(np.uint8)}
    (want,), (got,) = (s.run(feeds).values() for s in (Session(graph, "reference"), executor(graph)))
    np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(KIND == "generic", reason="kernels of AVX2")
def test_a_sum_that_could_leave_int32_is_not_taken() -> None:
    """The zero point before a shift by 44 has no room in 32 bits: the general kernel has to do it."""
    graph = layer(0, modes.SUM_TO_WIDE, "uint8", negative=False)
    (node,) = [n for n in graph.nodes if n.op == "qir.Add"]
    node.attrs["a_multiplier"] = node.attrs["b_multiplier"] = (1 << 30) - 1
    node.attrs["shift"] = 44
    cpu = executor(graph)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.integers(0, 256, (1, 16, 3, 5)).astype(np.uint8),
        "other": rng.choice([-32768, 32767], (1, CHANNELS, 3, 5)).astype(np.int16),
    }
    want, got = Session(graph, "reference").run(feeds), cpu.run(feeds)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    operations = [o for s in cpu.plan(1).steps if isinstance(s, Step) for o in s.epilogue]
    assert not [o for o in operations if isinstance(o, Finish) and o.mode == modes.SUM_TO_WIDE]
