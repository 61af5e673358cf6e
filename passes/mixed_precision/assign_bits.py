"""Mixed precision by integer linear programming: which bits for which layer.

    minimize    sum_i Omega_i(b_i)                                                                   [HAWQ-V3 eq. 11]
    subject to  sum_i C_i(b_i) <= limit, for each cost C that is limited: size, bops, latency ...    [eq. 12-14]

One binary variable for each choice of each *block*: layers that must agree are one block, and have the choices that
all its members have. Solved by CBC through PuLP (`pip install qir[ilp]`), to proven optimality.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from qir.errors import BackendError, QuantizationError

from .cost_model import Bits, format_bits

CUTS = 50
"""Assignments that may be cut off because only the solver's tolerance made them feasible."""

ROUNDING = 1e-12
"""Share of a limit by which a sum may exceed it: what adding numbers in another order makes of an equal one."""

UNITS = 1e6
"""What the perturbations of the worst assignment sum to: a solution that is better by a unit of 1e-5 is still found."""

LEAST_SHARE = 1e-6
"""Of the way from the least cost to the greatest: limits nearer to the least are not stretched further."""


@dataclass(frozen=True)
class BitChoice:
    """A layer at `bits`: what it does to the network (Omega >= 0) and what it costs, by cost name."""

    bits: Bits
    perturbation: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Assignment:
    """bits: layer -> its choice.  perturbation, costs: the sums over the layers.  seconds: of solving."""

    bits: Mapping[str, Bits]
    perturbation: float
    costs: Mapping[str, float]
    seconds: float = 0.0


class InfeasibleError(QuantizationError):
    """No assignment meets the limits. `nearest`: limits that are met, each exceeded by the least common fraction."""

    def __init__(self, message: str, nearest: Mapping[str, float], *, hint: str) -> None:
        self.nearest = dict(nearest)
        super().__init__(message, hint=hint)


@dataclass(frozen=True)
class Problem:
    """Layers and their choices, and what is decided about them beforehand.

    layers:    name -> choices; the same cost names in all of them.
    groups:    layers that must have the same bits (groups that share a layer are one).
    shared:    layers that read one tensor: the same bits of the input, whatever their weights have.
    pinned:    layer -> the bits it must have.
    forbidden: layer -> bits it must not have.
    Raises QuantizationError where a name is unknown, a figure is not finite, bits come twice, or a group has no choice.
    """

    layers: Mapping[str, Sequence[BitChoice]]
    groups: Sequence[Collection[str]] = ()
    pinned: Mapping[str, Bits] = field(default_factory=dict[str, Bits])
    forbidden: Mapping[str, Collection[Bits]] = field(default_factory=dict[str, Collection[Bits]])
    shared: Sequence[Collection[str]] = ()

    def __post_init__(self) -> None:
        named = [*self.pinned, *self.forbidden, *(name for group in (*self.groups, *self.shared) for name in group)]
        for name in named:
            if name not in self.layers:
                raise QuantizationError("no such layer to assign bits to", where=f"layer {name!r}")
        for name, choices in self.layers.items():
            if len({c.bits for c in choices}) < len(choices):
                raise QuantizationError("has two choices of the same bits", where=f"layer {name!r}")
            for c in choices:
                if set(c.costs) != self.cost_names:
                    raise QuantizationError(
                        f"{format_bits(c.bits)} has other costs than the rest", where=f"layer {name!r}"
                    )
                if not all(math.isfinite(v) and v >= 0 for v in (c.perturbation, *c.costs.values())):
                    raise QuantizationError(
                        f"{format_bits(c.bits)} has a figure that is negative or not finite", where=f"layer {name!r}"
                    )
        self._check_inputs()

    def sharing(self) -> list[list[int]]:
        """Numbers of the blocks that must agree on the bits of their inputs, for each group of `shared`."""
        number = {name: i for i, (members, _) in enumerate(self.blocks()) for name in members}
        groups = (list(dict.fromkeys(number[name] for name in group)) for group in self.shared)
        return [group for group in groups if len(group) > 1]

    def _check_inputs(self) -> None:
        """Raises QuantizationError where layers that read one tensor have no width of it in common."""
        blocks = self.blocks()
        widths = [{c.bits[1] for c in choices} for _, choices in blocks]
        groups, changed = self.sharing(), True
        while changed:
            changed = False
            for group in groups:
                common = set.intersection(*(widths[i] for i in group))
                if not common:
                    names = ", ".join(name for i in group for name in blocks[i][0])
                    raise QuantizationError(
                        f"no bits of the tensor that {names} read are left",
                        hint="they must agree on it; loosen what is pinned or forbidden, or add choices",
                    )
                for i in group:
                    changed, widths[i] = changed or widths[i] != common, common

    @property
    def cost_names(self) -> set[str]:
        return next((set(c.costs) for cs in self.layers.values() for c in cs), set())

    def blocks(self) -> list[tuple[tuple[str, ...], list[BitChoice]]]:
        """(members, the choices they share, summed over the members) of each block, in the layers' order."""
        parent = {name: name for name in self.layers}

        def find(name: str) -> str:
            while parent[name] != name:
                parent[name] = parent[parent[name]]
                name = parent[name]
            return name

        for group in self.groups:
            first, *rest = list(group) or [""]
            for name in rest:
                parent[find(name)] = find(first)
        members: dict[str, list[str]] = {}
        for name in self.layers:
            members.setdefault(find(name), []).append(name)
        return [(tuple(names), self._shared(names)) for names in members.values()]

    def _shared(self, names: Sequence[str]) -> list[BitChoice]:
        by_name = {name: {c.bits: c for c in self.layers[name] if self._allowed(name, c.bits)} for name in names}
        result: list[BitChoice] = []
        for bits in by_name[names[0]]:
            if all(bits in by_name[name] for name in names):
                found = [by_name[name][bits] for name in names]
                costs = {k: math.fsum(c.costs[k] for c in found) for k in self.cost_names}
                result.append(BitChoice(bits, math.fsum(c.perturbation for c in found), costs))
        if not result:
            raise QuantizationError(
                f"no choice is left for {', '.join(names)}",
                hint="they must agree; loosen what is pinned or forbidden, or add choices",
            )
        return result

    def _allowed(self, name: str, bits: Bits) -> bool:
        return self.pinned.get(name, bits) == bits and bits not in self.forbidden.get(name, ())

    def uniform(self, bits: Bits) -> Assignment:
        """All layers at `bits`, but for those that cannot: these take their widest choice."""
        return self.total({
            name: next((c.bits for c in choices if c.bits == bits), max(c.bits for c in choices))
            for members, choices in self.blocks() for name in members
        })  # fmt: skip

    def total(self, bits: Mapping[str, Bits], seconds: float = 0.0) -> Assignment:
        """What an assignment amounts to."""
        ordered = {name: bits[name] for name in self.layers}
        chosen = [next(c for c in self.layers[name] if c.bits == b) for name, b in ordered.items()]
        costs = {k: math.fsum(c.costs[k] for c in chosen) for k in sorted(self.cost_names)}
        return Assignment(ordered, math.fsum(c.perturbation for c in chosen), costs, seconds)


def solve(problem: Problem, limits: Mapping[str, float]) -> Assignment:
    """The assignment of least perturbation whose costs are within `limits` (cost name -> greatest sum).

    Raises InfeasibleError with the nearest limits that can be met, QuantizationError for a cost that is not there,
    BackendError where PuLP is not installed.
    """
    start = time.perf_counter()
    for name, limit in limits.items():
        if name not in problem.cost_names:
            known = ", ".join(sorted(problem.cost_names)) or "none"
            raise QuantizationError(f"no cost {name!r} to limit", hint=f"there are {known}")
        if not limit > 0:  # nor NaN
            raise QuantizationError(f"limit {limit} of {name!r} is not positive")
    model = _Model(problem, limits)
    found = model.solve()
    if found is None:
        nearest = _nearest(problem, limits)
        shown = ", ".join(f"{k} {v:.6g} (asked {limits[k]:.6g})" for k, v in nearest.items())
        raise InfeasibleError("no assignment meets the limits", nearest, hint=f"nearest that can be met: {shown}")
    return problem.total(found, time.perf_counter() - start)


def pareto(
    problem: Problem, cost: str, points: int = 17, limits: Mapping[str, float] | None = None
) -> list[Assignment]:
    """Assignments along a sweep of one limit from the least to the greatest cost; dominated ones left out.

    limits: further limits, which hold all along.  Both cost and perturbation are strictly monotonic in the result.
    """
    if cost not in problem.cost_names:
        raise QuantizationError(f"no cost {cost!r} to sweep", hint=f"there are {', '.join(sorted(problem.cost_names))}")
    others = {k: v for k, v in (limits or {}).items() if k != cost}
    ends = [sum(pick(c.costs[cost] for c in choices) for _, choices in problem.blocks()) for pick in (min, max)]
    found: list[Assignment] = []
    for i in range(points):
        limit = ends[0] + (ends[1] - ends[0]) * i / max(points - 1, 1)
        try:
            one = solve(problem, {**others, cost: limit})
        except InfeasibleError:
            continue
        if not found or one.perturbation < found[-1].perturbation:
            found.append(one)
    return found


def _nearest(problem: Problem, limits: Mapping[str, float]) -> dict[str, float]:
    """Costs of the assignment that exceeds its limits by the least common fraction (limits that hold stay as asked)."""
    ends = {k: math.fsum(min(c.costs[k] for c in choices) for _, choices in problem.blocks()) for k in limits}
    # next to nothing is a limit like any other that is far too small; fractions of it would mean nothing
    found = _Model(problem, {k: max(v, 1e-6 * ends[k]) for k, v in limits.items()}, relaxed=True).solve()
    assert found is not None  # the relaxed problem always has a solution
    costs = problem.total(found).costs
    return {k: max(costs[k], limit) for k, limit in limits.items()}


class _Model:
    """The integer program, in figures that the solver's tolerances (1e-6 or so, absolute) suit.

    Each block counts what it adds to its own least cost and least perturbation, so that the common part of large sums
    takes no digits.  Units: what a limit leaves above the least is 1, the perturbations sum to UNITS.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, float], relaxed: bool = False) -> None:
        self.pulp, self.problem, self.limits, self.relaxed = import_pulp(), problem, limits, relaxed
        p = self.pulp
        self.blocks = problem.blocks()
        self.model = p.LpProblem("assign_bits", p.LpMinimize)
        self.x = [
            [self._variable(f"x_{i}_{j}", cat="Binary") for j in range(len(choices))]
            for i, (_, choices) in enumerate(self.blocks)
        ]
        excess = self._variable("excess", lowBound=0) if relaxed else 0
        omega = self._rises(lambda c: c.perturbation)
        top = math.fsum(max(row) for row in omega)
        self.model += excess if relaxed else self._sum(omega, UNITS / top if top > 0 else 1.0)
        for row in self.x:
            self.model += p.lpSum(row) == 1
        for first, *others in problem.sharing():
            for width in sorted({c.bits[1] for i in (first, *others) for c in self.blocks[i][1]}):
                one, *rest = (self._with_input(i, width) for i in (first, *others))
                for other in rest:
                    self.model += one == other
        for name, limit in limits.items():
            rises = self._rises(lambda c, name=name: c.costs[name])
            top = math.fsum(max(row) for row in rises)
            left = limit * (1 + ROUNDING) - math.fsum(min(c.costs[name] for c in choices) for _, choices in self.blocks)
            if relaxed:
                unit = max(abs(left), top) or 1.0
                self.model += self._sum(rises, 1 / unit) <= left / unit + excess * (limit / unit)
            elif left < top:  # else it limits nothing
                unit = max(left, LEAST_SHARE * top) or 1.0
                self.model += self._sum(rises, 1 / unit) <= left / unit

    def _with_input(self, block: int, width: int) -> Any:
        """1 where the block's choice has this width of its input."""
        choices = self.blocks[block][1]
        return self.pulp.lpSum(x for x, c in zip(self.x[block], choices, strict=True) if c.bits[1] == width)

    def _variable(self, name: str, **options: Any) -> Any:
        """PuLP 3.3 and later make variables through the problem, earlier ones by themselves."""
        make = getattr(self.model, "add_variable", None) or self.pulp.LpVariable
        return make(name, **options)

    def _rises(self, figure: Callable[[BitChoice], float]) -> list[list[float]]:
        """A figure of each choice, above the least of its block."""
        rows = [[figure(c) for c in choices] for _, choices in self.blocks]
        return [[value - min(row) for value in row] for row in rows]

    def _sum(self, figures: list[list[float]], factor: float) -> Any:
        return self.pulp.lpSum(
            factor * figure * v
            for figures_of, row in zip(figures, self.x, strict=True)
            for figure, v in zip(figures_of, row, strict=True)
        )

    def solve(self) -> dict[str, Bits] | None:
        """Layer -> bits; None where nothing is feasible."""
        solver = make_solver(self.pulp)
        for _ in range(CUTS):
            self.model.solve(solver)
            if self.model.status != self.pulp.LpStatusOptimal:
                return None
            picks = [max(range(len(row)), key=lambda j, row=row: row[j].value()) for row in self.x]
            bits = {
                name: choices[j].bits
                for (members, choices), j in zip(self.blocks, picks, strict=True)
                for name in members
            }
            costs = self.problem.total(bits).costs
            if self.relaxed or all(costs[k] <= limit * (1 + ROUNDING) for k, limit in self.limits.items()):
                return bits
            # only the solver's tolerance made it feasible: exclude exactly this assignment
            chosen = [row[j] for row, j in zip(self.x, picks, strict=True)]
            self.model += self.pulp.lpSum(chosen) <= len(chosen) - 1
        return None


def import_pulp() -> Any:
    """The PuLP module.  Raises BackendError where it is not installed, or is another library than PuLP 2 and 3."""
    try:
        pulp = import_module("pulp")
    except ImportError as error:
        raise BackendError(
            "assigning bits needs PuLP, which cannot be imported", hint="pip install qir[ilp]"
        ) from error
    if not hasattr(pulp, "PULP_CBC_CMD"):  # 4 has other names, brings no solver and rounds the numbers that it hands on
        version = getattr(pulp, "__version__", "?")
        raise BackendError(f"assigning bits needs PuLP 2 or 3, this is {version}", hint="pip install qir[ilp]")
    return pulp


def make_solver(pulp: Any) -> Any:
    """CBC to proven optimality, the one that comes with PuLP."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PuLP 3.3 announces that 4 will not bundle it
        solver = pulp.PULP_CBC_CMD(msg=False, threads=1, gapRel=0.0, gapAbs=0.0)
    if not solver.available():
        raise BackendError("PuLP's own CBC cannot be run here", hint="pip install qir[ilp]")
    return solver


def merge_groups(*kinds: Iterable[Collection[str]]) -> list[Collection[str]]:
    """Groups of several kinds in one list, those of a single layer left out."""
    return [group for kind in kinds for group in kind if len(group) > 1]
