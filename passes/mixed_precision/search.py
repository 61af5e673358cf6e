"""Mixed precision for a network: sensitivities, costs and groups from its graph, limits in words, the choice applied.

found = search(graph, batches, ranges, {"size": "0.75x"})
recipe = recipes.w4a8(layers=found.layers)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qir.cost import macs
from qir.errors import ParseError, QuantizationError
from qir.files import from_json, read_text
from qir.graph import Graph, Node
from qir.ops import op_of
from qir.types import Array

from ..quantization.insert_qdq import linear_nodes
from ..quantization.placement import first_and_last
from ..quantization.ranges import Ranges
from .assign_bits import Assignment, BitChoice, Problem, pareto, solve
from .cost_model import COSTS, Bits, LatencyTable, Work, format_bits, parse_bits
from .sensitivity import Sensitivity, check_choices, measure_sensitivity

CHOICES: tuple[Bits, ...] = ((4, 4), (4, 8), (8, 8))
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ms": 1e-3, "us": 1e-6, "s": 1.0}


@dataclass(frozen=True)
class SearchResult:
    """A search's result.  layers: what `InsertQdq` and recipes take.  uniform: all at 8/8, or their widest choices."""

    sensitivity: Sensitivity
    problem: Problem
    limits: Mapping[str, float]
    assignment: Assignment
    uniform: Assignment

    @property
    def layers(self) -> dict[str, Bits]:
        return dict(self.assignment.bits)

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{'layer':40s} bits  perturbation"]
        whole = "all at 8/8" if set(self.uniform.bits.values()) == {(8, 8)} else "the widest choices"
        for name, bits in self.assignment.bits.items():
            omega = self.sensitivity.layers[name][bits]
            lines.append(f"{name:40s} {format_bits(bits):5s} {omega:.4g}")
        for cost, value in self.assignment.costs.items():
            limit = f", limit {self.limits[cost]:.6g}" if cost in self.limits else ""
            share = value / self.uniform.costs[cost] if self.uniform.costs[cost] else 1.0
            lines.append(f"{cost}: {value:.6g} ({share:.3f} of {whole}{limit})")
        return "\n".join(lines)


def same_input(graph: Graph) -> list[Collection[str]]:
    """Groups of linear layers that read one tensor: it is quantized once, the weights of each by themselves."""
    groups: dict[str, list[str]] = {}
    for node in linear_nodes(graph):
        groups.setdefault(node.input(0).name, []).append(node.name)
    return [names for names in groups.values() if len(names) > 1]


def joined(graph: Graph) -> list[Collection[str]]:
    """Groups of linear layers whose results a sum joins (through activations and pools of a single use)."""

    def source(node: Node | None) -> str | None:
        while node is not None and not op_of(node.op).linear:
            # policy: where following one input ends
            if node.op in ("Add", "Sub", "Concat", "Mul") or not node.inputs:
                return None
            node = node.input(0).producer
        return None if node is None else node.name

    known = {n.name for n in linear_nodes(graph)}
    groups: list[Collection[str]] = []
    for node in graph.nodes:
        if op_of(node.op).additive:
            ends = [source(v.producer) for v in node.inputs if v is not None]
            names = list(dict.fromkeys(e for e in ends if e is not None and e in known))
            if len(names) > 1:
                groups.append(names)
    return groups


def problem_of(
    graph: Graph,
    sensitivity: Sensitivity,
    *,
    latency: LatencyTable | None = None,
    pin_ends: bool = True,
    residual_groups: bool = False,
    pinned: Mapping[str, Bits] | None = None,
    forbidden: Mapping[str, Collection[Bits]] | None = None,
) -> Problem:
    """The program of a float graph's linear layers.

    pin_ends: first and last layers keep 8/8.  residual_groups: layers that a sum joins have the same bits.
    latency: a table for all layers and choices; without it there is no cost "latency".  Layers that read one tensor
    have the same bits of it, and weights of any.
    Raises QuantizationError where the table or the sensitivities lack a layer.
    """
    layers: dict[str, list[BitChoice]] = {}
    for node in linear_nodes(graph):
        if not node.input(1).is_constant:
            continue
        if node.name not in sensitivity.layers:
            raise QuantizationError(
                "has no sensitivity", where=f"layer {node.name!r}", hint="measure this graph, prepared by this recipe"
            )
        work = Work(macs(node), int(node.input(1).array().size))
        row: list[BitChoice] = []
        for bits, omega in sensitivity.layers[node.name].items():
            costs = {name: cost(work, bits) for name, cost in COSTS.items()}
            if latency is not None:
                try:
                    costs["latency"] = float(latency[node.name][bits])
                except KeyError:
                    raise QuantizationError(
                        f"the latency table has no {format_bits(bits)}", where=f"layer {node.name!r}"
                    ) from None
            row.append(BitChoice(bits, omega, costs))
        layers[node.name] = row
    fixed = dict(pinned or {})
    if pin_ends:
        for node in first_and_last(graph):
            if node.name in layers and any(c.bits == (8, 8) for c in layers[node.name]):
                fixed.setdefault(node.name, (8, 8))
    shared = [known for g in same_input(graph) if len(known := [n for n in g if n in layers]) > 1]
    groups = joined(graph) if residual_groups else []
    return Problem(layers, groups, fixed, forbidden or {}, shared)


def limit_of(text: str | float, cost: str, uniform: Assignment) -> float:
    """A limit: a number, "0.75x" of all layers at 8/8, or a number with a unit ("1.5MB", "20G", "3ms").

    Raises ParseError, QuantizationError for a cost that is not there.
    """
    if cost not in uniform.costs:
        hint = "give a latency table" if cost == "latency" else f"there are {', '.join(uniform.costs)}"
        raise QuantizationError(f"no cost {cost!r} to limit", hint=hint)
    if isinstance(text, int | float):
        return float(text)
    lowered = str(text).strip().lower()
    try:
        if lowered.endswith("x"):
            return float(lowered[:-1]) * uniform.costs[cost]
        for unit in sorted(_UNITS, key=len, reverse=True):
            if lowered.endswith(unit):
                return float(lowered[: -len(unit)]) * _UNITS[unit]
        return float(lowered)
    except ValueError:
        raise ParseError(f"{text!r} is no limit of {cost}", hint='write "0.75x", "1.5MB", "20G" or a number') from None


def load_latency(path: str | Path) -> LatencyTable:
    """A JSON table {layer: {"4/8": seconds, ...}}.  Raises ParseError."""
    return from_json(read_text(path), _latency, "latency table", str(path))


def _latency(raw: Any) -> LatencyTable:
    return {str(n): {parse_bits(b): float(v) for b, v in row.items()} for n, row in raw.items()}


def search(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    ranges: Ranges,
    limits: Mapping[str, str | float],
    *,
    measure: str = "fisher",
    choices: Sequence[Bits] | None = None,
    sensitivity: Sensitivity | None = None,
    latency: LatencyTable | None = None,
    pin_ends: bool = True,
    residual_groups: bool = False,
    pinned: Mapping[str, Bits] | None = None,
    forbidden: Mapping[str, Collection[Bits]] | None = None,
    loss: str = "cross_entropy",
) -> SearchResult:
    """The bits of each layer of a float graph that meet the limits and disturb it least.

    limits: cost -> limit as `limit_of` reads it.  sensitivity: measured before; else it is measured here.
    choices: default CHOICES, or those that `sensitivity` has.  The rest: see `problem_of`.
    Raises InfeasibleError with the nearest feasible limits, and what measuring and solving raise.
    """
    unit: dict[str, float] = dict.fromkeys(COSTS, 1.0) | ({} if latency is None else {"latency": 1.0})
    for cost, text in limits.items():
        limit_of(text, cost, Assignment({}, 0.0, unit))  # what is no limit is found out before the long work
    if sensitivity is None:
        sensitivity = measure_sensitivity(
            graph, batches, ranges, measure=measure, choices=choices or CHOICES, loss=loss
        )
    elif choices:
        sensitivity = narrowed(sensitivity, choices)
    problem = problem_of(
        graph, sensitivity, latency=latency, pin_ends=pin_ends, residual_groups=residual_groups, pinned=pinned,
        forbidden=forbidden,
    )  # fmt: skip
    uniform = problem.uniform((8, 8))
    numbers = {cost: limit_of(text, cost, uniform) for cost, text in limits.items()}
    return SearchResult(sensitivity, problem, numbers, solve(problem, numbers), uniform)


def narrowed(sensitivity: Sensitivity, choices: Sequence[Bits]) -> Sensitivity:
    """Sensitivities for these choices only.  Raises QuantizationError where a layer has not all of them."""
    check_choices(choices)
    for name, row in sensitivity.layers.items():
        for bits in choices:
            if bits not in row:
                raise QuantizationError(f"sensitivity at {format_bits(bits)} was not measured", where=f"layer {name!r}")
    layers = {name: {bits: row[bits] for bits in choices} for name, row in sensitivity.layers.items()}
    return Sensitivity(sensitivity.measure, layers, sensitivity.details)


def curve(found: SearchResult, cost: str, points: int = 17) -> list[Assignment]:
    """The Pareto curve of perturbation over one cost, the other limits of the search holding."""
    return pareto(found.problem, cost, points, {k: v for k, v in found.limits.items() if k != cost})
