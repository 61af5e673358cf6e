"""Concatenations computed in place, splits and slices as views: exact, and without copies where none is due."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
import pytest

from qir import DType, Value
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)

COPIES = ("copy_", "lookup_", "gather_")


def copies(case: Case, order: int = 0) -> int:
    """How many launches only move data, once every value and then the outputs are as the reference says.

    The inputs' and outputs' own (channels first) copies are not counted: the cases have int32 sums at their ends.
    """
    values = [v for n in case.graph.nodes for v in n.outputs]
    case.graph.set_outputs([v for v in values if not v.uses()])
    expected = Session(case.graph, "reference").run(case.feeds, outputs=[v.name for v in values])
    session = Session(case.graph, "cuda", device=EmulatedDevice(order))
    for names in ([v.name for v in values], None):
        for name, got in session.run(case.feeds, outputs=names).items():
            np.testing.assert_array_equal(got, expected[name], err_msg=name)
    outputs = [v.name for v in case.graph.outputs]
    launches = session.executor.runner(case.batch, outputs, session.executor.device.stream()).launches
    return sum(launch.kernel.expression.removeprefix("qir::").startswith(COPIES) for launch in launches)


def start(c: Case, channels: int = 32, kind: DType = DType.UINT8) -> Value:
    x = c.conv(c.input(DType.UINT8, 3, 6, 5), channels, (3, 3), pads=[1, 1, 1, 1])
    return c.requantize(x, kind, channels=channels)


def conv(c: Case, x: Value, channels: int, kernel: int = 1, kind: DType = DType.UINT8) -> Value:
    acc = c.conv(x, channels, (kernel, kernel), pads=[kernel // 2] * 4)
    return c.requantize(acc, kind, channels=channels)


def end(c: Case, x: Value) -> None:
    """Per-image sums: one value a channel, whose layout is everyone's."""
    c.node("qir.ReduceSum", x, axes=[2, 3], keepdims=0)


def fire(c: Case) -> None:
    x = start(c)
    y = c.node("Concat", conv(c, x, 32), conv(c, x, 20, 3), axis=1)
    end(c, conv(c, y, 16))


def dense(c: Case) -> None:
    """Every layer reads all before it, by concatenations of concatenations."""
    x = start(c, 16)
    for _ in range(3):
        x = c.node("Concat", x, conv(c, conv(c, x, 32), 16, 3), axis=1)
    end(c, conv(c, x, 5))


def residual_inside(c: Case) -> None:
    """int16 streams with a fused addition whose operands are slices; pooling and tables write slices, too."""
    x = start(c, 48, DType.INT8)
    a = c.add(conv(c, x, 48, 3, DType.INT8), x, DType.INT16)
    b = c.add(conv(c, c.requantize(a, DType.INT8), 48, 1, DType.INT8), a, DType.INT16)
    y = c.requantize(c.node("Concat", a, b, axis=1), DType.INT8)
    z = c.node("MaxPool", y, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    end(c, conv(c, c.node("Concat", z, c.table(y), conv(c, z, 7, kind=DType.INT8), axis=1), 9))


def halves(c: Case) -> None:
    """Split and Slice at multiples of 16 channels, one half through layers, and joined again."""
    x = start(c, 64)
    c.graph.add_node("Split", [x, c.constant([32, 32])], {"axis": 1}, outputs=2)
    left, right = c.graph.nodes[-1].outputs
    a = conv(c, left, 32, 3)
    part = c.node("Slice", right, c.constant([16]), c.constant([32]), c.constant([1]), c.constant([1]))
    b = c.requantize(c.conv(part, 16, (3, 3), pads=[1] * 4, group=16), channels=16)
    end(c, conv(c, c.node("Concat", a, b, conv(c, right, 3), axis=1), 8))


def odd(c: Case) -> None:
    """Slices of 24 channels lie across chunks: those are copied."""
    x = start(c, 24)
    y = c.node("Concat", conv(c, x, 24), conv(c, x, 24), x, axis=1)
    z = c.node("Slice", y, c.constant([10]), c.constant([40]), c.constant([1]), c.constant([1]))
    end(c, conv(c, z, 8))


def twice(c: Case) -> None:
    """One value in two concatenations, and twice in one."""
    x = start(c, 16)
    y = conv(c, x, 16)
    a, b = c.node("Concat", x, y, axis=1), c.node("Concat", y, y, axis=1)
    end(c, conv(c, a, 8))
    end(c, conv(c, b, 8))


@pytest.mark.parametrize(
    ("build", "moved"),
    [(fire, 0), (dense, 0), (residual_inside, 0), (halves, 0), (odd, 3), (twice, 2)],
    ids=lambda x: getattr(x, "__name__", None),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_concatenation(build: Callable[[Case], None], moved: int, seed: int) -> None:
    case = Case(seed, 1 + seed)
    build(case)
    borders = 1  # channels-first input to channels last
    assert copies(case, seed) - borders == moved


def test_other_axes_and_ranks() -> None:
    case = Case(3, 2)
    x = start(case, 16)
    rows = case.node("Concat", x, conv(case, x, 16), axis=2)
    end(case, conv(case, rows, 4))
    flat = case.node("Concat", case.input(DType.INT8, 5), case.input(DType.INT8, 11), axis=1)
    w = case.graph.add_constant("w", case.ints(DType.INT8, (16, 3)))
    case.node("qir.MatMul", flat, w, None, weight_zero_point=0)
    top = case.node("Slice", rows, case.constant([1]), case.constant([4]), case.constant([2]), case.constant([1]))
    end(case, conv(case, top, 4))
    last = case.node("Slice", rows, case.constant([-1]), case.constant([-99]), case.constant([1]), case.constant([-1]))
    end(case, conv(case, last, 4))
    copies(case)
