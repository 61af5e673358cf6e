"""Softmax without division, ArgMax, ArgMin, TopK."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.errors import LoweringError, TypeInferenceError
from qir.io import load, to_onnx
from qir.ops import op_of
from qir.ops.integer_softmax import exp_table, reciprocal_table, wide_exp_tables
from qir.ops.softmax import output_quant
from qir.runtime import Session

UINT8, INT8 = output_quant(DType.UINT8), output_quant(DType.INT8)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_float(op: str, axis: int, agree_with_onnxruntime: Any) -> None:
    x = np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32) * 4
    agree_with_onnxruntime(op, [x], {"axis": axis})


@pytest.mark.parametrize("out", [UINT8, INT8], ids=["uint8", "int8"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_integer_softmax(axis: int, out: QuantParams, integer_case: Any) -> None:
    x = np.random.default_rng(2).normal(size=(3, 10, 6)) * 4
    graph = integer_case("Softmax", [x], {"axis": axis}, [QuantParams.make(0.1, -20, DType.INT8)], [out], batch=True)
    assert [n.op for n in graph.nodes] == ["QuantizeLinear", "qir.Softmax"]


def test_softmax_on_another_grid_and_from_16_bits(integer_case: Any) -> None:
    x = np.random.default_rng(3).normal(size=(3, 10)) * 4
    grid = QuantParams.make(1 / 255, 0, DType.UINT8)
    graph = integer_case("Softmax", [x], {}, [QuantParams.make(0.1, 100, DType.UINT8)], [grid], steps=2)
    assert [n.op for n in graph.nodes][-1] == "qir.Requantize"
    integer_case("Softmax", [x], {}, [QuantParams.make(0.0005, 100, DType.INT16)], [UINT8])


@pytest.mark.parametrize("n", [2, 10, 1000, 30000])
@pytest.mark.parametrize("scale", [0.002, 0.1, 3.0])
def test_at_most_one_step_from_float_and_rarely(n: int, scale: float) -> None:
    """docs/arithmetic.md 9: at most one step apart, in under 0.2 % of outputs."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 256, size=(max(20000 // n, 4), n)).astype(np.uint8)
    attrs = {"axis": -1, "zero_point": 0, "dtype": "uint8"}
    (got,) = op_of("qir.Softmax").reference(attrs, x, exp_table(scale), reciprocal_table())
    real = op_of("Softmax").reference({"axis": -1}, x.astype(np.float64) * scale)[0]
    difference = np.abs(got.astype(int) - UINT8.quantize(real).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.002


@pytest.mark.parametrize("n", [2, 10, 1000, 30000])
@pytest.mark.parametrize("scale", [1e-5, 3e-4, 1e-2])
def test_16_bits_and_masks_at_most_one_step_from_float_and_rarely(n: int, scale: float) -> None:
    """docs/arithmetic.md 9b."""
    rng = np.random.default_rng(6)
    x = rng.integers(-(2**15), 2**15, size=(max(20000 // n, 4), n)).astype(np.int16)
    keep = rng.random(x.shape) < 0.6
    keep[0] = False
    high, low = wide_exp_tables(scale)
    attrs = {"axis": -1, "zero_point": 0, "dtype": "uint8"}
    for mask in (None, keep, keep[:1], keep[1]):
        (got,) = op_of("qir.Softmax").reference(attrs, x, high, reciprocal_table(), mask, low)
        kept = np.ones(n, bool) if mask is None else mask
        real = op_of("MaskedSoftmax").reference({"axis": -1}, x.astype(np.float64) * scale, kept)[0]
        difference = np.abs(got.astype(int) - UINT8.quantize(real).astype(int))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.002
        assert not got[np.broadcast_to(~kept, x.shape)].any()


def _masked(bits: int, keep: Any, axis: int = -1) -> tuple[Graph, Any]:
    """A qir.Softmax with a mask, and its other inputs."""
    g = Graph(stage=Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.INT16 if bits > 8 else DType.UINT8, (4, 3, 20)))
    m = g.add_input("keep", TensorType(DType.BOOL, keep))
    exps, fine = wide_exp_tables(3e-4) if bits > 8 else (exp_table(0.07), None)
    tables = [g.add_constant("e", exps), g.add_constant("r", reciprocal_table()), m]
    tables += [] if fine is None else [g.add_constant("f", fine)]
    attrs = {"axis": axis, "zero_point": -128, "dtype": "int8"}
    g.set_outputs([g.add_node("qir.Softmax", [x, *tables], attrs, outputs=["y"]).output])
    return g, [t.data for t in tables if t.data is not None]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 20), -1), ((20,), -1), ((4, 1, 1), 1), ((3, 1), 0)])
def test_masked_bodies_on_onnxruntime_and_onnx_reference(bits: int, shape: tuple[int, ...], axis: int) -> None:
    import onnx.reference

    rng = np.random.default_rng(7)
    g, tables = _masked(bits, shape, axis)
    kind = g.inputs[0].dtype
    x = rng.integers(kind.lo, kind.hi + 1, size=(4, 3, 20)).astype(kind.numpy)
    keep = rng.random(shape) < 0.5
    keep[0] = False
    attrs = {"axis": axis, "zero_point": -128, "dtype": "int8"}
    (want,) = op_of("qir.Softmax").reference(attrs, x, *tables[:2], keep, *tables[2:])
    assert (want[np.broadcast_to(~keep, x.shape)] == -128).all()
    feeds = {"x": x, "keep": keep}
    (got,) = Session(g, backend="onnxruntime").run(feeds).values()
    np.testing.assert_array_equal(got, want)
    (again,) = list(onnx.reference.ReferenceEvaluator(to_onnx(g, 28)).run(None, feeds))
    np.testing.assert_array_equal(again, want)


def test_hostile_tables_and_masks_are_refused() -> None:
    g, _ = _masked(8, (20,))
    node = g.nodes[0]
    assert not list(op_of("qir.Softmax").overflows(node))
    g.set_input(node, 1, g.add_constant("e", exp_table(0.1) * 2))
    assert "leaves" in next(iter(op_of("qir.Softmax").overflows(node)))
    for keep in ((2, 4, 3, 20), (7,)):
        with pytest.raises(TypeInferenceError, match=r"broadcast|do not fit"):
            _masked(8, keep)


def test_masked_softmax_becomes_integers_and_stays_in_a_file(integer_case: Any) -> None:
    rng = np.random.default_rng(8)
    g = Graph()
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 20)))
    keep = g.add_constant("keep", np.tri(3, 20, dtype=bool))
    g.set_outputs([g.add_node("MaskedSoftmax", [x, keep], outputs=["y"]).output])
    again = load(to_onnx(g))
    assert [n.op for n in again.nodes] == ["MaskedSoftmax"]
    feeds = {"x": rng.normal(size=(5, 3, 20)).astype(np.float32) * 3}
    (want,), (got,) = (
        list(Session(h, backend=b).run(feeds).values()) for h, b in ((g, "reference"), (again, "onnxruntime"))
    )
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert not want[:, 0, 1:].any()
    data = rng.normal(size=(5, 3, 20)) * 4
    mask, grid = np.tri(3, 20, dtype=bool), QuantParams.make(0.0005, 100, DType.INT16)
    graph = integer_case("MaskedSoftmax", [data, mask], {}, [grid], [UINT8])
    assert [n.op for n in graph.nodes] == ["QuantizeLinear", "qir.Softmax"]


def test_both_profiles_have_a_body_without_division() -> None:
    for opset in (21, 28):
        g = Graph(stage=Stage.INTEGER)
        x = g.add_input("x", TensorType(DType.UINT8, ("N", 10)))
        tables = [g.add_constant("e", exp_table(0.1)), g.add_constant("r", reciprocal_table())]
        node = g.add_node("qir.Softmax", [x, *tables], {"axis": -1, "zero_point": 0, "dtype": "uint8"}, outputs=["y"])
        g.set_outputs([node.output])
        ops = [n.op_type for f in to_onnx(g, opset).functions for n in f.node]
        assert "Div" not in ops and "BitShift" in ops


def test_the_body_in_onnx_reference() -> None:
    import onnx.reference

    g = Graph(stage=Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.INT8, (4, 33)))
    tables = [g.add_constant("e", exp_table(0.07)), g.add_constant("r", reciprocal_table())]
    attrs = {"axis": 1, "zero_point": -128, "dtype": "int8"}
    g.set_outputs([g.add_node("qir.Softmax", [x, *tables], attrs, outputs=["y"]).output])
    data = np.random.default_rng(5).integers(-128, 128, size=(4, 33)).astype(np.int8)
    want = op_of("qir.Softmax").reference(attrs, data, exp_table(0.07), reciprocal_table())[0]
    for opset in (21, 28):
        (got,) = list(onnx.reference.ReferenceEvaluator(to_onnx(g, opset)).run(None, {"x": data}))
        np.testing.assert_array_equal(got, want)


def test_log_softmax_says_what_to_do(integer_case: Any) -> None:
    with pytest.raises(LoweringError, match="strip it"):
        integer_case("LogSoftmax", [np.zeros((1, 3))], {}, [UINT8], [UINT8])


GRIDS = {
    "uint8": QuantParams.make(0.05, 120, DType.UINT8), "int8": QuantParams.make(0.05, -3, DType.INT8),
    "int16": QuantParams.make(0.0004, 11, DType.INT16), "uint16": QuantParams.make(0.0004, 30000, DType.UINT16),
}  # fmt: skip


@pytest.mark.parametrize("attrs", [{"axis": 1}, {"axis": -1, "keepdims": 0}, {"axis": 1, "select_last_index": 1}])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arg_extremum(op: str, attrs: dict[str, Any], agree_with_onnxruntime: Any, integer_case: Any) -> None:
    rng = np.random.default_rng(6)
    x = rng.integers(-3, 4, size=(2, 9, 4)).astype(np.float32)  # with ties
    agree_with_onnxruntime(op, [x], attrs)
    for grid in GRIDS.values():
        integer_case(op, [x], attrs, [grid], [None], batch=True)


@pytest.mark.parametrize("attrs", [{"axis": 1}, {"axis": -1, "largest": 0}])
def test_top_k(attrs: dict[str, Any], agree_with_onnxruntime: Any, integer_case: Any) -> None:
    rng = np.random.default_rng(7)
    x = rng.integers(-3, 4, size=(2, 9, 9)).astype(np.float32)  # with ties
    agree_with_onnxruntime("TopK", [x, np.asarray([4])], attrs, outputs=2)
    for grid in GRIDS.values():
        integer_case("TopK", [x, np.asarray([4])], attrs, [grid], [grid, None], batch=True)


def test_top_k_in_any_order_has_one_order_on_integers(integer_case: Any) -> None:
    x = np.random.default_rng(7).normal(size=(2, 40)).astype(np.float32)
    grid = GRIDS[next(iter(GRIDS))]
    integer = integer_case("TopK", [x, np.asarray([9])], {"axis": 1, "sorted": 0}, [grid], [grid, None], batch=True)
    assert [n.attrs["sorted"] for n in integer.nodes if n.op == "TopK"] == [1]
