"""Rules: local equations between two expressions, declared as two functions with one set of names.

    @rule
    class FuseSwish(Rule):
        '''x * sigmoid(x) = swish(x)'''
        claim = Within(ulps=4)
        @staticmethod
        def lhs(x): return Mul(x, Sigmoid(x))
        @staticmethod
        def rhs(x: Value): return Swish(x)

The annotations of `rhs` say what a name must be: `Value` anything, `Array` a constant (float64 data), `float` a
constant of one repeated element, `... | None` an optional input that may be absent.  Keyword-only parameters are
attributes of the matched nodes (the first that has one of that name, root first); `match` is the Match itself.
`guard` takes any of the same parameters and returns the sentence that says why the rule must not apply, or None, or a
mapping of what it found on the way: `rhs` takes that by name, annotated `Annotated[..., FromGuard]`.
Further functions called `lhs_...` are other spellings of the same left-hand side.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np

from qir.graph import Graph, Node, Value
from qir.types import Array

from .terms import Apply, Variable

EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Exact:
    """Both sides give the same bits."""

    def error(self, left: Array, right: Array) -> str | None:
        """None, or the sentence that says how the claim fails."""
        return None if np.array_equal(left, right) else "the bits differ"


@dataclass(frozen=True)
class Within:
    """Both sides agree within `ulps` units in the last place (float32) of the largest absolute value."""

    ulps: float

    def error(self, left: Array, right: Array) -> str | None:
        """None, or the sentence that says how the claim fails."""
        a, b = left.astype(np.float64), right.astype(np.float64)
        size = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
        worst = float(np.abs(a - b).max(initial=0))
        if not worst <= self.ulps * EPSILON * size:
            return f"{worst / (EPSILON * size):.1f} ulps apart, {self.ulps} claimed"
        return None


@dataclass(frozen=True)
class Example:
    """A random instance of a left-hand side, for the test of all rules.

    values: variable -> array (None: an absent optional input); names annotated Value become graph inputs.
    attrs:  operator -> attributes of its nodes.  batch: variables whose first axis is the symbolic batch.
    """

    values: Mapping[str, Any]
    attrs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    batch: tuple[str, ...] = ("x", "y")


@dataclass(frozen=True)
class Match:
    """Where a left-hand side was found: variable -> value, and the nodes in the pattern's order, root first."""

    graph: Graph
    values: dict[str, Value | None]
    nodes: tuple[Node, ...]

    @property
    def root(self) -> Node:
        return self.nodes[0]

    def node(self, op: str) -> Node:
        """The first matched node of operator `op`."""
        return next(n for n in self.nodes if n.op == op)


class Rule:
    """Base of all rules; see the module's docstring.  `@rule` registers a subclass."""

    claim: ClassVar[Exact | Within] = Exact()
    shared_nodes: ClassVar[bool] = False
    """Whether inner nodes may have other uses (they stay for those)."""
    shared_weights: ClassVar[bool] = False
    """Whether constants may have other users (those keep the old ones)."""
    near: ClassVar[bool] = True
    """Whether a match that fails on a condition is worth a line in the report."""
    expects_constants: ClassVar[bool] = True
    """Whether a match that fails because something is no constant is worth one too."""

    lhs: Callable[..., Any]
    rhs: Callable[..., Any]

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        """A random instance of the left-hand side."""
        raise NotImplementedError

    @classmethod
    def applied(cls, match: Match, arguments: Mapping[str, Any], result: Value) -> None:
        """Called after a rewrite, before the old nodes go; for facts that later passes need."""


class Affine(Rule):
    """Base: constants may be shared (the layer gets its own), and an operand that is no constant is no near miss."""

    shared_weights = True
    expects_constants = False


RULES: dict[str, type[Rule]] = {}


def rule(cls: type[Rule]) -> type[Rule]:
    """Class decorator: registers the rule, so that the test of all rules finds it."""
    if cls.__name__ in RULES:
        raise ValueError(f"rule {cls.__name__} is registered twice")
    RULES[cls.__name__] = cls
    return cls


@dataclass(frozen=True)
class Parameter:
    """What `rhs` or `guard` wants under one name: "value", "array", "number", "attribute" or (rhs) "found"."""

    name: str
    kind: str
    optional: bool = False


@dataclass(frozen=True)
class CompiledRule:
    """A rule, traced: left-hand sides as terms, the parameters of rhs, those that guard takes."""

    rule: type[Rule]
    name: str
    patterns: tuple[Apply, ...]
    parameters: dict[str, Parameter]
    guard: Callable[..., str | Findings | None] | None
    guard_names: tuple[str, ...]


Findings = Mapping[str, Any]
"""What a guard hands on to `rhs`, by name."""

FromGuard = "from guard"
"""Marks a parameter of `rhs` that the rule's guard hands on."""

KINDS = {"Value": "value", "Array": "array", "float": "number"}


@cache
def compile_rule(cls: type[Rule]) -> CompiledRule:
    """Trace a rule.  Raises TypeError where its functions and their annotations do not make sense."""
    parameters: dict[str, Parameter] = {}
    for p in inspect.signature(cls.rhs).parameters.values():
        text = str(p.annotation).replace(" ", "")
        if p.kind is p.KEYWORD_ONLY:
            parameters[p.name] = Parameter(p.name, "attribute")
            continue
        if text.startswith("Annotated["):
            parameters[p.name] = Parameter(p.name, "found")
            continue
        base, _, rest = text.partition("|")
        if base not in KINDS or rest not in ("", "None"):
            raise TypeError(f"rule {cls.__name__}: {p.name} is annotated {p.annotation!r}, not Value, Array or float")
        parameters[p.name] = Parameter(p.name, KINDS[base], rest == "None")
    patterns: list[Apply] = []
    for key in [k for base in reversed(cls.__mro__) for k in vars(base) if k == "lhs" or k.startswith("lhs_")]:
        function = getattr(cls, key)
        names = list(inspect.signature(function).parameters)
        pattern = function(*[Variable(n) for n in names])
        if not isinstance(pattern, Apply) or not set(names) <= set(parameters):
            raise TypeError(f"rule {cls.__name__}: {key} must be an operator over names that rhs has too")
        patterns.append(pattern)
    guard: Callable[..., str | Findings | None] | None = getattr(cls, "guard", None)
    names = tuple(inspect.signature(guard).parameters) if guard is not None else ()
    for name in names:
        parameters.setdefault(name, Parameter(name, "attribute"))
    return CompiledRule(cls, cls.__name__, tuple(patterns), parameters, guard, names)
