"""What one launch carries out: residual streams wider than 8 bits, and the 8-bit copies that convolutions read."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from qir import DType, Value
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.cuda.planner.fusion import fuse
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def conv(c: Case, x: Value, channels: int, kind: DType, group: int = 1) -> Value:
    acc = c.conv(x, channels, (3, 3), pads=[1] * 4, group=group)
    return c.requantize(acc, kind, channels=channels)


def stream(channels: int, batch: int, group: int = 1, seed: int = 0) -> Case:
    """Blocks over an int16 stream; each reads it in 8 bits, once signed and once not, and adds to it."""
    c = Case(seed, batch)
    x = c.requantize(c.conv(c.input(DType.UINT8, 3, 5, 6), channels, (3, 3), pads=[1] * 4), DType.INT16)
    for kind in (DType.UINT8, DType.INT8, DType.UINT8):
        y = conv(c, c.requantize(x, kind), channels, DType.INT8, group)
        x = c.add(y, x, DType.INT16)
    c.requantize(x, DType.INT8, channels=channels)  # by channel: not the second result, on its own
    c.node("qir.ReduceSum", x, axes=[2, 3], keepdims=0)
    c.graph.set_outputs([v for n in c.graph.nodes for v in n.outputs if not v.uses()])
    return c


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_stream_s_8_bit_copies_are_second_results(seed: int) -> None:
    groups = fuse(stream(32, 1).graph, ())
    seconds = [g.second for g in groups if g.second is not None]
    assert len(seconds) == 3 and all(n.op == "qir.Requantize" and n.output.dtype.bits == 8 for n in seconds)
    alone = [g for g in groups if g.head.op == "qir.Requantize"]
    assert len(alone) == 1  # by channel
    assert sum(len(g.nodes) + (g.second is not None) for g in groups) == len(stream(32, 1).graph.nodes)


@needs_compiler
@pytest.mark.parametrize(
    ("channels", "group", "architecture", "batch"),
    [(32, 1, "80", 2), (40, 1, "90a", 1), (24, 24, "80", 1), (16, 4, "80", 2), (70, 1, "90a", 3)],
)
def test_the_bits_are_the_reference_s(channels: int, group: int, architecture: str, batch: int) -> None:
    """Tensor cores of both kinds, depthwise and direct; channels that fill chunks and not."""
    case = stream(channels, batch, group, seed=channels)
    device = EmulatedDevice(batch, architecture=architecture)
    names = [v.name for n in case.graph.nodes for v in n.outputs]
    want = Session(case.graph, "reference").run(case.feeds, outputs=names)
    session = Session(case.graph, "cuda", device=device)
    for chosen in (None, names, [n.output.name for n in case.graph.nodes if n.op == "qir.Add"]):
        for name, got in session.run(case.feeds, outputs=chosen).items():
            np.testing.assert_array_equal(got, want[name], err_msg=name)


@needs_compiler
def test_sums_that_are_split_have_second_results_too() -> None:
    c = Case(0, 1)
    x = c.requantize(c.conv(c.input(DType.INT8, 300, 3, 3), 20, (3, 3)), DType.INT16, channels=20)
    y = c.requantize(x, DType.INT8)
    c.node("qir.ReduceSum", x, axes=[2, 3], keepdims=0)
    c.conv(y, 8, (1, 1))
    c.graph.set_outputs([v for n in c.graph.nodes for v in n.outputs if not v.uses()])
    session = Session(c.graph, "cuda", device=EmulatedDevice())
    want = Session(c.graph, "reference").run(c.feeds)
    for name, got in session.run(c.feeds).items():
        np.testing.assert_array_equal(got, want[name])
    outputs = [v.name for v in c.graph.outputs]
    kernels = [
        k.kernel.expression for k in session.executor.runner(1, outputs, session.executor.device.stream()).launches
    ]
    assert any("finish_splits" in k for k in kernels) and not any("requantize" in k for k in kernels)


@needs_compiler
@pytest.mark.parametrize("channels", [16, 20])
@pytest.mark.parametrize("kind", [DType.INT8, DType.UINT8])
def test_results_of_tables_are_requantized_as_numbers(kind: DType, channels: int) -> None:
    """Entries of 128 and more among them: a byte is read with its sign where one launch does both."""
    c = Case(1, 2)
    x = c.requantize(c.conv(c.input(DType.UINT8, 3, 5, 6), channels, (3, 3), pads=[1] * 4), channels=channels)
    y = c.table(x, dtype=kind)
    c.requantize(y, DType.INT8, ratios=(0.3, 0.9))
    c.node("qir.ReduceSum", y, axes=[2, 3], keepdims=0)
    c.graph.set_outputs([v for n in c.graph.nodes for v in n.outputs if not v.uses()])
    assert [g.second is not None for g in fuse(c.graph, ())] == [
        kind is DType.INT8,
        *[False] * (1 + (kind is DType.UINT8)),
    ]
    want = Session(c.graph, "reference").run(c.feeds)
    for name, got in Session(c.graph, "cuda", device=EmulatedDevice()).run(c.feeds).items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)


def pools(channels: int, several: bool = False) -> Case:
    """Average pooling over windows and over images, with and without its axes; by one pair, or one a channel."""
    c = Case(channels, 2)
    x = c.requantize(c.conv(c.input(DType.UINT8, 3, 6, 5), channels, (3, 3), pads=[1] * 4), DType.INT8)
    number = channels if several else None
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 2], "pads": [1] * 4, "dilations": [1, 1]}
    y = c.requantize(c.node("qir.SumPool", x, **window, pad_value=-3), DType.UINT8, channels=number)
    c.requantize(c.node("qir.ReduceSum", y, axes=[2, 3], keepdims=1), DType.INT8, channels=number)
    c.requantize(c.node("qir.ReduceSum", y, axes=[2, 3], keepdims=0), DType.INT16, rank=2)
    c.requantize(c.node("qir.ReduceSum", y, axes=[1], keepdims=1), DType.INT8)
    c.graph.set_outputs([v for n in c.graph.nodes for v in n.outputs if not v.uses()])
    return c


@needs_compiler
@pytest.mark.parametrize(("channels", "several"), [(32, False), (40, False), (4, False), (32, True)])
def test_sums_are_requantized_where_they_are_made(channels: int, several: bool) -> None:
    case = pools(channels, several)
    names = [v.name for n in case.graph.nodes for v in n.outputs]
    want = Session(case.graph, "reference").run(case.feeds, outputs=names)
    session = Session(case.graph, "cuda", device=EmulatedDevice(1))
    for chosen in (None, names):
        for name, got in session.run(case.feeds, outputs=chosen).items():
            np.testing.assert_array_equal(got, want[name], err_msg=name)
    outputs = [v.name for v in case.graph.outputs]
    launches = session.executor.runner(2, outputs, session.executor.device.stream()).launches
    alone = sum("requantize" in launch.kernel.expression for launch in launches)
    # over the channels no chunk lies in a pixel; rows of 40 leave no room for a third chunk; four channels are none
    assert alone == {(32, True): 3, (4, False): 4, (40, False): 2}.get((channels, several), 1)
