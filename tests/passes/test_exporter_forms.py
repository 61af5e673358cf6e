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
from qir.runtime.compare import decibel
from qir.runtime.exactness import exactness


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


FORMS: dict[str, tuple[int, Callable[[Writer], str]]] = {
    "PRelu, a slope for each element": (13, prelu),
    "Clip, min above max": (13, crossed_clip),
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
    noise = np.asarray(want, np.float64) - got
    assert decibel(float((np.asarray(want, np.float64) ** 2).sum()), float((noise**2).sum())) > 25
    assert exactness(integer, {"x": x[:2]}).exact
