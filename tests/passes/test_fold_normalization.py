"""(pixel - mean) / std inside the first convolution gives what normalizing the data gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, TensorType
from qir.errors import GraphError, QuantizationError
from qir.passes.prepare.fold_normalization import FoldNormalization
from qir.runtime import Session

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def network(group: int = 1, pad: bool = False, transposed: bool = False, auto_pad: str = "NOTSET") -> Graph:
    rng = np.random.default_rng(group)
    g = Graph("net")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 8, 9, 3) if transposed else ("N", 3, 8, 9)))
    if transposed:
        x = g.add_node("Transpose", [x], {"perm": [0, 3, 1, 2]}).output
    if pad:
        x = g.add_node("Pad", [x, g.add_constant("p", np.asarray([0, 0, 1, 0, 0, 0, 0, 1]))]).output
    w = g.add_constant("w", rng.normal(size=(6, 3 // group, 3, 3)).astype(np.float32))
    b = g.add_constant("b", rng.normal(size=6).astype(np.float32))
    attrs: dict[str, Any] = {"group": group, "strides": [2, 1], "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attrs["pads"] = [1, 0, 1, 2]
    y = g.add_node("Conv", [x, w, b], attrs, outputs=["y"]).output
    g.set_outputs([y])
    return g


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("form", [{}, {"pad": True}, {"transposed": True}, {"auto_pad": "SAME_UPPER"}], ids=str)
@pytest.mark.parametrize("mean", [(127.0,), (104.0, 117.0, 123.0), MEAN], ids=str)
def test_same_result_from_pixels(group: int, form: dict[str, Any], mean: tuple[float, ...]) -> None:
    graph = network(group, **form)
    folded, report = FoldNormalization(mean, STD).apply(graph)
    assert report["fold_normalization"].count == 1
    shape = (2, 8, 9, 3) if form.get("transposed") else (2, 3, 8, 9)
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)
    axes = (1, 1, 3) if form.get("transposed") else (3, 1, 1)
    m, s = (np.broadcast_to(np.asarray(v, np.float64), 3).reshape(axes) for v in (mean, STD))
    want = Session(graph, "reference").run({"x": ((pixels - m) / s).astype(np.float32)})["y"]
    got = Session(folded, "reference").run({"x": pixels})["y"]
    if all(v == round(v) for v in mean):
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    else:  # the border stands for a whole pixel value
        inner = (slice(None), slice(None), slice(1, -1), slice(2, -3))
        np.testing.assert_allclose(got[inner], want[inner], rtol=0, atol=2e-5 * np.abs(want).max())
        assert np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_what_else_reads_the_input() -> None:
    graph = network()
    y = graph.add_node("Relu", [graph.inputs[0]], outputs=["z"]).output
    graph.set_outputs([*graph.outputs, y])
    before = len(graph)
    with pytest.raises(GraphError, match="Relu node 'z'"):
        FoldNormalization(MEAN, STD).apply(graph)
    assert len(graph) == before
    with pytest.raises(QuantizationError, match="2 means or deviations for 3 channels"):
        FoldNormalization((1.0, 2.0), STD).apply(network())
    with pytest.raises(QuantizationError, match="no normalization"):
        FoldNormalization((1.0,), (0.0,))
