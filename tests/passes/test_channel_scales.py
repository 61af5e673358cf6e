"""Factors between channels: the same function in float, less error on a grid; functions that read 12 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qir
from qir import DType, Graph, TensorType
from qir.passes.rounding.channel_scales import ChannelScales, scalable
from qir.runtime import Session
from qir.types import Array


def block(seed: int, *, residual: bool) -> tuple[Graph, list[dict[str, Array]]]:
    """LayerNorm (with outlier channels) -> MatMul -> GELU -> MatMul, around it a residual or not."""
    rng = np.random.default_rng(seed)
    g = Graph("block")

    def constant(name: str, data: Any) -> Any:
        return g.add_constant(name, np.asarray(data, np.float32))

    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 6, 32)))
    gamma = rng.normal(size=32)
    gamma[[3, 17]] *= 40
    h = g.add_node(
        "LayerNormalization", [x, constant("gamma", gamma), constant("beta", rng.normal(size=32))], {}, outputs=["norm"]
    ).output
    y = g.add_node("MatMul", [h, constant("w1", rng.normal(size=(32, 64)) / 6)]).output
    y = g.add_node("Add", [y, constant("b1", rng.normal(size=64))]).output
    y = g.add_node("Gelu", [y], outputs=["gelu"]).output
    y = g.add_node("MatMul", [y, constant("w2", rng.normal(size=(64, 32)) / 8)]).output
    y = g.add_node("Add", [y, constant("b2", rng.normal(size=32))]).output
    if residual:
        y = g.add_node("Add", [y, h]).output
    g.set_outputs([g.add_node("Identity", [y], outputs=["y"]).output])
    return g, [{"x": rng.normal(size=(16, 6, 32)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("residual", [False, True])
def test_the_float_function_stays(residual: bool) -> None:
    graph, feeds = block(1, residual=residual)
    assert [v.name for v in scalable(graph)] == ["norm", "gelu"]
    after, report = ChannelScales(feeds).apply(graph)
    assert report.passes[0].rewrites == {"channel scales": ["norm", "gelu"]}
    a, b = (Session(g, "reference").run(feeds[0])["y"] for g in (graph, after))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(np.abs(a).max()))
    products = [n for n in after.nodes if n.op == "Mul"]
    assert ("norm.scaled" in {n.output.name for n in products}) == residual, "else in gamma and beta"


@pytest.mark.parametrize("residual", [False, True])
def test_it_is_more_accurate_and_exact(residual: bool) -> None:
    graph, feeds = block(2, residual=residual)
    want = Session(graph, "reference").run(feeds[0])["y"]
    noise: dict[bool, float] = {}
    for scales in (False, True):
        integer, _ = qir.quantize(graph, feeds, channel_scales=scales)
        runs = [Session(integer, backend).run(feeds[0])["y"] for backend in ("reference", "onnxruntime")]
        np.testing.assert_array_equal(runs[0], runs[1])
        noise[scales] = float(((runs[0] - want) ** 2).mean())
    assert noise[True] < 0.5 * noise[False]


def test_functions_read_a_fine_grid_from_a_small_table() -> None:
    graph, feeds = block(3, residual=False)
    want = Session(graph, "reference").run(feeds[0])["y"]
    noise: dict[str, float] = {}
    for function in ("int8", "int16"):
        integer, _ = qir.quantize(graph, feeds, function=function, channel_scales=False)
        (table,) = [n for n in integer.nodes if n.op == "qir.Table"]
        assert table.input(0).dtype.bits == (8 if function == "int8" else 16)
        assert table.input(1).shape == ((256,) if function == "int8" else (4096,))
        runs = [Session(integer, backend).run(feeds[0])["y"] for backend in ("reference", "onnxruntime")]
        np.testing.assert_array_equal(runs[0], runs[1])
        noise[function] = float(((runs[0] - want) ** 2).mean())
    assert noise["int16"] < noise["int8"]


def test_a_class_token_an_embedding_and_a_layer_scale() -> None:
    """ViT's: a constant joined to activations, then a constant added, from a fine grid; a factor with signs."""
    rng = np.random.default_rng(5)
    g = Graph("vit")

    def constant(name: str, *shape: int) -> Any:
        return g.add_constant(name, rng.normal(size=shape).astype(np.float32) / 3)

    x = g.add_input("x", TensorType(DType.FLOAT32, (1, 6, 16)))
    y = g.add_node("MatMul", [x, constant("w", 16, 32)]).output
    y = g.add_node("Add", [y, constant("b", 32)]).output
    y = g.add_node("Concat", [constant("token", 1, 1, 32), y], {"axis": 1}, outputs=["joined"]).output
    stream = g.add_node("Add", [y, constant("position", 1, 7, 32)], outputs=["embedded"]).output
    y = g.add_node("LayerNormalization", [stream, constant("gamma", 32), constant("beta", 32)], {}).output
    y = g.add_node("MatMul", [y, constant("w2", 32, 32)]).output
    y = g.add_node("Add", [y, constant("b2", 32)]).output
    y = g.add_node("Mul", [y, constant("layer_scale", 32)]).output
    g.set_outputs([g.add_node("Add", [y, stream], outputs=["y"]).output])
    feeds = [{"x": rng.normal(size=(1, 6, 16)).astype(np.float32)} for _ in range(16)]
    integer, _ = qir.quantize(g, feeds)
    assert [n.op for n in integer.nodes if n.op == "qir.Requantize"] == ["qir.Requantize"] * 2, (
        "biases are in the layers"
    )
    runs = [Session(integer, backend).run(feeds[0])["y"] for backend in ("reference", "onnxruntime")]
    np.testing.assert_array_equal(runs[0], runs[1])
    want = Session(g, "reference").run(feeds[0])["y"]
    assert 10 * np.log10((want**2).sum() / ((runs[0] - want) ** 2).sum()) > 38


def test_inputs_of_16_bits() -> None:
    graph, feeds = block(4, residual=True)
    want = Session(graph, "reference").run(feeds[0])["y"]
    noise: dict[str, float] = {}
    for recipe in ("w8a8", "w8a16"):
        integer, _ = qir.quantize(graph, feeds, recipe)
        runs = [Session(integer, backend).run(feeds[0])["y"] for backend in ("reference", "onnxruntime")]
        np.testing.assert_array_equal(runs[0], runs[1])
        noise[recipe] = float(((runs[0] - want) ** 2).mean())
    assert noise["w8a16"] < 0.7 * noise["w8a8"]
