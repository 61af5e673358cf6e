"""The border stays as it was: float types, names of axes, texts; what is handed through; numbers as outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir.io import audit, load, save, to_onnx
from qir.passes.calibration.data import batches
from qir.passes.diagnose import diagnose
from qir.passes.recipes import recipe_of
from qir.runtime import Session
from qir.types import Array

RNG = np.random.default_rng(0)
W = RNG.normal(size=(16, 8)).astype(np.float32)
X = RNG.uniform(-1, 1, size=(32, 16)).astype(np.float32)
TYPES = {"FLOAT16": np.float16, "DOUBLE": np.float64, "BFLOAT16": None}


def model(nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], w: Any = W) -> onnx.ModelProto:
    """inputs, outputs: name -> (ONNX type, shape)."""
    info = helper.make_tensor_value_info
    first, last = ([info(n, kind, shape) for n, (kind, shape) in part.items()] for part in (inputs, outputs))
    given = w if isinstance(w, onnx.TensorProto) else numpy_helper.from_array(w, "w")
    graph = helper.make_graph(nodes, "g", first, last, [given])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def typed(kind: str) -> onnx.ModelProto:
    """A model of one float type throughout, with texts."""
    t = int(getattr(TensorProto, kind))
    w = helper.make_tensor("w", t, W.shape, W.reshape(-1).tolist())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Relu", ["m"], ["y"])]
    proto = model(nodes, {"x": (t, ["batch", 16])}, {"y": (t, ["batch", 8])}, w)
    proto.model_version, proto.doc_string, proto.domain, proto.producer_name = 7, "a model", "org.example", "maker"
    proto.graph.doc_string, proto.graph.input[0].doc_string = "a graph", "an input"
    helper.set_model_props(proto, {"author": "somebody"})
    return proto


def kinds(proto: onnx.ModelProto) -> list[tuple[str, int, list[Any]]]:
    return [
        (i.name, i.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim])
        for i in (*proto.graph.input, *proto.graph.output)
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_float_types_names_of_axes_and_texts_stay(tmp_path: Path, kind: str) -> None:
    proto = typed(kind)
    integer, _ = qir.quantize(proto, X)
    save(integer, tmp_path / "q.onnx")
    made = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(made, full_check=True)
    assert kinds(made) == kinds(proto)
    assert audit(made) == []
    texts = (made.model_version, made.doc_string, made.domain, made.graph.doc_string, made.graph.input[0].doc_string)
    assert texts == (7, "a model", "org.example", "a graph", "an input")
    assert {p.key: p.value for p in made.metadata_props}["author"] == "somebody"
    assert '"producer_name":"maker"' in integer.metadata["qir.signature"]
    again = load(made)
    assert str(again) == str(integer)
    assert again.metadata["qir.signature"] == integer.metadata["qir.signature"]
    assert kinds(to_onnx(again)) == kinds(proto)


@pytest.mark.parametrize("kind", [k for k, t in TYPES.items() if t])
def test_the_session_gives_what_the_file_gives(kind: str) -> None:
    integer, _ = qir.quantize(typed(kind), X)
    x = X.astype(TYPES[kind])
    theirs = np.asarray(ort.InferenceSession(to_onnx(integer).SerializeToString()).run(None, {"x": x})[0])
    assert theirs.dtype == TYPES[kind]
    for backend in ("reference", "onnxruntime", "cpu"):
        mine = Session(integer, backend=backend).run({"x": x})["y"]
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), backend
    assert Session(integer, backend="cpu").run({"x": x}, outputs=["y"])["y"].dtype == theirs.dtype


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_data_of_any_float_type_are_taken(tmp_path: Path, dtype: Any) -> None:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, ["N", 16])}, {"y": (1, ["N", 8])})
    x = np.rint(X * 64) / 64  # numbers that all of them have
    expected = str(qir.quantize(proto, x.astype(np.float32))[0])
    np.savez(tmp_path / "x.npz", x=x.astype(dtype))
    for data in (x.astype(dtype), {"x": x.astype(dtype)}, tmp_path / "x.npz", list(x.astype(dtype))):
        assert str(qir.quantize(proto, data)[0]) == expected
    integer, _ = qir.quantize(proto, x.astype(dtype))
    got = Session(integer).run({"x": x.astype(dtype)})["y"]
    assert got.dtype == np.float32 and np.array_equal(got, Session(integer).run({"x": x.astype(np.float32)})["y"])


def test_numbers_beyond_float32_are_not_finite() -> None:
    proto = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, ["N", 16])}, {"y": (1, ["N", 8])})
    with pytest.raises(qir.errors.DataError, match="NaN or infinity"):
        qir.quantize(proto, X.astype(np.float64) * 1e300)


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16"])
@pytest.mark.parametrize("io", ["float", "integer"])
def test_an_input_that_is_an_output(tmp_path: Path, io: str, kind: str) -> None:
    t = int(getattr(TensorProto, kind))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    w = helper.make_tensor("w", t, W.shape, W.reshape(-1).tolist())
    proto = model([node], {"x": (t, ["N", 16])}, {"y": (t, ["N", 8]), "x": (t, ["N", 16])}, w)
    integer, _ = qir.quantize(proto, X)
    save(integer, tmp_path / "q.onnx", io=io)
    again = load(tmp_path / "q.onnx")
    x = X if io == "float" else again.inputs[0].quant.quantize(X)  # type: ignore[union-attr]
    results = [Session(again, backend=b).run({"x": x}) for b in ("reference", "onnxruntime", "cpu")]
    assert all(np.array_equal(r[n], results[0][n]) for r in results for n in "xy")
    assert np.array_equal(results[0]["x"], x.astype(results[0]["x"].dtype))


def test_an_unused_input_is_no_float_inside(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([node], {"x": (1, ["N", 16]), "u": (10, ["N", 3])}, {"y": (1, ["N", 8])})
    feeds: dict[str, Array] = {"x": X, "u": np.ones((32, 3), np.float16)}
    integer, _ = qir.quantize(proto, feeds)
    for io in ("float", "integer"):
        save(integer, tmp_path / "q.onnx", io=io)
        made = onnx.load(tmp_path / "q.onnx")
        assert audit(made) == [] and [i.name for i in made.graph.input] == ["x", "u"]
        assert made.graph.input[1].type.tensor_type.elem_type == TensorProto.FLOAT16


def test_diagnose_takes_numbers_as_outputs_and_weights_on_the_left() -> None:
    number = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("ReduceMean", ["m"], ["y"], keepdims=0)]
    left = [helper.make_node("MatMul", ["w", "x"], ["y"])]
    rows = RNG.normal(size=(16, 8, 5)).astype(np.float32)
    cases: list[tuple[onnx.ModelProto, Array]] = [
        (model(number, {"x": (1, [1, 16])}, {"y": (1, [])}), X),
        (
            model(left, {"x": (1, ["N", 8, 5])}, {"y": (1, ["N", 16, 5])}),
            rows,
        ),
    ]
    for proto, x in cases:
        graph = load(proto)
        found = diagnose(graph, batches(x, graph), recipe_of("w8a8"), remedies=False)
        assert found.culprits and all(c.sqnr > 20 for c in found.culprits)
