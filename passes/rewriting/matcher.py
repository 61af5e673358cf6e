"""Matching a rule's left-hand side at a node; a non-match answers with a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import Array

from .rules import CompiledRule, Match
from .terms import Apply, Variable

LITERAL_TOLERANCE = 2e-6
"""Relative; exporters write 1/6 or sqrt(2) in float32, or in as many digits as they like."""


@dataclass(frozen=True)
class Miss:
    """Why a left-hand side does not match.  near: its operators are all there, but a condition fails."""

    reason: str
    near: bool = False


@dataclass(frozen=True)
class Matched:
    """A match with the arguments that `rhs` takes."""

    match: Match
    arguments: dict[str, Any]
    sources: dict[int, Value]
    """id of an argument array -> the constant whose data it is."""


@dataclass(frozen=True)
class _MatchState:
    values: dict[str, Value | None]
    nodes: tuple[Node, ...]


def find(compiled: CompiledRule, graph: Graph, root: Node) -> Matched | Miss:
    """The rule at `root`: a match whose conditions hold, or the sentence of the spelling that came furthest."""
    best = Miss(f"no {compiled.patterns[0].op} node")
    for pattern in compiled.patterns:
        trace: list[tuple[int, str]] = []
        for state in _apply(pattern, root, _MatchState({}, ()), trace):
            match = Match(graph, state.values, state.nodes)
            got = _conditions(compiled, match)
            if isinstance(got, Matched):
                return got
            best = got
        if not best.near and trace:
            best = Miss(max(trace, key=lambda t: t[0])[1])
    return best


def _apply(pattern: Apply, node: Node, state: _MatchState, trace: list[tuple[int, str]]) -> Iterator[_MatchState]:
    depth = len(state.nodes)
    if node.op != pattern.op:
        trace.append((depth, f"{node} is no {pattern.op}"))
        return
    for key, wanted in pattern.attrs.items():
        if node.attrs.get(key) != wanted:
            trace.append((depth, f"{node} has {key} = {node.attrs.get(key)!r}, not {wanted!r}"))
            return
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    if len(inputs) > len(pattern.args):
        trace.append((depth, f"{node} has {len(inputs)} inputs, not {len(pattern.args)}"))
        return
    inputs += [None] * (len(pattern.args) - len(inputs))
    state = _MatchState(state.values, (*state.nodes, node))
    orders = [inputs]
    if op_of(pattern.op).commutative and len(inputs) == 2 and inputs[0] is not inputs[1]:
        orders.append(inputs[::-1])
    for order in orders:
        yield from _arguments(pattern.args, order, node, state, trace)


def _arguments(
    args: tuple[Any, ...], values: list[Value | None], node: Node, state: _MatchState, trace: list[tuple[int, str]]
) -> Iterator[_MatchState]:
    if not args:
        yield state
        return
    for after in _argument(args[0], values[0], node, state, trace):
        yield from _arguments(args[1:], values[1:], node, after, trace)


def _argument(
    arg: Any, value: Value | None, node: Node, state: _MatchState, trace: list[tuple[int, str]]
) -> Iterator[_MatchState]:
    depth = len(state.nodes)
    if isinstance(arg, Variable):
        if arg.name in state.values and state.values[arg.name] is not value:
            trace.append((depth, f"{node} takes another value for {arg.name}"))
            return
        yield _MatchState({**state.values, arg.name: value}, state.nodes)
    elif isinstance(arg, Apply):
        producer = value.producer if value is not None else None
        if value is None or producer is None or producer.outputs[0] is not value:
            trace.append((depth, f"{node} is not fed by a {arg.op}"))
            return
        yield from _apply(arg, producer, state, trace)
    elif arg is None:
        if value is not None:
            trace.append((depth, f"{node} has an input that the rule wants absent"))
            return
        yield state
    else:
        if value is None or value.data is None or not equals_number(value.data, float(arg)):
            trace.append((depth, f"an input of {node} is not the constant {arg:g}"))
            return
        yield state


def equals_number(data: Array, number: float) -> bool:
    """Whether a non-empty constant is `number` everywhere."""
    if data.size == 0 or data.dtype.kind not in "fiu":
        return False
    if np.isinf(number):
        return bool((data == number).all())
    return bool((np.abs(data.astype(np.float64) - number) <= LITERAL_TOLERANCE * max(abs(number), 1e-30)).all())


def _conditions(compiled: CompiledRule, match: Match) -> Matched | Miss:
    rule = compiled.rule
    if any(v.use_count or v.is_output for v in match.root.outputs[1:]):
        return Miss(f"{match.root} has another output in use", near=True)
    inner = set(match.nodes)
    arguments: dict[str, Any] = {}
    sources: dict[int, Value] = {}
    for name, parameter in compiled.parameters.items():
        if parameter.kind == "attribute":
            if name == "match":
                arguments[name] = match
                continue
            owner = next((n for n in match.nodes if name in n.attrs), None)
            if owner is None:
                return Miss(f"no matched node has the attribute {name}")
            arguments[name] = owner.attrs[name]
            continue
        if parameter.kind == "found":
            continue
        value = match.values.get(name)
        if value is None:
            if not parameter.optional:
                return Miss(f"{name} is absent", near=True)
            arguments[name] = None
        elif parameter.kind == "value":
            arguments[name] = value
        else:
            if value.data is None:
                return Miss(f"{name} is not a constant", near=rule.expects_constants)
            if not rule.shared_weights and value.data.size > 1:
                others = {n for n, _ in value.uses()} - inner if value.use_count <= 4 else {None}
                if others:
                    return Miss(f"{name} is shared by {value.use_count} uses", near=True)
            data = value.data.astype(np.float64) if value.data.dtype.kind == "f" else value.data
            if parameter.kind == "number":
                if data.size == 0 or not (data == data.reshape(-1)[0]).all():
                    return Miss(f"{name} is not a single number", near=True)
                arguments[name] = float(data.reshape(-1)[0])
            else:
                arguments[name] = data
                sources[id(data)] = value
    if not rule.shared_nodes:
        for node in match.nodes[1:]:
            users = {n for n, _ in node.output.uses()} if node.output.use_count <= 4 else None
            if node.output.is_output:
                return Miss(f"{node.output.name!r} of {node} is a graph output", near=True)
            if users is None or not users <= inner:
                return Miss(f"{node} has {node.output.use_count} uses", near=True)
    if compiled.guard is not None:
        reason = compiled.guard(**{n: arguments[n] for n in compiled.guard_names})
        if isinstance(reason, str):
            return Miss(reason, near=True)
        arguments.update(reason or {})
    taken = set(compiled.rule.rhs.__code__.co_varnames)
    return Matched(match, {n: v for n, v in arguments.items() if n in taken}, sources)
