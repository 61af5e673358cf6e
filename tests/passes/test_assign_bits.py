"""The bit-assignment program: optimal against brute force, HAWQ-V3's own figures, limits that cannot be met."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qir.errors import BackendError, ParseError, QuantizationError
from qir.passes.mixed_precision import assign_bits
from qir.passes.mixed_precision.assign_bits import BitChoice, InfeasibleError, Problem, merge_groups, pareto, solve
from qir.passes.mixed_precision.cost_model import COSTS, Bits, Work, format_bits, parse_bits

FOUR: tuple[Bits, ...] = ((4, 4), (4, 8), (8, 4), (8, 8))


def random_problem(rng: np.random.Generator, layers: int, choices: Sequence[Bits] = FOUR, **decided: Any) -> Problem:
    """Layers of random size and sensitivity, with the costs of the model and a latency that is no function of bits."""
    table: dict[str, list[BitChoice]] = {}
    for i in range(layers):
        work = Work(int(rng.integers(1_000, 10_000_000)), int(rng.integers(100, 1_000_000)))
        scale = float(rng.lognormal(0, 2))
        table[f"l{i}"] = [
            BitChoice(
                bits,
                scale * (4.0 ** -bits[0] + 0.5 * 4.0 ** -bits[1]) * float(rng.uniform(0.7, 1.3)),
                {k: f(work, bits) for k, f in COSTS.items()} | {"latency": float(rng.uniform(1, 5)) * sum(bits)},
            )
            for bits in choices
        ]
    return Problem(table, **decided)


def brute_force(problem: Problem, limits: Mapping[str, float]) -> float | None:
    """Least perturbation over all assignments that obey groups, pins, bans and limits."""
    best: float | None = None
    names = list(problem.layers)
    for combination in itertools.product(*(problem.layers[n] for n in names)):
        bits = {n: c.bits for n, c in zip(names, combination, strict=True)}
        if any(len({bits[n] for n in group}) > 1 for group in problem.groups):
            continue
        if any(len({bits[n][1] for n in group}) > 1 for group in problem.shared):
            continue
        if any(bits[n] != b for n, b in problem.pinned.items()):
            continue
        if any(bits[n] in banned for n, banned in problem.forbidden.items()):
            continue
        total = problem.total(bits)
        if all(total.costs[k] <= v for k, v in limits.items()) and (best is None or total.perturbation < best):
            best = total.perturbation
    return best


@pytest.mark.parametrize("seed", range(12))
def test_it_is_optimal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    decided: dict[str, Any] = {}
    if seed % 3 == 1:
        decided = {"groups": [("l0", "l3"), ("l3", "l4")], "forbidden": {"l1": [(4, 4)]}}
    if seed % 3 == 2:
        decided = {"pinned": {"l2": (8, 8)}, "groups": [("l1", "l5")], "shared": [("l0", "l1", "l4")]}
    problem = random_problem(rng, 6, **decided)
    low, high = problem.uniform((4, 4)).costs, problem.uniform((8, 8)).costs
    names = [["size"], ["bops", "latency"], ["size", "bops", "latency", "linear", "quadratic"]][seed % 3]
    limits = {k: low[k] + (high[k] - low[k]) * float(rng.uniform(0.3, 0.9)) for k in names}
    expected = brute_force(problem, limits)
    if expected is None:
        with pytest.raises(InfeasibleError):
            solve(problem, limits)
        return
    found = solve(problem, limits)
    assert found.perturbation == pytest.approx(expected, rel=1e-9), f"seed {seed}"
    assert all(found.costs[k] <= limits[k] for k in limits)
    for group in problem.groups:
        assert len({found.bits[n] for n in group}) == 1
    for group in problem.shared:
        assert len({found.bits[n][1] for n in group}) == 1
    for name, bits in problem.pinned.items():
        assert found.bits[name] == bits


def test_readers_of_one_tensor_share_its_bits_and_not_those_of_their_weights() -> None:
    rng = np.random.default_rng(5)
    apart = random_problem(rng, 2, shared=[("l0", "l1")])
    tied = Problem(apart.layers, groups=apart.shared)
    limit = {"size": apart.total({"l0": (4, 8), "l1": (8, 8)}).costs["size"]}
    one, two = solve(apart, limit), solve(tied, limit)
    assert one.bits["l0"][1] == one.bits["l1"][1] and one.bits["l0"][0] != one.bits["l1"][0]
    assert one.perturbation < two.perturbation
    with pytest.raises(QuantizationError, match="no bits of the tensor that l0, l1 read"):
        Problem(apart.layers, shared=[("l0", "l1")], pinned={"l0": (8, 8), "l1": (8, 4)})


def test_limits_that_cannot_be_met_are_answered_with_the_nearest_that_can() -> None:
    problem = random_problem(np.random.default_rng(1), 5)
    least = problem.uniform((4, 4)).costs["size"]
    with pytest.raises(InfeasibleError, match="nearest that can be met") as caught:
        solve(problem, {"size": least * 0.5})
    assert caught.value.nearest["size"] == pytest.approx(least)
    assert solve(problem, caught.value.nearest).costs["size"] == pytest.approx(least)
    with pytest.raises(InfeasibleError) as both:
        solve(problem, {"size": least * 0.9, "latency": 1e9})
    assert both.value.nearest["latency"] == 1e9
    solve(problem, both.value.nearest)
    with pytest.raises(InfeasibleError) as nothing:
        solve(problem, {"size": 1e-300, "bops": 1e-300})
    solve(problem, nothing.value.nearest)


def test_the_pareto_sweep_is_monotonic_and_meets_further_limits() -> None:
    problem = random_problem(np.random.default_rng(2), 12)
    roof = problem.uniform((8, 8)).costs["bops"] * 0.8
    curve = pareto(problem, "size", 9, {"bops": roof})
    assert len(curve) > 4
    for a, b in itertools.pairwise(curve):
        assert a.perturbation > b.perturbation
        assert a.costs["size"] < b.costs["size"]
    assert all(c.costs["bops"] <= roof for c in curve)


def test_fifty_three_layers_with_four_choices_take_less_than_a_second() -> None:
    problem = random_problem(np.random.default_rng(3), 53)
    low, high = problem.uniform((4, 4)).costs, problem.uniform((8, 8)).costs
    limits = {k: (low[k] + high[k]) / 2 for k in ("size", "bops", "latency")}
    start = time.perf_counter()
    found = solve(problem, limits)
    assert time.perf_counter() - start < 1.0
    assert 0 < found.seconds < 1.0


def test_a_limit_that_equal_layers_meet_exactly_is_met() -> None:
    """Twenty layers of one cost: thousands of assignments lie a rounding error above the limit, and all are equal."""
    cost = {4: 0.1, 8: 0.2}
    layers = {
        f"l{i}": [BitChoice((b, b), (1 + 0.01 * i) * 2.0**-b, {"latency": cost[b]}) for b in cost] for i in range(20)
    }
    problem = Problem(layers)
    for eights in (3, 6, 10, 17):
        limit = np.nextafter(0.1 * (20 + eights), 0)
        found = solve(problem, {"latency": limit})
        assert sum(w == 8 for w, _ in found.bits.values()) == eights
        assert found.costs["latency"] == pytest.approx(limit, rel=1e-12)


@pytest.mark.parametrize("seed", [12, 30, 58])
def test_it_is_optimal_where_perturbations_span_fifteen_orders_of_magnitude(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = {
        f"l{i}": [BitChoice((b, b), scale * 4.0**-b, {"size": count * b}) for b in (4, 8)]
        for i in range(10)
        for scale, count in [(float(10 ** rng.uniform(-12, 3)), float(rng.integers(100, 1_000_000)))]
    }
    problem = Problem(layers)
    low, high = (problem.uniform((b, b)).costs["size"] for b in (4, 8))
    limit = low + (high - low) * float(rng.uniform(0.2, 0.9))
    expected = brute_force(problem, {"size": limit})
    assert solve(problem, {"size": limit}).perturbation == pytest.approx(expected, rel=1e-9)


def test_costs_that_are_all_but_common_to_the_choices_are_limited_all_the_same() -> None:
    """What bits change is a billionth of the sums: less than the solver's tolerance, were it told the sums."""
    rng = np.random.default_rng(0)
    layers = {
        f"l{i}": [
            BitChoice((b, b), float(rng.lognormal(0, 2)) * 4.0**-b, {"size": 1000 + 1e-6 * b * extra}) for b in (4, 8)
        ]
        for i in range(9)
        for extra in [float(rng.uniform(0.1, 1))]
    }
    problem = Problem(layers)
    low, high = (problem.uniform((b, b)).costs["size"] for b in (4, 8))
    for level in (0.1, 0.5, 0.9):
        limit = low + level * (high - low)
        found = solve(problem, {"size": limit})
        assert found.costs["size"] <= limit
        assert found.perturbation == pytest.approx(brute_force(problem, {"size": limit}), rel=1e-9)


def test_perturbation_falls_as_a_limit_loosens() -> None:
    problem = random_problem(np.random.default_rng(4), 20)
    low, high = problem.uniform((4, 4)).costs, problem.uniform((8, 8)).costs
    for cost in ("size", "bops", "latency"):
        limits = [low[cost] + (high[cost] - low[cost]) * f for f in (0.25, 0.5, 0.75, 1.0)]
        falling = [solve(problem, {cost: limit}).perturbation for limit in limits]
        assert falling == sorted(falling, reverse=True)


def test_bad_problems_are_refused() -> None:
    problem = random_problem(np.random.default_rng(5), 3)
    with pytest.raises(QuantizationError, match="no cost 'joules'"):
        solve(problem, {"joules": 1.0})
    with pytest.raises(QuantizationError, match="not positive"):
        solve(problem, {"size": float("nan")})
    with pytest.raises(QuantizationError, match="no such layer"):
        Problem(problem.layers, pinned={"nobody": (8, 8)})
    with pytest.raises(QuantizationError, match="no choice is left for l0, l1"):
        Problem(problem.layers, [("l0", "l1")], pinned={"l0": (8, 8)}, forbidden={"l1": [(8, 8)]})
    with pytest.raises(QuantizationError, match="not finite"):
        Problem({"a": [BitChoice((8, 8), float("nan"), {})]})
    with pytest.raises(QuantizationError, match="same bits"):
        Problem({"a": [BitChoice((8, 8), 1, {}), BitChoice((8, 8), 2, {})]})
    with pytest.raises(QuantizationError, match="other costs"):
        Problem({"a": [BitChoice((8, 8), 1, {"size": 1})], "b": [BitChoice((8, 8), 1, {})]})
    assert merge_groups([("a",), ("a", "b")]) == [("a", "b")]


def test_cost_models() -> None:
    work = Work(macs=1000, weights=64)
    assert [COSTS["linear"](work, (b, b)) for b in (16, 8, 4)] == [16000, 8000, 4000]  # AQT 4.3
    assert [COSTS["quadratic"](work, (b, b)) for b in (16, 8, 4)] == [16000, 4000, 1000]
    assert COSTS["bops"](work, (4, 8)) == 32000
    assert COSTS["size"](work, (4, 8)) == 32
    assert [parse_bits(t) for t in ("4/8", "8", "w4a8")] == [(4, 8), (8, 8), (4, 8)]
    assert parse_bits(format_bits((4, 8))) == (4, 8)
    for bad in ("", "4/x", "4/8/2", "0"):
        with pytest.raises(ParseError):
            parse_bits(bad)


def hawq_problem(network: Mapping[str, Any]) -> Problem:
    """HAWQ-V3's per-layer figures as a problem."""
    layers: dict[str, list[BitChoice]] = {}
    for i, trace in enumerate(network["trace"]):
        work = Work(network["macs"][i], network["parameters"][i])
        layers[str(i)] = [
            BitChoice(
                (b, b), trace * network[f"delta_w{b}"][i],
                {
                    "size": COSTS["size"](work, (b, b)), "bops": COSTS["bops"](work, (b, b)),
                    "latency": network[f"latency_int{b}_ms"][i],
                },
            ) for b in (4, 8)
        ]  # fmt: skip
    return Problem(layers, [[str(i) for i in group] for group in network["tied"]])


@pytest.mark.kit
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_hawq_v3_choices_are_reproduced(kit: Path, name: str) -> None:
    network = json.loads((kit / "hawq_v3_ilp.json").read_text())["networks"][name]
    problem = hawq_problem(network)
    for cost, rows in network["optimal"].items():
        assert len(rows) == 3
        for row in rows:
            found = solve(problem, {cost: row["limit"]})
            assert [w for w, _ in found.bits.values()] == row["bits"], (cost, row["fraction"])
            assert found.perturbation == pytest.approx(row["perturbation"], rel=1e-12)
            assert found.costs[cost] == pytest.approx(row["cost"], rel=1e-12)


def test_other_versions_of_pulp_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """PuLP 4 has other names and no solver: not a traceback from inside."""
    monkeypatch.setattr(assign_bits, "import_module", lambda _: SimpleNamespace(__version__="4.2.0"))
    with pytest.raises(BackendError, match=r"needs PuLP 2 or 3, this is 4\.2\.0"):
        assign_bits.import_pulp()
