"""The CUDA kernels, launchers and plans on a host: every operator against the reference, bit for bit.

The .cu sources are compiled by the host's C++ compiler against an emulation of CUDA; threads run in several orders.
"""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.ops.logic import Logical
from qir.ops.movement import Movement
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case
from qir.testing.integer_cases import BUILDERS, Build

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def compare(case: Case, order: int) -> None:
    """Every value of the graph, then only the outputs (fused), against the reference."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    values = [v for n in case.graph.nodes for v in n.outputs]
    case.graph.set_outputs([v for v in values if not v.uses()])
    expected = Session(case.graph, "reference").run(case.feeds, outputs=[v.name for v in values])
    session = Session(case.graph, "cuda", device=EmulatedDevice(order))
    for names in ([v.name for v in values], None):
        for name, got in session.run(case.feeds, outputs=names).items():
            want = expected[name]
            assert got.dtype == want.dtype and got.shape == want.shape, name
            np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize("order", [0, 1, 5])
@pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)
def test_operator_matches_the_reference(build: Build, order: int) -> None:
    case = Case(seed=11 + order, batch=1 + order % 3)
    build(case)
    compare(case, order)


def test_every_integer_operator_has_a_launcher() -> None:
    """Whatever a lowering can leave in an integer graph: our own operators, and those named where nodes are made."""
    from pathlib import Path

    import qir.ops
    from qir.ops import FORBIDDEN
    from qir.ops.base import REGISTRY
    from qir.runtime.cuda.operators import OPERATORS

    made: set[str] = set()
    folder = Path(str(qir.ops.__file__)).parent
    for file in (*folder.glob("*.py"), folder.parent / "lowering.py"):
        made.update(re.findall(r'add_node\(\s*"([A-Za-z.]+)"', file.read_text()))
    moved = {n for n, op in REGISTRY.items() if isinstance(op, (Movement, Logical))}
    own = {n for n, op in REGISTRY.items() if op.is_integer_op}
    plain = {"ArgMax", "ArgMin", "TopK", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "Cast", "Where"}
    at_planning = {"Shape", "Size", "ConstantOfShape", "Range"}
    assert own and {"Clip", "Concat", "MaxPool"} <= made and "Transpose" in moved
    assert not {o for o in made | moved | own | plain if o not in OPERATORS} - FORBIDDEN - at_planning


def test_border() -> None:
    """float32 in and out, ties, saturation, infinities."""
    case = Case(1, 2)
    x = case.graph.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 4, 4)))
    case.feeds["x"] = np.tile(np.asarray([0.5, 1.5, -0.5, 2.5, 1e9, -1e9, np.inf, -np.inf], np.float32), 12).reshape(
        2, 3, 4, 4
    )
    scale = case.constant(1.0, np.float32)
    q = case.graph.add_node(
        "QuantizeLinear", [x, scale, case.constant(7, np.uint8)], quant=QuantParams.make(1.0, 7, DType.UINT8)
    ).output
    acc = case.conv(q, 5, (1, 1))
    case.node("DequantizeLinear", acc, case.constant(np.linspace(0.1, 0.5, 5), np.float32), axis=1)
    case.node("DequantizeLinear", q, scale, case.constant(7, np.uint8))
    compare(case, 0)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("kind", [DType.INT4, DType.UINT4])
def test_tables_of_four_bits_have_an_entry_for_every_byte(kind: DType, axis: int | None) -> None:
    """Chunks past the last channel hold whatever was there before: bytes, not four bits."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case = Case(4, 2)
    x = case.requantize(case.conv(case.input(DType.UINT8, 3, 5, 5), 20, (3, 3)), kind)
    t = case.graph.add_constant("t", case.ints(DType.INT8, (16,) if axis is None else (20, 16)))
    case.graph.set_outputs([x, case.node("qir.Table", x, t, axis=axis)])
    session = Session(case.graph, "cuda", device=EmulatedDevice())
    want = Session(case.graph, "reference").run(case.feeds)
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    made = session.executor.runner(2, list(want), session.executor.device.stream())
    (launch,) = [a for a in made.launches if "table" in a.kernel.expression]
    assert [int(a) for a in launch.arguments[-2:]] == [-128 if kind.is_signed else 0, 256]
    sizes = {p.storage.size for key, (_, p, _) in made.plan.packed._memory.items() if key[-1] == "every byte"}
    assert sizes == {256 if axis is None else 20 * 256}


def test_images_past_32_bits_are_refused() -> None:
    """A plan needs no memory yet: 2^31 cells of 16 channels, and one more."""
    from qir.errors import BackendError
    from qir.runtime.cuda.compiler import compile_plan
    from qir.runtime.cuda.device.emulated import EmulatedDevice
    from qir.runtime.cuda.planner.constants import Constants
    from qir.runtime.cuda.planner.plan import Plan

    case, device = Case(0, 1), EmulatedDevice()
    case.graph.set_outputs([case.conv(case.input(DType.INT8, 32, 32, 32), 8, (3, 3))])

    def plan(batch: int) -> Plan:
        return compile_plan(case.graph, device, {"N": batch}, case.graph.outputs, Constants(device))

    largest = 2**31 // (32 * 32 * 2) - 1
    assert plan(largest).arena_size > 2**34
    with pytest.raises(BackendError, match="smaller batch"):
        plan(largest + 1)


def test_an_index_out_of_range_stays_inside() -> None:
    """ONNX leaves it open; on a GPU one wild read ends the process's context."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case = Case(2, 3)
    index = case.graph.add_input("index", TensorType(DType.INT64, ("N",)))
    x = case.ints(DType.INT8, (5, 7))
    y = case.node("Gather", case.constant(x, np.int8), index, axis=0)
    case.graph.set_outputs([y])
    session = Session(case.graph, "cuda", device=EmulatedDevice())
    for given, taken in (([0, 4, -5], [0, 4, 0]), ([5, 1 << 40, 10**6], [4, 4, 4]), ([-6, -(1 << 40), -7], [0, 0, 0])):
        np.testing.assert_array_equal(session.run({"index": np.asarray(given)})[y.name], x[taken])


def test_unknown_operator_is_an_error() -> None:
    from qir.errors import BackendError
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case = Case(0, 1)
    case.graph.set_outputs([case.node("Sign", case.input(DType.INT8, 2))])
    with pytest.raises(BackendError, match="has no CUDA kernel"):
        Session(case.graph, "cuda", device=EmulatedDevice()).run(case.feeds)


def test_without_cupy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from qir.errors import BackendError

    monkeypatch.setitem(sys.modules, "cupy", None)
    graph = Graph(stage=Stage.INTEGER)
    graph.set_outputs([graph.add_input("x", TensorType(DType.INT8, ("N", 2)))])
    with pytest.raises(BackendError, match="CuPy"):
        Session(graph, "cuda")
