"""Export: valid models, shared function bodies, both profiles, 4-bit tensors, dtypes without kernels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import onnx.shape_inference
import onnxruntime as ort
import pytest

import qir
from qir.errors import LoweringError, ModelError, StageError, UnsupportedError
from qir.graph import Graph, Stage
from qir.io import audit, strip_border, to_onnx
from qir.runtime import Session
from qir.types import DType, TensorType
from qir.verify import verify

X = np.random.default_rng(11).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("opset", [21, 22, 25, 28])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_both_profiles_give_the_reference_bits_in_onnx_reference(two_convs: Any, opset: int, weights: str) -> None:
    graph: Graph = two_convs(weights, "uint4")
    names = [v.name for n in graph.nodes for v in n.outputs]
    model = checked(to_onnx(graph, opset, names))
    assert audit(model) == []
    shifts = [n for f in model.functions for n in f.node if n.op_type == "BitShift"]
    casts_to_u64 = [n for f in model.functions for n in f.node if n.op_type == "Cast" and n.attribute[0].i == 13]
    assert shifts and bool(casts_to_u64) == (opset < 28)  # from 28 on signed shifts are standard
    fetch = [o.name for o in model.graph.output]
    got = dict(zip(fetch, onnx.reference.ReferenceEvaluator(model).run(fetch, {"x": X}), strict=True))
    want = Session(graph, "reference").run({"x": X}, outputs=names)
    for name in names:
        np.testing.assert_array_equal(np.asarray(got[name]).astype(want[name].dtype), want[name])


def test_equal_bodies_are_shared(two_convs: Any) -> None:
    model = to_onnx(two_convs())
    calls = [n.op_type for n in model.graph.node if n.domain == "qir"]
    assert calls == ["Conv", "Requantize", "Conv_2", "Requantize_2"]  # with and without bias, two zero points
    assert sorted(f.name for f in model.functions) == sorted(set(calls))


@pytest.mark.parametrize("opset", [20, 29])
def test_unknown_opset(two_convs: Any, opset: int) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot export to opset {opset}"):
        to_onnx(two_convs(), opset)


def test_int4_weights_are_packed_two_to_a_byte(two_convs: Any) -> None:
    graph: Graph = two_convs("int4")
    (proto,) = [i for i in to_onnx(graph).graph.initializer if i.name == "c0.w"]
    data = graph.value("c0.w").array().reshape(-1)
    assert proto.data_type == onnx.TensorProto.INT4
    assert len(proto.raw_data) == (data.size + 1) // 2
    assert proto.raw_data[0] == (int(data[0]) & 15) | ((int(data[1]) & 15) << 4)  # low nibble first
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(proto).astype(np.int8).reshape(-1), data)


# -- dtypes for which runtimes have no kernel -------------------------------------------------
def one_node(op: str, kind: DType, inputs: list[Any], attrs: dict[str, Any], shape: tuple[Any, ...]) -> Graph:
    g = Graph("one", Stage.INTEGER)
    x = g.add_input("x", TensorType(kind, shape))
    constants = [
        g.add_constant(f"c{i}", c, kind if c.dtype == kind.numpy and kind.bits == 4 else None)
        for i, c in enumerate(inputs)
    ]
    count = 2 if op in ("TopK", "Split") else 1
    node = g.add_node(op, [x, *constants], attrs, outputs=[f"y{i}" for i in range(count)])
    g.set_outputs(node.outputs)
    return g


def i64(*values: int) -> Any:
    return np.asarray(values, np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Reshape", [i64(0, 2, -1)], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Slice", [i64(1), i64(3), i64(1)], {}),
    ("Split", [i64(3, 1)], {"axis": 1}),
    ("Pad", [i64(0, 0, 1, 1, 0, 0, 1, 0)], {}),
    ("Gather", [i64(1, 0, 3)], {"axis": 1}),
    ("Flatten", [], {}),
    ("Unsqueeze", [i64(1)], {}),
    ("DepthToSpace", [], {"blocksize": 2}),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [], {"blocksize": 2}),
    ("ReduceMax", [i64(2, 3)], {}),
    ("Clip", ["lo", "hi"], {}),
    ("ArgMax", [], {"axis": 1}),
    ("TopK", [i64(2)], {"axis": 1}),
]


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize(("op", "inputs", "attrs"), CASES)
def test_data_movement_runs_in_every_integer_dtype(
    op: str, inputs: list[Any], attrs: dict[str, Any], kind: str
) -> None:
    dtype = DType(kind)
    limits = {"lo": np.asarray(1, dtype.numpy), "hi": np.asarray(5, dtype.numpy)}
    graph = one_node(op, dtype, [limits[i] if isinstance(i, str) else i for i in inputs], attrs, ("N", 4, 4, 2))
    rng = np.random.default_rng(5)
    x = rng.integers(max(dtype.lo, -1000), min(dtype.hi, 1000), (3, 4, 4, 2)).astype(dtype.numpy)
    want = Session(graph, "reference").run({"x": x})
    for name, got in Session(graph, "onnxruntime").run({"x": x}).items():
        np.testing.assert_array_equal(got, want[name])
    again = qir.load(to_onnx(graph).SerializeToString())
    assert [(n.op, n.attrs) for n in again.nodes] == [(n.op, n.attrs) for n in graph.nodes]


def inlined_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of what the inlined model's nodes compute."""
    flat = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model))
    infos = [*flat.graph.value_info, *flat.graph.input, *flat.graph.output]
    return {i.name: i.type.tensor_type.elem_type for i in infos}


def test_activations_of_four_bits_travel_in_eight(two_convs: Any) -> None:
    graph: Graph = two_convs("int4", "uint4")
    four = [v.name for n in graph.nodes for v in n.outputs if v.dtype.bits == 4]
    assert four
    model = checked(to_onnx(graph, extra_outputs=four))
    assert not {onnx.TensorProto.INT4, onnx.TensorProto.UINT4} & set(inlined_types(model).values())
    assert [i.data_type for i in model.graph.initializer if i.name == "c0.w"] == [onnx.TensorProto.INT4]
    plain = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])  # as any user would
    want = Session(graph, "reference").run({"x": X}, outputs=four)
    for name, got in zip(four, plain.run(four, {"x": X}), strict=True):
        np.testing.assert_array_equal(got, want[name])
    assert str(qir.load(to_onnx(graph))) == str(graph)
    assert onnx.TensorProto.UINT4 in inlined_types(to_onnx(graph, 28)).values()


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_borders_of_four_bits(kind: str) -> None:
    """Floats that are quantized to, and come back from, a 4-bit grid; and a 4-bit input."""
    dtype = DType(kind)
    g = Graph("border", Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 6)))
    ints = g.add_input("ints", TensorType(dtype, ("N", 6)))
    scale = g.add_constant("scale", np.asarray(0.25, np.float32))
    zero = g.add_constant("zero", np.asarray(3, dtype.numpy), dtype)
    q = g.add_node("QuantizeLinear", [x, scale, zero], outputs=["q"]).output
    both = g.add_node("Concat", [q, ints], {"axis": 1}, outputs=["both"]).output
    y = g.add_node("DequantizeLinear", [both, scale, zero], outputs=["y"]).output
    g.set_outputs([both, y])
    feeds = {
        "x": np.linspace(-9, 9, 24, dtype=np.float32).reshape(4, 6),
        "ints": np.resize(np.arange(dtype.lo, dtype.hi + 1, dtype=dtype.numpy), (4, 6)),
    }
    model = checked(to_onnx(g))
    assert audit(model) == []
    assert not {onnx.TensorProto.INT4, onnx.TensorProto.UINT4} & set(inlined_types(model).values())
    want = Session(g, "reference").run(feeds)
    assert want["both"].min() == dtype.lo and want["both"].max() == dtype.hi  # it saturates at four bits
    for name, got in Session(g, "onnxruntime").run(feeds).items():
        np.testing.assert_array_equal(got, want[name])
    again = qir.load(model.SerializeToString())
    assert str(again) == str(g)
    assert again.stage is Stage.INTEGER
    assert again.value("ints").dtype is again.value("both").dtype is dtype


# -- files ------------------------------------------------------------------------------------
@pytest.mark.parametrize("external", [None, True])
@pytest.mark.parametrize("opset", [21, 28])
def test_saved_and_loaded_graph_is_the_same(two_convs: Any, tmp_path: Path, external: bool | None, opset: int) -> None:
    graph: Graph = two_convs("int4", "uint4")
    graph.metadata["author"] = "someone"
    big = graph.add_constant("unused", np.zeros(4096, np.int8))  # dropped: nothing needs it
    assert big.name == "unused"
    path = tmp_path / "m.onnx"
    qir.save(graph, path, opset=opset, external_data=external)
    graph.prune()
    again = qir.load(path)
    assert str(again) == str(graph)
    for value in graph.constants:
        np.testing.assert_array_equal(again.value(value.name).array(), value.array())
    kept = sorted(re.sub(r"\.[0-9a-f]{16}\.", ".HASH.", p.name) for p in tmp_path.iterdir())
    assert kept == ["m.onnx"], "no tensor that is needed is large enough for a file of its own"
    verify(again, Stage.INTEGER)


def test_external_data_hold_the_large_tensors(tmp_path: Path) -> None:
    g = Graph("big")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 8, 8)))
    w = g.add_constant("w", np.random.default_rng(0).normal(size=(64, 3, 3, 3)).astype(np.float32))
    g.set_outputs([g.add_node("Conv", [x, w], outputs=["y"]).output])
    qir.save(g, tmp_path / "m.onnx", external_data=True)
    assert (tmp_path / "m.onnx").stat().st_size < 1500 < next(tmp_path.glob("m.onnx.*.data")).stat().st_size
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    np.testing.assert_array_equal(qir.load(tmp_path / "m.onnx").value("w").array(), w.array())


def test_failed_save_leaves_what_was_there(two_convs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")

    def full(self: Any, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        qir.save(two_convs(), path, external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"precious"


def test_save_into_nowhere(two_convs: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its folder does not exist"):
        qir.save(two_convs(), tmp_path / "no" / "m.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        qir.save(two_convs(), tmp_path)


# -- the border -------------------------------------------------------------------------------
def test_integer_border(two_convs: Any, tmp_path: Path) -> None:
    graph: Graph = two_convs()
    before = str(graph)
    bare = strip_border(graph)
    assert str(graph) == before
    verify(bare, Stage.INTEGER)
    assert [str(v.type.dtype) for v in (*bare.inputs, *bare.outputs)] == ["uint8", "uint8"]
    assert [v.name for v in (*bare.inputs, *bare.outputs)] == ["x", "y"]
    assert {n.op for n in bare.nodes} == {"qir.Conv", "qir.Requantize"}
    qir.save(graph, tmp_path / "i.onnx", io="integer")
    model = onnx.load(tmp_path / "i.onnx")
    assert audit(model) == []
    assert "qir.io" in {p.key: p.value for p in model.metadata_props}
    q = Session(graph, "reference").run({"x": X}, outputs=["x.q", "c1"])
    got = Session(tmp_path / "i.onnx", "onnxruntime").run({"x": q["x.q"]})
    np.testing.assert_array_equal(got["y"], q["c1"])


def test_an_input_that_nobody_reads_has_no_border(two_convs: Any) -> None:
    graph: Graph = two_convs()
    graph.add_input("idle", TensorType(DType.FLOAT32, ("N", 2)))
    bare = strip_border(graph)
    assert [str(v.dtype) for v in bare.inputs] == ["uint8", "float32"]
    assert set(json.loads(bare.metadata["qir.io"])) == {"x", "y"}


def test_border_needs_the_integer_stage() -> None:
    g = Graph("float")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 2)))
    g.set_outputs([g.add_node("Relu", [x], outputs=["y"]).output])
    with pytest.raises(StageError, match="stage FLOAT has no integer border"):
        strip_border(g)


def test_an_input_with_two_grids_keeps_its_border(two_convs: Any) -> None:
    g: Graph = two_convs()
    scale, zero = g.add_constant("s2", np.asarray(0.1, np.float32)), g.value("z")
    q = g.add_node("QuantizeLinear", [g.value("x"), scale, zero], outputs=["x.q2"]).output
    g.set_outputs([*g.outputs, q])
    with pytest.raises(LoweringError, match="quantized in two ways"):
        strip_border(g)


def test_audit_sees_floats_and_divisions_inside_functions(two_convs: Any) -> None:
    model = to_onnx(two_convs())
    function = next(f for f in model.functions if f.name == "Conv")
    last = function.node[-1]
    out, last.output[0] = last.output[0], "hidden"
    one = onnx.helper.make_node("Constant", [], ["one"], value_int=1)
    narrow = onnx.helper.make_node("Cast", ["one"], ["one32"], to=onnx.TensorProto.INT32)
    function.node.extend([one, narrow, onnx.helper.make_node("Div", ["hidden", "one32"], [out])])
    assert any("Div" in line and "forbidden" in line for line in audit(model))
    model = to_onnx(two_convs())
    model.graph.initializer.append(onnx.helper.make_tensor("stray", onnx.TensorProto.FLOAT, [1], [1.0]))
    assert audit(model) == ["constant 'stray' is in float"]


def test_a_foreign_function_body_is_noticed(two_convs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A function under our name that computes something else: our executors would disagree with the file's."""
    model = to_onnx(two_convs())
    qir.load(model)
    assert not caplog.records
    requantize = next(f for f in model.functions if f.name == "Requantize")
    next(n for n in requantize.node if n.op_type == "Mul").op_type = "Add"
    qir.load(model)
    assert "'Requantize'" in caplog.text and "not written as" in caplog.text
