"""Broken, hostile and mistaken input: each case with its error class and message.

Whatever happens, nothing is written, and a graph that was handed in is what it was before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir import passes
from qir.errors import (
    BackendError,
    DataError,
    GraphError,
    LoweringError,
    ModelError,
    OverflowProofError,
    ParseError,
    QirError,
    QuantizationError,
    StageError,
    TypeInferenceError,
    UnsupportedError,
    VerifyError,
)
from qir.graph import Graph, Stage
from qir.runtime import Session
from qir.types import DType, QuantParams, TensorType
from qir.verify import verify

node = helper.make_node


@dataclass
class Case:
    """run: given a folder (already filled) and a float graph, does what must fail."""

    name: str
    error: type[QirError]
    message: str
    run: Callable[[Path, Graph], object]

    def __str__(self) -> str:
        return self.name


CASES: list[Case] = []


def case(error: type[QirError], message: str) -> Callable[[Callable[[Path, Graph], object]], None]:
    """Register a case; its name is the function's."""

    def enter(run: Callable[[Path, Graph], object]) -> None:
        CASES.append(Case(run.__name__, error, message, run))

    return enter


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[Any] = ("N", 3, 8, 8),
    constants: dict[str, Any] | None = None,
    *,
    opset: int = 13,
    elem: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", elem, list(shape))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def conv(w: Any, **attrs: Any) -> onnx.ModelProto:
    return model([node("Conv", ["x", "w"], ["y"], name="conv", **attrs)], constants={"w": w})


W = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
GOOD = conv(W)


# -- files ------------------------------------------------------------------------------------
@case(ModelError, "cannot be read: No such file or directory")
def missing_file(folder: Path, graph: Graph) -> object:
    return qir.load(folder / "nothing.onnx")


@case(ModelError, "cannot be read: Is a directory")
def folder_for_a_file(folder: Path, graph: Graph) -> object:
    return qir.load(folder)


@case(ModelError, "is empty")
def empty_file(folder: Path, graph: Graph) -> object:
    return qir.load(folder / "empty.onnx")


@case(ModelError, "model: is empty")
def empty_bytes(folder: Path, graph: Graph) -> object:
    return qir.load(b"")


@case(ModelError, "is not an ONNX protobuf .is the file complete")
def text_file(folder: Path, graph: Graph) -> object:
    return qir.load(folder / "text.onnx")


@case(ModelError, "is not an ONNX protobuf")
def truncated_file(folder: Path, graph: Graph) -> object:
    return qir.load(folder / "truncated.onnx")


@case(ModelError, "is not an ONNX protobuf")
def random_bytes(folder: Path, graph: Graph) -> object:
    return qir.load(np.random.default_rng(9).bytes(5000))


@case(ModelError, "holds no graph .is it an ONNX file")
def model_without_a_graph(folder: Path, graph: Graph) -> object:
    return qir.load(onnx.ModelProto())


@case(ModelError, "has no outputs")
def no_outputs(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"])], outputs=()))


@case(ModelError, "imports no standard opset")
def no_opset(folder: Path, graph: Graph) -> object:
    m = model([node("Relu", ["x"], ["y"])])
    del m.opset_import[:]
    return qir.load(m)


@case(UnsupportedError, "opset 6 is older than 7 .convert it with onnx.version_converter")
def opset_too_old(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"])], opset=6))


@case(UnsupportedError, "opset 99 is newer than 28")
def opset_too_new(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"])], opset=99))


# -- structure --------------------------------------------------------------------------------
@case(ModelError, "Relu node 'a': is part of a cycle")
def cycle(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"])], outputs=("b",)))


@case(ModelError, "Relu node 'y': input 'nowhere' is not defined anywhere")
def missing_input(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["nowhere"], ["y"])]))


@case(ModelError, "tensor 'y' is defined twice")
def tensor_defined_twice(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])]))


@case(ModelError, "tensor 'x' is defined twice")
def node_writes_an_input(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["y"], ["x"]), node("Relu", ["x"], ["y"])]))


@case(ModelError, "initializer 'w': is defined twice")
def initializer_defined_twice(folder: Path, graph: Graph) -> object:
    m = conv(W)
    m.graph.initializer.append(m.graph.initializer[0])
    return qir.load(m)


@case(ModelError, "input 'x': is defined twice")
def input_defined_twice(folder: Path, graph: Graph) -> object:
    m = conv(W)
    m.graph.input.append(m.graph.input[0])
    return qir.load(m)


@case(ModelError, "output 'z': is not computed by any node")
def output_from_nowhere(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"])], outputs=("z",)))


@case(ModelError, "has no operator")
def node_without_operator(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("", ["x"], ["y"])]))


@case(ModelError, "has 0 inputs, x expected")
def too_few_inputs(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", [], ["y"])]))


@case(ModelError, "has 2 inputs, x expected")
def too_many_inputs(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x", "x"], ["y"])]))


@case(UnsupportedError, "Relux node 'y': operator 'Relux' is not supported .did you mean Relu")
def unknown_operator(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relux", ["x"], ["y"])]))


@case(UnsupportedError, "operator 'Relu' of domain 'evil.corp' is not supported")
def unknown_domain(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"], domain="evil.corp")]))


@case(UnsupportedError, "operator 'qir.Backdoor' is not supported")
def unknown_function_of_ours(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Backdoor", ["x"], ["y"], domain="qir")]))


@case(UnsupportedError, "If node 'y': control flow .a subgraph. is not supported")
def if_node(folder: Path, graph: Graph) -> object:
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info("x", 1, None)])
    return qir.load(model([node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)]))


@case(UnsupportedError, "Loop node 'y': control flow")
def loop_node(folder: Path, graph: Graph) -> object:
    body = helper.make_graph([], "b", [], [])
    return qir.load(model([node("Loop", ["x", "x", "x"], ["y"], body=body)]))


@case(UnsupportedError, "sparse initializers are not supported")
def sparse_initializer(folder: Path, graph: Graph) -> object:
    m = conv(W)
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    m.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return qir.load(m)


@case(ModelError, "its local functions cannot be inlined")
def function_that_calls_itself(folder: Path, graph: Graph) -> object:
    m = model([node("F", ["x"], ["y"], domain="pkg")])
    m.opset_import.append(helper.make_opsetid("pkg", 1))
    inner = node("F", ["a"], ["b"], domain="pkg")
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("pkg", 1)]
    m.functions.append(helper.make_function("pkg", "F", ["a"], ["b"], [inner], opsets))
    return qir.load(m)


# -- dtypes -----------------------------------------------------------------------------------
@case(UnsupportedError, "input 'x': element type STRING is not supported")
def string_input(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Identity", ["x"], ["y"])], elem=TensorProto.STRING))


@case(UnsupportedError, "element type COMPLEX64 is not supported")
def complex_input(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Identity", ["x"], ["y"])], elem=TensorProto.COMPLEX64))


@case(UnsupportedError, "initializer 'w': element type FLOAT8E4M3FN is not supported")
def float8_weights(folder: Path, graph: Graph) -> object:
    m = conv(W)
    m.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [1], [1.0]))
    return qir.load(m)


@case(UnsupportedError, "input 'x': is not a tensor")
def sequence_input(folder: Path, graph: Graph) -> object:
    m = model([node("Identity", ["x"], ["y"])])
    m.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["N", 2]))
    return qir.load(m)


@case(UnsupportedError, "element type STRING is not supported")
def cast_to_string(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Cast", ["x"], ["y"], to=TensorProto.STRING)]))


# -- tensors ----------------------------------------------------------------------------------
def with_weights(change: Callable[[onnx.TensorProto], None]) -> onnx.ModelProto:
    m = conv(W)
    change(m.graph.initializer[0])
    return m


@case(ModelError, r"initializer 'w': shape \[4, 3, 3, 3\] needs 432 bytes, 431 given")
def raw_data_too_short(folder: Path, graph: Graph) -> object:
    return qir.load(with_weights(lambda t: setattr(t, "raw_data", t.raw_data[:-1])))


@case(ModelError, r"shape \[4, 3, 3, 3\] needs 108 elements, 3 given")
def typed_data_too_short(folder: Path, graph: Graph) -> object:
    def change(t: onnx.TensorProto) -> None:
        t.ClearField("raw_data")
        t.float_data.extend([1.0, 2.0, 3.0])

    return qir.load(with_weights(change))


@case(ModelError, "initializer 'w': has a negative size")
def negative_size(folder: Path, graph: Graph) -> object:
    return qir.load(with_weights(lambda t: t.dims.__setitem__(0, -4)))


@case(ModelError, "needs 474990356532456 bytes, 432 given")
def huge_shape(folder: Path, graph: Graph) -> object:
    return qir.load(with_weights(lambda t: t.dims.__setitem__(0, 2**42 + 12345678)))


@case(ModelError, "tensor 'w': holds NaN")
def nan_weights(folder: Path, graph: Graph) -> object:
    return qir.load(conv(np.where(W > 2, np.nan, W).astype(np.float32)))


@case(ModelError, "Conv node 'conv': weights 'w' are not finite")
def infinite_weights(folder: Path, graph: Graph) -> object:
    return qir.load(conv(np.where(W > 2, np.inf, W).astype(np.float32)))


def external(folder: Path, **entries: str) -> object:
    def change(t: onnx.TensorProto) -> None:
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            t.external_data.add(key=key, value=value)

    path = folder / "models" / "external.onnx"
    return qir.load(path) if not entries else qir.load(_written(path, with_weights(change)))


def _written(path: Path, m: onnx.ModelProto) -> Path:
    """Overwrite the placeholder that the fixture made, so that no new file appears."""
    path.write_bytes(m.SerializeToString())
    return path


@case(ModelError, "external data at '/etc/passwd' is outside the model's folder")
def external_absolute(folder: Path, graph: Graph) -> object:
    return external(folder, location="/etc/passwd")


@case(ModelError, r"external data at '\.\./secret.bin' is outside the model's folder")
def external_above(folder: Path, graph: Graph) -> object:
    return external(folder, location="../secret.bin")


@case(ModelError, r"external data at 'a/\.\./\.\./secret.bin' is outside")
def external_above_by_a_detour(folder: Path, graph: Graph) -> object:
    return external(folder, location="a/../../secret.bin")


@case(ModelError, r"external data at 'C:\\\\secret.bin' is outside")
def external_on_a_drive(folder: Path, graph: Graph) -> object:
    return external(folder, location="C:\\secret.bin")


@case(ModelError, "external data at 'link.bin' is a link out of the model's folder")
def external_through_a_link(folder: Path, graph: Graph) -> object:
    return external(folder, location="link.bin")


@case(ModelError, "external data file 'nothing.bin' does not exist")
def external_missing(folder: Path, graph: Graph) -> object:
    return external(folder, location="nothing.bin")


@case(ModelError, "is outside the model's folder")
def external_without_a_place(folder: Path, graph: Graph) -> object:
    return external(folder, location="")


@case(ModelError, "needs 432 bytes, but 432 at 0 of a file of 100 are given")
def external_too_short(folder: Path, graph: Graph) -> object:
    return external(folder, location="short.bin")


@case(ModelError, "needs 432 bytes, but 10 at 0 of a file of 100")
def external_wrong_length(folder: Path, graph: Graph) -> object:
    return external(folder, location="short.bin", length="10")


@case(ModelError, "needs 432 bytes, but 432 at -8 of a file")
def external_negative_offset(folder: Path, graph: Graph) -> object:
    return external(folder, location="short.bin", offset="-8")


@case(ModelError, "offset or length is not a number")
def external_offset_is_a_word(folder: Path, graph: Graph) -> object:
    return external(folder, location="short.bin", offset="many")


# -- operators --------------------------------------------------------------------------------
@case(TypeInferenceError, r"Conv node 'conv': .*need the same rank")
def weights_of_wrong_rank(folder: Path, graph: Graph) -> object:
    return qir.load(conv(W[0]))


@case(TypeInferenceError, "Conv node 'conv': .*group 2 do not fit")
def group_that_does_not_fit(folder: Path, graph: Graph) -> object:
    return qir.load(conv(W, group=2))


@case(TypeInferenceError, "a window of 3 .dilation 9. does not fit into 8")
def window_larger_than_the_image(folder: Path, graph: Graph) -> object:
    return qir.load(conv(W, dilations=[9, 9]))


@case(UnsupportedError, "Conv node 'conv': unknown attribute 'colour'")
def unknown_attribute(folder: Path, graph: Graph) -> object:
    return qir.load(conv(W, colour=1))


@case(QirError, "Conv node 'conv'")
def attribute_of_a_wrong_kind(folder: Path, graph: Graph) -> object:
    return qir.load(conv(W, strides="two"))


@case(UnsupportedError, "attribute 'axis' is missing")
def attribute_missing(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Concat", ["x", "x"], ["y"])]))


@case(TypeInferenceError, "Reshape node 'y'")
def impossible_reshape(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Reshape", ["x", "s"], ["y"])], (2, 3), {"s": np.asarray([4, 5])}))


@case(UnsupportedError, "the mask of a Dropout is used")
def dropout_in_training(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Dropout", ["x"], ["d", "m"]), node("Cast", ["m"], ["y"], to=1)]))


@case(ModelError, r"its open sizes cannot stay open: MatMul node .* --input-shape x:Nx3x...x8")
def open_size(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("MatMul", ["x", "x"], ["y"])], ("N", 3, "h", 8)))


@case(ModelError, "input 'x': has a negative size")
def negative_input_size(folder: Path, graph: Graph) -> object:
    return qir.load(model([node("Relu", ["x"], ["y"])], ("N", 3, -7, 8)))


@case(ModelError, "is no input of the model .inputs are x")
def shape_for_an_unknown_input(folder: Path, graph: Graph) -> object:
    return qir.load(GOOD, input_shapes={"image": [1, 3, 8, 8]})


# -- quantized files --------------------------------------------------------------------------
def with_metadata(text: str) -> onnx.ModelProto:
    m = conv(W)
    helper.set_model_props(m, {"qir": text})
    return m


@case(ModelError, "metadata 'qir': cannot be read")
def metadata_is_no_json(folder: Path, graph: Graph) -> object:
    return qir.load(with_metadata("{"))


@case(ModelError, "metadata version 7 is not 1")
def metadata_of_the_future(folder: Path, graph: Graph) -> object:
    return qir.load(with_metadata('{"version": 7}'))


@case(ModelError, "metadata 'qir': cannot be read: scale -1.0 is not a positive")
def metadata_with_an_impossible_scale(folder: Path, graph: Graph) -> object:
    quant = '{"x": {"scale": [-1], "zero_point": 0, "dtype": "int8"}}'
    return qir.load(with_metadata(f'{{"version": 1, "stage": "float", "quant": {quant}}}'))


def qdq(scale: float) -> Graph:
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    return qir.load(model(nodes, ("N", 2), {"s": np.float32(scale), "z": np.uint8(0)}))


@case(VerifyError, "QuantizeLinear node 'q': scale is not positive and finite")
def zero_scale(folder: Path, graph: Graph) -> object:
    return verify(qdq(0.0))


@case(VerifyError, "scale is not positive and finite")
def negative_scale(folder: Path, graph: Graph) -> object:
    return verify(qdq(-0.5))


@case(QuantizationError, "scale nan is not a positive finite number")
def nan_scale(folder: Path, graph: Graph) -> object:
    return QuantParams.make(float("nan"))


@case(QuantizationError, "zero point 300 is outside uint8")
def zero_point_outside(folder: Path, graph: Graph) -> object:
    return QuantParams.make(0.1, 300, DType.UINT8)


@case(OverflowProofError, "an accumulator left int32")
def accumulator_that_overflows(folder: Path, graph: Graph) -> object:
    g = Graph("g", Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.UINT8, (1, 1, 1, 1)))
    w, b = (
        g.add_constant("w", np.full((1, 1, 1, 1), 127, np.int8)),
        g.add_constant("b", np.asarray([2**31 - 5], np.int32)),
    )
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "pad_value": [0]}
    g.set_outputs([g.add_node("qir.Conv", [x, w, b], attrs, outputs=["acc"]).output])
    from qir.runtime.reference import Reference

    return Reference(g).run({"x": np.full((1, 1, 1, 1), 255, np.uint8)})


@case(VerifyError, "channel 0 can reach 0..2147516028 .invariant: accumulators cannot overflow")
def session_of_a_graph_that_can_overflow(folder: Path, graph: Graph) -> object:
    g = Graph("g", Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.UINT8, (1, 1, 1, 1)))
    w = g.add_constant("w", np.full((1, 1, 1, 1), 127, np.int8))
    b = g.add_constant("b", np.asarray([2**31 - 5], np.int32))
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "pad_value": [0]}
    g.set_outputs([g.add_node("qir.Conv", [x, w, b], attrs, outputs=["acc"]).output])
    return Session(g)


# -- graphs, passes, sessions -----------------------------------------------------------------
@case(GraphError, "output 'h' is still used")
def removing_a_node_in_use(folder: Path, graph: Graph) -> object:
    return graph.remove_node(graph.nodes[0])


@case(GraphError, "belongs to another graph")
def value_of_another_graph(folder: Path, graph: Graph) -> object:
    return graph.add_node("Relu", [graph.clone().inputs[0]])


@case(ParseError, "line 1: 'graph' expected")
def text_that_is_no_graph(folder: Path, graph: Graph) -> object:
    return Graph.parse("hello")


@case(BackendError, "no backend 'abacus' .there are reference")
def unknown_backend(folder: Path, graph: Graph) -> object:
    return Session(graph, "abacus")


@case(DataError, "input 'x': is missing")
def feed_missing(folder: Path, graph: Graph) -> object:
    return Session(graph, "reference").run({})


@case(DataError, r"float32\['N', 3, 8, 8\] expected, int64")
def feed_of_a_wrong_dtype(folder: Path, graph: Graph) -> object:
    return Session(graph, "reference").run({"x": np.zeros((1, 3, 8, 8), np.int64)})


@case(DataError, r"but \[1, 3, 9, 8\] given")
def feed_of_a_wrong_shape(folder: Path, graph: Graph) -> object:
    return Session(graph, "reference").run({"x": np.zeros((1, 3, 9, 8), np.float32)})


@case(DataError, "input 'x': holds NaN")
def feed_with_nan(folder: Path, graph: Graph) -> object:
    return Session(graph, "reference").run({"x": np.full((1, 3, 8, 8), np.nan, np.float32)})


@case(ModelError, "its folder does not exist")
def save_into_nowhere(folder: Path, graph: Graph) -> object:
    return qir.save(graph, folder / "no" / "m.onnx")


@case(UnsupportedError, "cannot export to opset 12")
def save_in_an_old_opset(folder: Path, graph: Graph) -> object:
    return qir.save(graph, folder / "m.onnx", opset=12)


@case(StageError, "stage FLOAT has no integer border")
def strip_the_border_of_a_float_graph(folder: Path, graph: Graph) -> object:
    return qir.save(graph, folder / "m.onnx", io="integer")


@case(LoweringError, "has no integer form")
def lowering_of_an_operator_without_integer_form(folder: Path, graph: Graph) -> object:
    from qir.lowering import Lowering
    from qir.ops import op_of

    g = Graph("g")
    x = g.add_input("x", TensorType(DType.INT64, (2,)))
    shape = g.add_node("ConstantOfShape", [x], types=[TensorType(DType.FLOAT32, (2, 2))])
    return op_of("ConstantOfShape").to_integer(Lowering(g, Graph("i")), shape)


# -- calibration data -------------------------------------------------------------------------
def prepared(source: Any, graph: Graph) -> object:
    from qir.passes.calibration import data

    return list(data.batches(source, graph))


@case(DataError, "no samples")
def calibration_data_are_empty(folder: Path, graph: Graph) -> object:
    return prepared(np.zeros((0, 3, 8, 8), np.float32), graph)


@case(DataError, "no calibration data")
def calibration_without_batches(folder: Path, graph: Graph) -> object:
    return passes.calibrate(graph, [])


@case(DataError, "expected")
def calibration_data_of_a_wrong_shape(folder: Path, graph: Graph) -> object:
    return prepared(np.zeros((4, 3, 9, 9), np.float32), graph)


@case(DataError, "NaN")
def calibration_data_with_nan(folder: Path, graph: Graph) -> object:
    return prepared(np.full((4, 3, 8, 8), np.nan, np.float32), graph)


@case(DataError, "is missing")
def calibration_file_names_another_input(folder: Path, graph: Graph) -> object:
    return prepared(folder / "other.npz", graph)


@case(DataError, "different numbers of samples|is no input")
def calibration_file_is_ragged(folder: Path, graph: Graph) -> object:
    return prepared(folder / "ragged.npz", graph)


@case(DataError, "no such file or folder")
def calibration_file_is_missing(folder: Path, graph: Graph) -> object:
    return prepared(folder / "nothing.npy", graph)


@case(DataError, "holds no images")
def calibration_folder_without_images(folder: Path, graph: Graph) -> object:
    return prepared(folder / "models", graph)


@case(DataError, "cannot be read|is no|not a")
def calibration_file_is_text(folder: Path, graph: Graph) -> object:
    return prepared(folder / "text.npy", graph)


# -- the test ---------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = GOOD.SerializeToString()
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("This is not a model, it is a text about models.\n")
    (tmp_path / "text.npy").write_text("neither is this an array\n")
    (tmp_path / "truncated.onnx").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "secret.bin").write_bytes(b"\0" * 432)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "external.onnx").write_bytes(raw)
    (tmp_path / "models" / "short.bin").write_bytes(b"\0" * 100)
    os.symlink(tmp_path / "secret.bin", tmp_path / "models" / "link.bin")
    np.savez(tmp_path / "other.npz", image=np.zeros((2, 3, 8, 8), np.float32), label=np.zeros(2, np.int64))
    np.savez(tmp_path / "ragged.npz", x=np.zeros((2, 3, 8, 8), np.float32), z=np.zeros((3, 2), np.float32))
    return tmp_path


@pytest.fixture
def graph() -> Graph:
    g = Graph("float")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 8, 8)))
    h = g.add_node("Conv", [x, g.add_constant("w", W)], outputs=["h"]).output
    g.set_outputs([g.add_node("Relu", [h], outputs=["y"]).output])
    return g


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fails_with_its_error_and_changes_nothing(case: Case, folder: Path, graph: Graph) -> None:
    files, text = listing(folder), str(graph)
    with pytest.raises(case.error, match=case.message) as caught:
        case.run(folder, graph)
    assert "\n" not in str(caught.value)  # one line, fit for a command line
    assert listing(folder) == files
    assert str(graph) == text
    verify(graph, Stage.FLOAT)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 80
    assert len({c.name for c in CASES}) == len(CASES)


def test_the_model_that_the_broken_ones_are_made_of_is_good(folder: Path) -> None:
    verify(qir.load(folder / "models" / "external.onnx"), Stage.FLOAT)


def test_no_single_flipped_byte_escapes_as_anything_but_our_error() -> None:
    """Damage anywhere in a small model either loads or is one of our errors (seed printed on failure)."""
    raw = bytearray(model([node("Relu", ["x"], ["h"]), node("Add", ["h", "c"], ["y"])], constants={
        "c": np.ones((3, 1, 1), np.float32)}).SerializeToString())  # fmt: skip
    rng = np.random.default_rng(20)
    for position in rng.permutation(len(raw)):
        damaged = bytearray(raw)
        damaged[position] ^= int(rng.integers(1, 256))
        try:
            qir.load(bytes(damaged))
        except QirError:
            continue
        except Exception as error:
            pytest.fail(f"byte {position} as {damaged[position]}: {type(error).__name__}: {error}")
