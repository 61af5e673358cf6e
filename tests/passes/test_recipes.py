"""Recipes as data, whole pipelines, equalization that minds the activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir import models
from qir.errors import DataError, ParseError, QirError, QuantizationError, StageError
from qir.graph import Graph, Stage, Value
from qir.passes.calibration.collect import calibrate
from qir.passes.manager import Pass
from qir.passes.pipeline import run_recipe
from qir.passes.prepare.balance import Balance
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipes import RECIPES, Recipe, recipe_of, w8a8
from qir.passes.report import PassReport
from qir.runtime import Session
from qir.types import DType, TensorType


def mobile() -> Graph:
    """An inverted residual with batch norms and Relu6, its channels of very different sizes."""
    rng = np.random.default_rng(21)
    g = Graph("mobile")
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 10, 10)))

    def constant(name: str, data: np.ndarray) -> Value:
        return g.add_constant(name, data.astype(np.float32))

    def conv(x: Value, name: str, m: int, k: int, group: int = 1, *, clip: bool = True) -> Value:
        c = int(x.shape[1])
        w = rng.normal(size=(m, c // group, k, k)) * 10 ** rng.uniform(-1.5, 1, size=(m, 1, 1, 1))
        y = g.add_node("Conv", [x, constant(f"{name}.w", w)], {"group": group, "pads": [k // 2] * 4}, outputs=[name])
        var = np.square(w).sum(axis=(1, 2, 3)) * (1 if name == "a" else 0.4)
        gamma = 10 ** rng.uniform(-1.6, 0.6, m)
        norm = [gamma, gamma * rng.normal(0.5, 0.7, m), np.zeros(m), var]
        inputs = [y.output, *(constant(f"{name}.bn{i}", v) for i, v in enumerate(norm))]
        z = g.add_node("BatchNormalization", inputs, outputs=[f"{name}.bn"]).output
        if not clip:
            return z
        limits = [constant(f"{name}.lo", np.zeros(())), constant(f"{name}.hi", np.asarray(6.0))]
        return g.add_node("Clip", [z, *limits], outputs=[f"{name}.clip"]).output

    stem = conv(x, "a", 8, 3, clip=False)
    inner = conv(conv(stem, "b", 24, 1), "c", 24, 3, 24)
    total = g.add_node("Add", [stem, conv(inner, "d", 8, 1, clip=False)], outputs=["sum"]).output
    pooled = g.add_node("GlobalAveragePool", [conv(total, "e", 16, 1)], outputs=["pool"]).output
    flat = g.add_node("Flatten", [pooled], outputs=["flat"]).output
    head = [constant("h.w", rng.normal(size=(5, 16)) * 0.3), constant("h.b", rng.normal(size=5))]
    g.set_outputs([g.add_node("Gemm", [flat, *head], {"transB": 1}, outputs=["logits"]).output])
    return g


G = mobile()
X = np.random.default_rng(22).normal(size=(48, 3, 10, 10)).astype(np.float32)
WANT = Session(G, "onnxruntime").run({"x": X})["logits"]


def sqnr(graph: Graph) -> float:
    got = Session(graph, "onnxruntime").run({"x": X})["logits"]
    signal = WANT - WANT.mean(axis=0)  # what distinguishes samples
    return float(10 * np.log10(np.square(signal).sum() / np.square(WANT - got).sum()))


LEAST = {"w8a8": 18.0, "w8a16": 24.0, "w8a8_per_tensor": 16.0, "w4a8": 6.0, "w4a4": 0.0, "data_free": 6.0}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_end_to_end(name: str) -> None:
    graph, report = qir.quantize(G, None if name == "data_free" else X, name)
    assert graph.stage is Stage.INTEGER
    assert sqnr(graph) > LEAST[name]
    a = Session(graph, "onnxruntime").run({"x": X[:4]})["logits"]
    assert (a == Session(graph, "reference").run({"x": X[:4]})["logits"]).all()
    assert [p.name for p in report.passes if p.name != "quality"][-1] == "lower_to_dyadic"
    assert G.stage is Stage.FLOAT


def test_balance_keeps_the_function_and_helps_one_scale_a_tensor() -> None:
    prepared, _ = RECIPES["w8a8"].prepare.run(G)
    balanced, report = Balance().apply(prepared)
    assert report["balance"].count == 3  # b - c - d and e - head
    assert sqnr(balanced) > 80
    plain, _ = qir.quantize(G, X, "w8a8", per_channel=False)
    helped, _ = qir.quantize(G, X, "w8a8_per_tensor")
    assert sqnr(helped) > sqnr(plain) + 1


def test_every_option_is_reachable() -> None:
    choices: tuple[dict[str, Any], ...] = (
        {"method": "ema"}, {"method": "percentile", "percentile": 99.9}, {"symmetric": True}, {"residual": "int8"},
        {"output": "int8"}, {"equalize": "weights", "absorb_bias": True}, {"correct_bias": "none"}, {"pool": "int16"},
    )  # fmt: skip
    for options in choices:
        graph, _ = qir.quantize(G, X, "w8a8", samples=16, **options)
        assert sqnr(graph) > 5, options


def test_ranges_can_be_kept_and_edited(tmp_path: Path) -> None:
    done = run_recipe(RECIPES["w8a8"], G, [{"x": X}])
    done.ranges.save(tmp_path / "ranges.json")
    again, report = qir.quantize(G, X, "w8a8", ranges=tmp_path / "ranges.json")
    assert str(again) == str(done.graph)
    analytic, report = qir.quantize(G, None, "w8a8", ranges=Ranges.load(tmp_path / "ranges.json"))
    assert sqnr(analytic) > 15
    assert report["correct_bias"].count


def test_data_are_needed() -> None:
    with pytest.raises(DataError, match="needs calibration data"):
        qir.quantize(G, None, "w8a8")
    with pytest.raises(DataError, match="no samples"):
        qir.quantize(G, X[:0], "w8a8")


def test_quantized_graphs_are_only_lowered() -> None:
    done = run_recipe(RECIPES["w8a8"], G, [{"x": X}])
    graph, report = qir.quantize(done.qdq)
    assert graph.stage is Stage.INTEGER
    assert [p.name for p in report.passes] == ["lower_to_dyadic"]
    with pytest.raises(StageError):
        qir.quantize(graph, X)


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "w4a8"\nmethod = "percentile"\npercentile = 99\nheadroom = 1.5\nequalize = "weights"\n')
    recipe = recipe_of(path)
    assert recipe == RECIPES["w4a8"].but(
        name="mine", method="percentile", percentile=99, headroom=1.5, equalize="weights"
    )
    assert recipe_of(str(path)) == recipe == recipe_of(recipe)
    assert qir.quantize(G, X, path)[0].stage is Stage.INTEGER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base = 'w9'", "no recipe 'w9'"), ("methd = 'mse'", "did you mean 'method'"), ("= 3", "cannot be read"),
        ("method = 'best'", "no range method"), ("weight_bits = '4'", "is no int"), ("per_channel = 1", "is no bool"),
        ("weight_bits = 5", "4 or 8"), ("correct_bias = 'maybe'", "empirical"), ("equalize = 'all'", "weights"),
        ("percentile = 200", "percentile"), ("c = 0", "positive"), ("residual = 'int4'", "int16"),
    ],
)  # fmt: skip
def test_broken_recipes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises((ParseError, QuantizationError), match=message):
        Recipe.load(path)


def test_unknown_recipes() -> None:
    for name in ("w8", "nowhere.toml"):
        with pytest.raises(QirError):
            recipe_of(name)


def test_calibration_of_the_float_graph_itself() -> None:
    ranges = calibrate(G, [{"x": X}], method="minmax")
    assert ranges["logits"] == (pytest.approx(WANT.min(), rel=1e-4), pytest.approx(WANT.max(), rel=1e-4))


def test_passes_of_ones_own_enter_a_recipe() -> None:
    seen: list[str] = []

    def own(word: str, *stages: Stage) -> Pass:
        class Own(Pass):
            name = word
            requires = stages

            def run(self, graph: Graph) -> PassReport:
                seen.append(f"{word} {graph.stage.name}")
                return self.report()

        return Own()

    extra = [own(s.name, s) for s in (Stage.INTEGER, Stage.QDQ, Stage.FOLDED, Stage.FLOAT)]
    digits = models.digits().calibration[:8]
    qir.quantize(models.bundled_path("digits_residual"), digits, w8a8(extra=extra))
    assert seen == ["FLOAT FLOAT", "FOLDED FOLDED", "QDQ QDQ", "INTEGER INTEGER"]
    with pytest.raises(QuantizationError, match="is no pass"):
        w8a8(extra=[Pass])
