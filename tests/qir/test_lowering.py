"""LowerToDyadic on whole QDQ graphs: the border, names, what it refuses and what it widens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType
from qir.errors import LoweringError, QirError, QuantizationError, StageError
from qir.passes import LowerToDyadic
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness
from qir.types import Array
from qir.verify import is_integer_only, verify

X = QuantParams.make(0.02, 128, DType.UINT8)
Y = QuantParams.make(0.05, 3, DType.UINT8)
WIDE = QuantParams.make(0.001, 0, DType.INT16)
RNG = np.random.default_rng(40)


class Maker:
    """A QDQ graph under construction."""

    def __init__(self, *shape: int | str) -> None:
        self.graph = Graph("g", Stage.QDQ)
        self.x = self.graph.add_input("x", TensorType(DType.FLOAT32, shape))

    def pair(self, value: Any, q: QuantParams, name: str) -> Any:
        numbers = self.numbers(q, name)
        ints = self.graph.add_node("QuantizeLinear", [value, *numbers], outputs=[f"{name}.ints"]).output
        return self.graph.add_node("DequantizeLinear", [ints, *numbers], outputs=[f"{name}.back"]).output

    def numbers(self, q: QuantParams, name: str) -> list[Any]:
        scale = np.asarray(q.scale if q.per_channel else q.scale[0], np.float32)
        zero = np.asarray(q.zero_point if q.per_channel else q.zero_point[0], q.dtype.numpy)
        return [self.graph.add_constant(f"{name}.s", scale), self.graph.add_constant(f"{name}.z", zero, q.dtype)]

    def weights(self, data: Array, q: QuantParams) -> Any:
        ints = self.graph.add_constant("w.q", q.quantize(data), q.dtype)
        axis = {"axis": q.axis} if q.axis is not None else {}
        return self.graph.add_node("DequantizeLinear", [ints, *self.numbers(q, "w")], axis).output

    def op(self, name: str, *inputs: Any, output: str = "y", **attrs: Any) -> Any:
        return self.graph.add_node(name, inputs, attrs, outputs=[output]).output

    def lowered(self, *outputs: Any) -> Graph:
        self.graph.set_outputs(outputs)
        before = str(self.graph)
        integer, _ = LowerToDyadic().apply(self.graph)
        assert str(self.graph) == before
        return integer


def conv(bias: Array | None = None, q: QuantParams | None = None) -> tuple[Maker, Any]:
    m = Maker("N", 3, 6, 6)
    w = m.weights(RNG.normal(size=(4, 3, 3, 3)) * 0.3, q or QuantParams.make(0.01, 0, DType.INT8))
    extra = [] if bias is None else [m.graph.add_constant("b", bias.astype(np.float32))]
    return m, m.op("Conv", m.pair(m.x, X, "x"), w, *extra)


def check(m: Maker, integer: Graph, q: QuantParams, steps: float = 1) -> None:
    verify(integer, Stage.INTEGER)
    assert is_integer_only(integer) == []
    feeds = {"x": RNG.normal(size=(3, *(int(d) for d in m.x.shape[1:]))).astype(np.float32)}
    assert exactness(integer, feeds).exact
    (name,) = (v.name for v in m.graph.outputs)
    a, b = (
        Session(integer, "reference").run(feeds)[integer.outputs[0].name],
        Session(m.graph, "reference").run(feeds)[name],
    )
    assert np.abs(a - b).max() <= (steps + 1e-3) * q.scale[0]


def test_border_and_names() -> None:
    m, y = conv(RNG.normal(size=4))
    integer = m.lowered(m.pair(y, Y, "y"))
    assert [v.name for v in integer.inputs] == ["x"] and [v.name for v in integer.outputs] == ["y.back"]
    assert integer.value("x.q").quant == X and integer.value("y").quant is not None
    assert integer.value("y").quant == Y and integer.value("y.acc").dtype is DType.INT32
    assert [n.op for n in integer.nodes] == ["QuantizeLinear", "qir.Conv", "qir.Requantize", "DequantizeLinear"]
    check(m, integer, Y)


def test_an_activation_is_fused_into_the_limits() -> None:
    m, y = conv()
    ends = [m.graph.add_constant("c", np.asarray(v, np.float32)) for v in (0.0, 1.0)]
    integer = m.lowered(m.pair(m.op("Clip", y, *ends, output="clipped"), Y, "y"))
    (node,) = (n for n in integer.nodes if n.op == "qir.Requantize")
    assert (node.attrs["lo"], node.attrs["hi"]) == (3, 23)
    check(m, integer, Y)


def test_sixteen_bit_stream_narrowed_for_a_layer() -> None:
    m, y = conv()
    wide = m.pair(y, WIDE, "wide")
    narrow = m.pair(wide, Y, "narrow")
    total = m.op("Add", wide, narrow, output="total")
    integer = m.lowered(m.pair(total, WIDE, "end"))
    assert [n.op for n in integer.nodes].count("qir.Requantize") == 2
    check(m, integer, WIDE, steps=60)  # a step of the narrow grid is fifty of the wide one


def test_a_bias_that_does_not_fit_widens_the_scale() -> None:
    m, y = conv(np.asarray([0.0, 1.0, -2.0, 3e5]), QuantParams.make([1e-7] * 4, [0] * 4, DType.INT8, 0))
    far = QuantParams.make(3000.0, 0, DType.UINT8)
    m.graph.set_outputs([m.pair(y, far, "y")])
    integer, report = LowerToDyadic().apply(m.graph)
    assert any("wide" in note for note in report.passes[0].notes)
    check(m, integer, far)


def test_refusals_name_the_place() -> None:
    m = Maker("N", 3, 6, 6)
    w = m.weights(RNG.normal(size=(4, 3, 3, 3)), QuantParams.make(0.01, 0, DType.INT8))
    with pytest.raises(LoweringError, match="not quantized") as caught:
        m.lowered(m.pair(m.op("Conv", m.x, w), Y, "y"))
    assert "Conv" in str(caught.value) and "QuantizeLinear" in (caught.value.hint or "")
    m = Maker("N", 3)
    with pytest.raises(QirError, match="Sigmoid"):
        m.lowered(m.op("Sigmoid", m.x))
    m, y = conv()
    with pytest.raises(QuantizationError, match=r"2\^29"):
        m.lowered(m.pair(y, QuantParams.make(1e-14, 0, DType.UINT8), "y"))
    floating = Graph("f")
    floating.set_outputs([floating.add_node("Relu", [floating.add_input("x", TensorType(DType.FLOAT32, (2,)))]).output])
    with pytest.raises(StageError):
        LowerToDyadic().apply(floating)
