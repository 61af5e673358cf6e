"""Mixed-precision search, RoundWeights on graphs and diagnosis, on the small trained networks that come with qir."""

from __future__ import annotations

import itertools
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.cost import macs
from qir.errors import DataError, ParseError, QuantizationError
from qir.graph import Graph
from qir.passes import PassManager
from qir.passes.calibration.collect import calibrate
from qir.passes.diagnose import Diagnosis, diagnose
from qir.passes.mixed_precision.assign_bits import InfeasibleError, solve
from qir.passes.mixed_precision.search import (
    SearchResult,
    curve,
    joined,
    limit_of,
    load_latency,
    problem_of,
    same_input,
    search,
)
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.pipeline import run_recipe
from qir.passes.quantization.insert_qdq import InsertQdq, linear_nodes
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipes import RECIPES, Recipe, recipe_of
from qir.passes.rounding.round_weights import RoundWeights
from qir.runtime import Session
from qir.types import Array, DType, TensorType

MODELS = Path(qir.__file__).resolve().parents[1] / "models"
Feeds = list[dict[str, Array]]


@pytest.fixture(scope="module")
def digits() -> tuple[Graph, Feeds, Feeds]:
    """(prepared float network, calibration batches, other batches)."""
    graph = qir.load(MODELS / "digits_residual.onnx")
    name = graph.inputs[0].name
    with np.load(MODELS / "digits.npz") as arrays:
        key = next(k for k in arrays.files if arrays[k].ndim > 1)
        images = arrays[key]
    shape = [int(d) for d in graph.inputs[0].shape[1:]]
    x = (images.reshape(-1, *shape) / (images.max() or 1)).astype(np.float32)
    prepared, _ = RECIPES["w8a8"].prepare.run(graph)
    split = [{name: x[i : i + 32]} for i in range(0, 256, 32)]
    return prepared, split[:4], split[4:]


@pytest.fixture(scope="module")
def ranges(digits: tuple[Graph, Feeds, Feeds]) -> Ranges:
    return calibrate(digits[0], digits[1], method="mse", bits=(4, 8))


@pytest.fixture(scope="module")
def found(digits: tuple[Graph, Feeds, Feeds], ranges: Ranges) -> SearchResult:
    return search(digits[0], digits[1][:1], ranges, {"size": "0.7x"})


def output(graph: Graph, feeds: Feeds) -> Array:
    session = Session(graph, backend="onnxruntime")
    return np.concatenate([session.run(dict(f))[graph.outputs[0].name] for f in feeds]).astype(np.float64)


def noise(graph: Graph, reference: Graph, feeds: Feeds) -> float:
    return float(((output(graph, feeds) - output(reference, feeds)) ** 2).mean())


def test_the_choice_meets_the_limit_and_keeps_the_ends(digits: tuple[Graph, Feeds, Feeds], found: SearchResult) -> None:
    assert found.assignment.costs["size"] <= 0.7 * found.uniform.costs["size"]
    bits = list(found.layers.values())
    assert bits[0] == bits[-1] == (8, 8)
    assert (4, 4) in bits or (4, 8) in bits
    assert set(found.layers) == {n.name for n in linear_nodes(digits[0])}
    for group in same_input(digits[0]):
        assert len({found.layers[n] for n in group}) == 1
    assert "size:" in found.text()


def test_the_choice_applied_is_an_integer_network(digits: tuple[Graph, Feeds, Feeds], found: SearchResult) -> None:
    graph, calib, dev = digits
    done = run_recipe(replace(RECIPES["w4a8"], layers=found.layers), graph, calib)
    widths = {n.name: n.input(1).dtype.bits for n in done.graph.nodes if n.op in ("qir.Conv", "qir.MatMul")}
    assert sorted(widths.values()) == sorted(w for w, _ in found.layers.values())
    assert noise(done.graph, graph, dev) < 0.2 * float((output(graph, dev) ** 2).mean())
    small = {k: v[:4] for k, v in dev[0].items()}
    name = done.graph.outputs[0].name
    both = [Session(done.graph, backend=b).run(small)[name] for b in ("reference", "onnxruntime")]
    np.testing.assert_array_equal(both[0], both[1])


def test_perturbation_falls_as_each_limit_loosens(found: SearchResult) -> None:
    for cost in ("size", "bops", "linear", "quadratic"):
        points = curve(found, cost, 7)
        assert len(points) >= 3
        assert all(b.perturbation < a.perturbation for a, b in itertools.pairwise(points))


def test_limits_between_all_at_4_and_all_at_8_are_met_with_falling_perturbation(
    digits: tuple[Graph, Feeds, Feeds], found: SearchResult
) -> None:
    """The shape of HAWQ-V3's table II; latency as its section 3 has it, half the time at half the bits."""
    nodes = linear_nodes(digits[0])
    table = {n.name: {b: macs(n) * max(b) / 8e9 for b in ((4, 4), (4, 8), (8, 8))} for n in nodes}
    problem = problem_of(digits[0], found.sensitivity, latency=table)
    int4, int8 = problem.uniform((4, 4)), problem.uniform((8, 8))
    for cost in ("size", "bops", "latency"):
        low, high = int4.costs[cost], int8.costs[cost]
        assert low < high
        row = [solve(problem, {cost: low + level * (high - low)}) for level in (0.1, 0.25, 0.5, 0.75, 0.9)]
        assert all(
            a.costs[cost] <= low + v * (high - low) for a, v in zip(row, (0.1, 0.25, 0.5, 0.75, 0.9), strict=True)
        )
        falling = [int4.perturbation, *(a.perturbation for a in row), int8.perturbation]
        assert all(b <= a for a, b in itertools.pairwise(falling)), cost
        assert len({a.perturbation for a in row}) >= 3, cost


def test_limits_and_tables(digits: tuple[Graph, Feeds, Feeds], found: SearchResult, tmp_path: Path) -> None:
    uniform = found.uniform
    assert limit_of("0.5x", "size", uniform) == 0.5 * uniform.costs["size"]
    assert limit_of("1.5MB", "size", uniform) == 1.5e6
    assert limit_of("20G", "bops", uniform) == 20e9
    assert limit_of(7, "bops", uniform) == 7
    with pytest.raises(ParseError):
        limit_of("much", "bops", uniform)
    with pytest.raises(QuantizationError, match="no cost"):
        limit_of("1x", "joules", uniform)
    with pytest.raises(InfeasibleError, match="nearest"):
        search(digits[0], [], Ranges.of({}), {"size": "0.1x"}, sensitivity=found.sensitivity)
    rows = ", ".join(f'"{n}": {{"4/4": 1, "4/8": 2, "8/8": 3}}' for n in found.layers)
    (tmp_path / "t.json").write_text("{" + rows + "}")
    table = load_latency(tmp_path / "t.json")
    problem = problem_of(digits[0], found.sensitivity, latency=table, residual_groups=True)
    assert problem.uniform((8, 8)).costs["latency"] == 3 * len(found.layers)
    assert joined(digits[0])
    with pytest.raises(ParseError, match="no limit of size"):
        limit_of(None, "size", uniform)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="give a latency table"):
        search(digits[0], [], Ranges.of({}), {"latency": "1x"})
    with pytest.raises(ParseError, match="'much'"):  # before anything is measured
        search(digits[0], [], Ranges.of({}), {"size": "much"})
    with pytest.raises(QuantizationError, match="no cost 'joules' to sweep"):
        curve(found, "joules")
    with pytest.raises(QuantizationError, match="has no sensitivity"):
        problem_of(digits[0], Sensitivity("fisher", dict(list(found.sensitivity.layers.items())[1:])))
    with pytest.raises(QuantizationError, match="latency table has no"):
        problem_of(digits[0], found.sensitivity, latency={})
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(ParseError):
        load_latency(tmp_path / "bad.json")


def test_layers_are_pinned_forbidden_grouped_and_choices_narrowed(
    digits: tuple[Graph, Feeds, Feeds], found: SearchResult
) -> None:
    def again(size: str, **options: Any) -> SearchResult:
        return search(digits[0], [], Ranges.of({}), {"size": size}, sensitivity=found.sensitivity, **options)

    small = next(n for n, bits in found.layers.items() if bits[0] == 4)
    assert again("0.9x", pinned={small: (8, 8)}).layers[small] == (8, 8)
    other = next(n for n, bits in found.layers.items() if bits == (8, 8) and n != next(iter(found.layers)))
    assert again("1x", forbidden={other: [(8, 8)]}).layers[other] != (8, 8)
    apart, together = again("0.7x"), again("0.7x", residual_groups=True)
    for group in joined(digits[0]):
        assert len({together.layers[n] for n in group}) == 1
    assert any(len({apart.layers[n] for n in group}) > 1 for group in joined(digits[0]))
    narrow = again("1x", choices=((4, 4), (4, 8)))
    assert set(narrow.layers.values()) <= {(4, 4), (4, 8)}
    assert "all at 8/8" not in narrow.text() and "all at 8/8" in found.text()
    with pytest.raises(QuantizationError, match="8/4 was not measured"):
        again("1x", choices=((4, 4), (8, 4)))


def test_bits_for_a_layer_that_is_not_there(digits: tuple[Graph, Feeds, Feeds]) -> None:
    with pytest.raises(QuantizationError, match=r"'block0.a.conf'.*did you mean 'block0.a.conv'"):
        run_recipe(replace(RECIPES["w8a8"], layers={"block0.a.conf": (4, 8)}), digits[0], digits[1][:1])
    with pytest.raises(QuantizationError, match="bits"):
        replace(RECIPES["w8a8"], layers={"block0.a.conv": (8, 12)})


def test_layers_in_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "mixed.toml").write_text('base = "w4a8"\n[layers]\n"a/b" = [8, 4]\n')
    recipe = Recipe.load(tmp_path / "mixed.toml")
    assert recipe.layers == {"a/b": (8, 4)}
    assert recipe.bits == (4, 8)
    (tmp_path / "bad.toml").write_text("[layers]\na = [8]\n")
    with pytest.raises(ParseError, match="no \\[weight bits"):
        Recipe.load(tmp_path / "bad.toml")


@pytest.mark.parametrize("options", [{}, {"follow": 0.0, "refit": False}, {"method": "adaround"}], ids=str)
def test_rounding_from_data_beats_nearest(
    digits: tuple[Graph, Feeds, Feeds], ranges: Ranges, options: dict[str, object]
) -> None:
    graph, calib, dev = digits
    insert = InsertQdq(ranges, weight_bits=4, weight_range="mse")
    plain, _ = PassManager([insert]).run(graph)
    rounded, report = PassManager([insert, RoundWeights(graph, calib, **options)]).run(graph)  # type: ignore[arg-type]
    assert report["round_weights"].count == len(linear_nodes(graph))
    assert not report["round_weights"].misses
    assert noise(rounded, graph, dev) < 0.6 * noise(plain, graph, dev)


def test_layers_that_are_not_rounded_from_data_have_their_biases_corrected_before_the_others() -> None:
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 4, 6, 6)))
    up = graph.add_constant("up.w", rng.standard_normal((4, 6, 2, 2)).astype(np.float32))
    w = graph.add_constant("conv.w", rng.standard_normal((5, 6, 1, 1)).astype(np.float32))
    t = graph.add_node("ConvTranspose", [x, up], {"strides": [2, 2]}, outputs=["t"], name="up").output
    graph.set_outputs([graph.add_node("Conv", [t, w], outputs=["y"], name="conv").output])
    images = 1 + rng.random((32, 4, 6, 6), np.float32)
    noises: list[float] = []
    for correct in ("none", "empirical"):
        recipe = RECIPES["w4a8"].but(first_last_bits=4, correct_bias=correct)
        done = run_recipe(recipe, graph, [{"x": images[:16]}])
        corrected = done.report["round_weights"].rewrites.get("correct_bias", [])
        assert corrected == (["up"] if correct == "empirical" else [])
        back = next(n for n in done.qdq.nodes if n.name == "up")
        assert (back.optional(2) is not None) == (correct == "empirical")
        noises.append(noise(done.graph, graph, [{"x": images[16:]}]))
    assert noises[1] < 0.7 * noises[0]


def test_small_memory_and_other_batches_change_little(digits: tuple[Graph, Feeds, Feeds], ranges: Ranges) -> None:
    graph, calib, dev = digits
    insert = InsertQdq(ranges, weight_bits=4)
    rows = 1 << 20  # all of them, so that nothing is drawn
    wide, _ = PassManager([insert, RoundWeights(graph, calib, rows=rows)]).run(graph)
    tight, _ = PassManager([insert, RoundWeights(graph, calib, rows=rows, memory=1)]).run(graph)
    np.testing.assert_array_equal(output(wide, dev), output(tight, dev))


def test_rounding_needs_data_and_a_known_method(digits: tuple[Graph, Feeds, Feeds], ranges: Ranges) -> None:
    with pytest.raises(DataError, match="no data to round"):
        PassManager([InsertQdq(ranges), RoundWeights(digits[0], [])]).run(digits[0])
    with pytest.raises(DataError, match="is not among the data"):
        PassManager([InsertQdq(ranges), RoundWeights(digits[0], [{"other": np.zeros(1)}])]).run(digits[0])
    with pytest.raises(QuantizationError, match="no rounding method"):
        RoundWeights(digits[0], [], method="up")
    with pytest.raises(QuantizationError, match="rounding is 'up'"):
        RECIPES["w4a8"].but(rounding="up")


def test_diagnosis_finds_the_layer_that_was_spoilt(digits: tuple[Graph, Feeds, Feeds]) -> None:
    graph = digits[0].clone()
    victim = linear_nodes(graph)[2]
    w = victim.input(1).array().copy()
    w.reshape(-1)[0] = 40 * np.abs(w).max()
    graph.set_input(victim, 1, graph.add_constant("spoilt", w))
    found = diagnose(graph, digits[1][:1], RECIPES["w8a8"].but(per_channel=False), remedies=True)
    assert found.float_sqnr > 60
    assert found.culprits[0].layer == victim.name
    assert found.culprits[0].tensor == "spoilt"
    assert any("per_channel" in advice for advice in found.culprits[0].advice)
    assert found.both_sqnr <= min(found.weights_sqnr, found.activations_sqnr) + 1
    assert dict(found.remedies)["per_channel=true"] > found.recipe_sqnr + 3, "what is advised helps"
    assert [v for _, v in found.remedies] == sorted((v for _, v in found.remedies), reverse=True)
    text = found.text()
    assert "float check" in text and "weights only" in text and "->" in text and "quantiles" in text
    with pytest.raises(DataError):
        diagnose(graph, [], RECIPES["w8a8"])


def test_diagnosis_sees_what_the_recipe_does(digits: tuple[Graph, Feeds, Feeds], tmp_path: Path) -> None:
    graph, few = digits[0], digits[1][:1]

    def look(recipe: Recipe) -> Diagnosis:
        return diagnose(graph, [{k: v[:16] for k, v in few[0].items()}], recipe, worst=100)

    plain = look(RECIPES["w8a8"])
    assert look(RECIPES["w8a8"].but(per_channel=False)).weights_sqnr < plain.weights_sqnr - 1
    assert look(RECIPES["w8a8"].but(method="percentile", percentile=60.0)).activations_sqnr < 10
    assert look(RECIPES["w8a8"].but(residual="int8")).activations_sqnr < plain.activations_sqnr
    assert {c.side for c in plain.culprits} == {"weights", "activation"}
    assert {c.layer for c in plain.culprits} <= {n.name for n in graph.nodes}
    assert sum(c.bits == 16 for c in plain.culprits) > 3, "sums and outputs too"
    narrow = look(replace(RECIPES["w4a4"], rounding="nearest", layers={"block0.a.conv": (8, 8)}))
    assert narrow.recipe_sqnr > narrow.both_sqnr > 5, "biases are corrected"
    bits = {(c.layer, c.side): c.bits for c in narrow.culprits}
    assert bits["block0.a.conv", "weights"] == 8 and bits["block1.a.conv", "weights"] == 4
    assert not any(c.advice for c in narrow.culprits), "nothing is advised that was not tried"
    calls: list[tuple[int, int]] = []
    tried = diagnose(graph, few, narrow.recipe, remedies=True, progress=lambda done, total: calls.append((done, total)))
    assert any("keep it wider: layers={" in words for c in tried.culprits for words in c.advice)
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted(done for done, _ in calls)
    rows = tried.text().partition("better.toml:\n")[2].splitlines()
    path = tmp_path / "better.toml"
    path.write_text("\n".join(row.strip() for row in rows))
    assert recipe_of(path).but(name="w4a4") != RECIPES["w4a4"], "the advice is a recipe"


def test_plots(found: SearchResult, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = import_module("qir.passes.mixed_precision.plots")
    plots.plot_layers(found, tmp_path / "layers.png")
    plots.plot_pareto(curve(found, "size", 5), "size", tmp_path / "pareto.png")
    assert (tmp_path / "layers.png").stat().st_size > 1000
    assert (tmp_path / "pareto.png").stat().st_size > 1000
    with pytest.raises(QuantizationError, match="no plot"):
        plots.plot_layers(found, tmp_path / "layers.xyz")
