"""Text and parser: the text of a graph, parsed, has that text again; errors name the line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.errors import ParseError
from qir.graph import Graph, Stage
from qir.runtime import Session
from qir.text import elided, format_node
from qir.types import DType, QuantParams, TensorType
from qir.verify import verify

FLOAT = """graph "net" stage=FLOAT {
  metadata "author" = "an \\"author\\""
  input %x: float32[N,3,8,8]
  input %"a b": float32[2*N,3]
  const %w: float32[4,3,3,3] = ...
  const %b: float32[4] = [0.5, -1.0, Infinity, 1e-30]
  %input:0: float32[N,4,4,4] = Conv(%x, %w, %b) {pads=[1, 1, 1, 1], strides=[2, 2]} "conv one"
  %y: float32[N,4,4,4] = Relu(%input:0)
  return %y, %"a b"
}
"""


def constants() -> dict[str, Any]:
    return {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)}


def test_text_is_a_fixed_point() -> None:
    graph = Graph.parse(FLOAT, constants())
    text = str(graph)
    assert text == FLOAT.replace("1e-30", repr(float(np.float32(1e-30))))
    again = Graph.parse(text, elided(graph))
    assert str(again) == text
    verify(again, Stage.FLOAT)
    assert again.nodes[0].name == "conv one"


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("activations", ["uint8", "uint4"])
def test_integer_graphs_round_trip_with_their_meaning(two_convs: Any, weights: str, activations: str) -> None:
    graph: Graph = two_convs(weights, activations)
    again = Graph.parse(str(graph), elided(graph))
    assert str(again) == str(graph)
    assert [(v.name, v.type) for v in again.values] == [(v.name, v.type) for v in graph.values]
    x = np.random.default_rng(1).normal(0, 3, (1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        Session(again, "reference").run({"x": x})["y"], Session(graph, "reference").run({"x": x})["y"]
    )


def test_per_channel_quantization_is_written_short_or_elided() -> None:
    for channels in (3, 20):
        g = Graph("q", Stage.INTEGER)
        scales = np.linspace(0.1, 0.3, channels)
        q = QuantParams(tuple(scales), tuple(range(channels)), DType.INT8, 0)
        w = g.add_constant("w", np.zeros((channels, 2), np.int8), quant=q)
        g.set_outputs([w])
        text = str(g)
        assert ("scale=..." in text) == (channels > 8)
        assert Graph.parse(text, elided(g)).value("w").quant == q


def test_array_attributes_and_absent_inputs() -> None:
    g = Graph("g")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 2)))
    shape = g.add_constant("s", np.asarray([2, 2], np.int64))
    filled = g.add_node("ConstantOfShape", [shape], {"value": np.asarray([1.5], np.float32)}, outputs=["f"])
    high = g.add_constant("h", np.asarray(1, np.float32))
    clipped = g.add_node("Clip", [x, None, high], outputs=["c"])
    g.set_outputs([filled.output, clipped.output])
    assert format_node(clipped) == "%c: float32[N,2] = Clip(%x, -, %h)"
    again = Graph.parse(str(g), elided(g))
    assert str(again) == str(g)
    np.testing.assert_array_equal(
        Session(again, "reference").run({"x": np.ones((1, 2), np.float32)})["f"], np.full((2, 2), 1.5)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('graph "net"', "grph", "line 1: 'graph' expected"),
        ("stage=FLOAT", "stage=DOUBLE", "line 1: unknown stage 'DOUBLE'"),
        ("float32[N,3,8,8]", "float33[N,3,8,8]", "line 3: unknown dtype 'float33'"),
        ("float32[N,3,8,8]", "float32[N,*]", "line 3: a size expected"),
        ("Relu(%input:0)", "Relu(%nothing)", "line 8: .*no value named 'nothing'"),
        ("Relu(%input:0)", "Rely(%input:0)", "line 8: .*operator 'Rely' is not supported .*Relu"),
        ("Relu(%input:0)", "Relu(%input:0", "line 8: ',' expected"),
        ("Relu(%input:0)", "Relu(%input:0) {colour=1}", "line 8: .*unknown attribute 'colour'"),
        ("%y: float32", "%x: float32", "line 8: value 'x' exists already"),
        ("strides=[2, 2]", "strides=[2, ", "line 7: a value expected"),
        ("= ...", "= [1.0]", "line 5: is malformed: cannot reshape"),
        ("const %w", "const %w2", "line 5: constant 'w2' is elided and not given"),
        ("}\n", "", "the closing brace is missing"),
        ("}\n", "}\nmore", "line 11: nothing may follow"),
        ("  return", "  retrun", "line 9: '%' expected"),
    ],
)
def test_errors_name_the_line(old: str, new: str, message: str) -> None:
    text = new.join(FLOAT.rsplit(old, 1)) if old.startswith("}") else FLOAT.replace(old, new, 1)
    with pytest.raises(ParseError, match=message):
        Graph.parse(text, constants())


def test_empty_text() -> None:
    with pytest.raises(ParseError, match="is empty"):
        Graph.parse("")
