"""What exporters write in uncommon ways: the whole way from the ONNX file to integers, close to onnxruntime's float."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir.runtime import Session
from qir.runtime.measure.compare import decibel
from qir.runtime.measure.exactness import exactness


@dataclass
class Writer:
    """Nodes and constants of a model, in the order in which they are written."""

    opset: int
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, array: Any) -> str:
        data = np.asarray(array)
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        self.constants.append(numpy_helper.from_array(data, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def op(self, op: str, *inputs: Any, **attrs: Any) -> str:
        names = ["" if i is None else i if isinstance(i, str) else self.const(i) for i in inputs]
        self.nodes.append(helper.make_node(op, names, [f"{op}{len(self.nodes)}"], **attrs))
        return self.nodes[-1].output[0]

    def conv(self, x: str, c_in: int, c_out: int) -> str:
        w = self.rng.normal(size=(c_out, c_in, 3, 3)) / (3 * c_in**0.5)
        return self.op("Conv", x, w, self.rng.normal(size=c_out) * 0.1, pads=[1, 1, 1, 1])

    def model(self, output: str, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
        """x: float [N, 5, 9, 7]."""
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5, 9, 7])],
            [helper.make_tensor_value_info(output, kind, None)], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def prelu(w: Writer) -> str:
    """Keras' PReLU has a slope for each element, unless it is told to share them."""
    return w.conv(w.op("PRelu", w.conv("x", 5, 4), w.rng.uniform(-0.3, 0.8, (4, 9, 7))), 4, 3)


def crossed_clip(w: Writer) -> str:
    """min above max: everything becomes max."""
    x = w.conv("x", 5, 4)
    return w.op("Add", x, w.op("Clip", x, np.float32(0.5), np.float32(0.1)))


def class_token(w: Writer) -> str:
    """A vision transformer's token: a constant, expanded to the batch that a Shape says, joined to the patches."""
    patches = w.op("Transpose", w.op("Reshape", w.conv("x", 5, 4), np.asarray([0, 4, 63])), perm=[0, 2, 1])
    batch = w.op("Slice", w.op("Shape", patches), np.asarray([0]), np.asarray([1]))
    token = w.op("Expand", w.rng.normal(size=(1, 1, 4)), w.op("Concat", batch, np.asarray([1, 4]), axis=0))
    return w.op("MatMul", w.op("Concat", token, patches, axis=1), w.rng.normal(size=(4, 3)))


def scalar(w: Writer) -> str:
    """A mean that leaves no axis."""
    return w.op(
        "ReduceMean", w.op("Slice", w.op("Relu", w.conv("x", 5, 4)), np.asarray([0]), np.asarray([1])), keepdims=0
    )


def classes_as_floats(w: Writer) -> str:
    return w.op("Cast", w.op("ArgMax", w.conv("x", 5, 4), axis=1), to=TensorProto.FLOAT)


FORMS: dict[str, tuple[int, Callable[[Writer], str]]] = {
    "PRelu, a slope for each element": (13, prelu),
    "Clip, min above max": (13, crossed_clip),
    "Expand of a constant to the batch": (13, class_token),
    "ReduceMean to a scalar": (13, scalar),
    "Cast of an ArgMax to float": (13, classes_as_floats),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read_and_quantized(form: str) -> None:
    opset, write = FORMS[form]
    writer = Writer(opset, np.random.default_rng(7))
    model = writer.model(write(writer))
    x = np.random.default_rng(8).normal(size=(24, 5, 9, 7)).astype(np.float32)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    want: Any = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x[:2]})[0]
    graph = qir.load(model)
    name = graph.outputs[0].name
    read = Session(graph, "reference").run({"x": x[:2]})[name]
    np.testing.assert_allclose(read, want, atol=1e-4, rtol=1e-4)
    integer, _ = qir.quantize(graph, x)
    got = Session(integer, "reference").run({"x": x[:2]})[name]
    assert got.dtype == want.dtype and got.shape == want.shape
    sums = [n for n in integer.nodes if n.op in ("qir.Add", "qir.Mul")]
    assert all(v is not None and v.type.rank == n.output.type.rank for n in sums for v in n.inputs)
    if form == "Cast of an ArgMax to float":
        assert (want == got).mean() > 0.95 and set(got.reshape(-1)) <= {0.0, 1.0, 2.0, 3.0}
        return
    noise = np.asarray(want, np.float64) - got
    assert decibel(float((np.asarray(want, np.float64) ** 2).sum()), float((noise**2).sum())) > 25
    assert exactness(integer, {"x": x[:2]}).exact


@pytest.mark.parametrize(("kind", "lo", "hi"), [(np.uint8, 0, 256), (np.int8, -128, 128), (np.int64, -900, 900)])
def test_a_model_that_takes_integers_gets_them_exactly(kind: Any, lo: int, hi: int) -> None:
    """Cast(x) / 255 ...: the first tensor is x itself at scale 1, whatever part of its values calibration saw."""
    writer = Writer(13, np.random.default_rng(7))
    real = writer.op("Cast", "x", to=TensorProto.FLOAT)
    model = writer.model(
        writer.conv(writer.op("Mul", writer.op("Sub", real, np.float32(3)), np.float32(1 / 255)), 5, 4)
    )
    model.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x = np.random.default_rng(8).integers(lo, hi, size=(24, 5, 9, 7)).astype(kind)
    want: Any = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x[:2]})[0]
    integer, _ = qir.quantize(model, np.maximum(x, x.min() + 10))
    if kind is not np.int64:
        grid = next(n.output.quant for n in integer.nodes if n.op == "Cast")
        assert grid is not None and grid.scale == (1.0,)
    got = Session(integer, "reference").run({"x": x[:2]})[integer.outputs[0].name]
    assert decibel(float((want**2).sum()), float(((want - got) ** 2).sum())) > 35
    assert exactness(integer, {"x": x[:2]}).exact
