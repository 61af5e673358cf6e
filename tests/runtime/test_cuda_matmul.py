"""Products of two activations on tensor cores: every pair of kinds, strides of every sort."""

from __future__ import annotations

import ctypes
import shutil

import numpy as np
import pytest

from qir import DType
from qir.runtime.cuda.arguments import scalar
from qir.runtime.cuda.device.interface import Launch
from qir.runtime.cuda.instances import kernel
from qir.runtime.cuda.planner.placement import Placement, Storage, row_major
from qir.runtime.cuda.planner.plan import shape_of
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)
KINDS = (DType.INT8, DType.UINT8)


def same(case: Case, order: int) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    want = Session(case.graph, "reference").run(case.feeds)
    session = Session(case.graph, "cuda", device=EmulatedDevice(order))
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    made = session.executor.runner(case.batch, list(want), session.executor.device.stream())
    kernels = [launch.kernel.expression for launch in made.launches if "matmul" in launch.kernel.expression]
    assert kernels and set(kernels) == {"qir::matmul_bytes"}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("left", KINDS, ids=str)
def test_kinds(left: DType, order: int) -> None:
    """Sizes past one tile of each axis and past one slice; zero points at the ends of what they can be."""
    case = Case(order, 2)
    x = case.input(left, 3, 70, 75)
    for right in KINDS:
        zeros = {"a_zero_point": left.lo if order else 7, "b_zero_point": right.hi if order else -3}
        case.node("qir.MatMulActivations", x, case.input(right, 1, 75, 66), **zeros)
    same(case, order)


@pytest.mark.parametrize("left", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("right", [np.int8, np.uint8, np.int16, np.uint16])
def test_halves(left: type, right: type) -> None:
    """The kernel by itself: elements of 16 bits go as two bytes, modulo 2^32."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    rng = np.random.default_rng(0)
    a, b = (
        rng.integers(np.iinfo(t).min, np.iinfo(t).max, n, t, True) for t, n in ((left, (2, 66, 70)), (right, (70, 5)))
    )
    device = EmulatedDevice()
    held = [device.allocate(n) for n in (a.nbytes, b.nbytes, 2 * 66 * 5 * 4)]
    places = [
        Placement(Storage(0, m.pointer), np.dtype(t), n, row_major(n))
        for m, t, n in zip(held, (left, right, np.int32), (a.shape, b.shape, (2, 66, 5)), strict=True)
    ]
    for memory, data in zip(held, (a, b), strict=False):
        device.upload(memory.pointer, data)
    x, w, y = places
    views = (
        Placement(x.storage, x.dtype, (2, 66, 1), (66 * 70, 70, 0)).view(y.shape),
        Placement(w.storage, w.dtype, (1, 5), (0, 1)).view(y.shape),
        y.view(),
    )
    scalars = [scalar(kind, v) for kind, v in (("i4", 70), ("i8", 1), ("i8", 5), ("i4", 1234), ("i4", -77))]
    case = Case(0, 1)
    node = case.graph.add_node("Identity", [case.input(DType.INT8, 1)])
    launch = Launch(kernel("matmul_bytes"), (2, 1, 2), (shape_of(y.shape), *views, *scalars), node)
    device.record([launch]).launch(device.stream())
    device.synchronize()
    got = np.ctypeslib.as_array((ctypes.c_int32 * (2 * 66 * 5)).from_address(held[2].pointer)).reshape(y.shape)
    want = (a.astype(np.int64) - 1234) @ (b.astype(np.int64) + 77)
    np.testing.assert_array_equal(got, want.astype(np.uint64).astype(np.uint32).view(np.int32))


def test_heads() -> None:
    """As attention has it: heads beside one another in a row, transposed views, one matrix for all of a batch."""
    case = Case(5, 2)
    x = case.input(DType.INT8, 9, 96)
    heads = [
        case.node("Transpose", case.node("Reshape", part, case.constant([0, 9, 4, 8])), perm=[0, 2, 1, 3])
        for part in (
            case.node("Slice", x, case.constant([i * 32]), case.constant([i * 32 + 32]), case.constant([2]))
            for i in range(3)
        )
    ]
    q, k, v = heads
    scores = case.node(
        "qir.MatMulActivations", q, case.node("Transpose", k, perm=[0, 1, 3, 2]), a_zero_point=3, b_zero_point=3
    )
    p = case.requantize(scores, DType.UINT8, ratios=(1e-2, 2e-2))
    case.node("qir.MatMulActivations", p, v, a_zero_point=0, b_zero_point=3)
    same(case, 0)
