"""Latency tables: what they hold, and the way from a measured model through `qir bench` to `qir search`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.__main__ import main
from qir.errors import BackendError
from qir.graph import Graph
from qir.passes.mixed_precision.search import load_latency
from qir.passes.quantization.insert_qdq import linear_nodes
from qir.passes.recipes import RECIPES, Recipe
from qir.runtime.backend import Backend
from qir.runtime.measure.bench import random_feeds
from qir.runtime.measure.latency import is_layer, latency_table, save_table, with_weights_of
from qir.runtime.profile import Profile, Row
from qir.runtime.session import BACKENDS, Session

MODEL = Path(qir.__file__).resolve().parents[1] / "models" / "digits_residual.onnx"


@pytest.fixture(scope="module")
def graphs() -> tuple[Graph, Graph]:
    """(prepared float graph, integer graph at 8 bits)."""
    graph = qir.load(MODEL)
    prepared, _ = RECIPES["w8a8"].prepare.run(graph)
    return prepared, qir.quantize(graph, [random_feeds(graph, 8)], recipe="w8a8")[0]


def test_every_layer_is_timed_at_every_choice(graphs: tuple[Graph, Graph], tmp_path: Path) -> None:
    prepared, integer = graphs
    table = latency_table(integer, "cpu", layers=prepared)
    assert set(table) == {n.name for n in linear_nodes(prepared)}
    for row in table.values():
        assert set(row) == {(4, 4), (4, 8), (8, 8)}
        assert all(0 < seconds < 1 for seconds in row.values())
        assert row[4, 4] == row[4, 8]
    save_table(table, tmp_path / "t.json")
    assert load_latency(tmp_path / "t.json") == table
    assert set(latency_table(integer, "cpu")) == {n.output.name for n in linear_nodes(prepared)}


def test_the_variants_have_the_bits_that_are_timed_and_run(graphs: tuple[Graph, Graph]) -> None:
    integer = graphs[1]
    feeds = random_feeds(integer, 2)
    for bits in (4, 8):
        variant = with_weights_of(integer, bits)
        layers = [n for n in variant.nodes if is_layer(n)]
        assert {n.input(1).dtype.bits for n in layers} == {bits}
        a, b = (Session(variant, k).run(feeds)[variant.outputs[0].name] for k in ("reference", "cpu"))
        np.testing.assert_array_equal(a, b)
    with pytest.raises(BackendError, match="no linear layer"):
        latency_table(Graph(), "cpu")
    with pytest.raises(BackendError, match="no profile"):
        latency_table(integer, "reference")


class Paired(Backend):
    """A backend that takes one second for all layers of a network together, and none for the rest."""

    name = "paired"

    def __init__(self, graph: Graph) -> None:
        self.layers = tuple(n.name for n in graph.nodes if is_layer(n))

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        raise NotImplementedError

    def profile(self, feeds: Mapping[str, Any]) -> Profile:
        return Profile((Row("pair", self.layers, 1.0, 0, 0), Row("rest", ("x",), 1.0, 0, 0)), "none", 1)


def test_fused_layers_share_the_time_of_their_step(
    graphs: tuple[Graph, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "paired", f"{__name__}:Paired")
    table = latency_table(graphs[1], "paired")
    assert len(table) > 1
    for row in table.values():
        assert row == {bits: pytest.approx(1 / len(table)) for bits in ((4, 4), (4, 8), (8, 8))}


def test_bench_writes_what_search_reads(graphs: tuple[Graph, Graph], tmp_path: Path) -> None:
    prepared, integer = graphs
    qir.save(integer, tmp_path / "int8.onnx")
    table, own, data = tmp_path / "table.json", tmp_path / "own.json", tmp_path / "x.npy"
    assert main(["bench", str(tmp_path / "int8.onnx"), "--seconds", "0.05", "--latency-table", str(table)]) == 0
    assert len(load_latency(table)) == len(linear_nodes(prepared))
    np.save(data, next(iter(random_feeds(prepared, 16).values())))
    search = ["search", str(MODEL), "--data", str(data), "--measure", "mse", "--latency-limit"]
    assert main([*search, "1x", "--latency", str(table), "-o", str(tmp_path / "a.toml")]) == 0
    assert main([*search, "9s", "--latency", "cpu", "--save-latency", str(own), "-o", str(tmp_path / "b.toml")]) == 0
    assert set(load_latency(own)) == {n.name for n in linear_nodes(prepared)}
    for file in ("a.toml", "b.toml"):
        assert set(Recipe.load(tmp_path / file).layers) == set(load_latency(own))
