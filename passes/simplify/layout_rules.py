"""Transposes of NHWC exports, moved downwards through what works in any layout until two of them cancel."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.rules import Example, Match, Rule, rule
from ..rewriting.terms import Clip, Concat, ReduceMean, Softmax, Transpose, constructor
from .cleanup_rules import order, random_tensor

ANY_LAYOUT = (
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Swish", "Gelu", "Elu", "Softplus", "Erf",
    "Exp", "Sqrt", "Abs", "Neg", "Identity",
)  # fmt: skip
"""A choice among the operators that are `pointwise`: those that exporters leave between two layouts."""


def perm_of(match: Match, rank: int) -> list[int]:
    """The matched Transpose's permutation."""
    return order(match.node("Transpose").attrs["perm"], rank)


def layout_example(rng: np.random.Generator, **more: Any) -> Example:
    """x of four axes under a Transpose between the two layouts."""
    perm = [[0, 2, 3, 1], [0, 3, 1, 2]][int(rng.integers(0, 2))]
    return Example({"x": np.abs(random_tensor(rng, (2, 3, 4, 5))) + 0.5, **more}, {"Transpose": {"perm": perm}})


class Layout(Rule):
    """Base: exact; the Transpose stays for its other users."""

    shared_nodes = True
    shared_weights = True
    near = False


def push_through(op: str) -> type[Rule]:
    """The rule f(transpose(x)) = transpose(f(x)) for one unary operator."""
    apply = constructor(op)

    class Push(Layout):
        @staticmethod
        def lhs(x: Any) -> Any:
            return apply(Transpose(x))

        @staticmethod
        def rhs(x: Value, *, match: Match) -> Any:
            return Transpose(apply(x), perm=perm_of(match, x.type.rank))

        @staticmethod
        def example(rng: np.random.Generator) -> Example:
            return layout_example(rng)

    Push.__name__ = Push.__qualname__ = f"Transpose{op}"
    Push.__doc__ = f"{op}(transpose(x)) = transpose({op}(x))"
    return rule(Push)


UNARY_RULES = tuple(push_through(op) for op in ANY_LAYOUT)


def before(c: Array, perm: list[int]) -> Array:
    """A constant that broadcasts against transpose(x, perm), as one that broadcasts against x."""
    full = c.reshape((1,) * (len(perm) - c.ndim) + c.shape)
    return full.transpose(np.argsort(perm))


@rule
class TransposeClip(Layout):
    """clip(transpose(x), lo, hi) = transpose(clip(x, lo, hi))"""

    @staticmethod
    def lhs(x: Any, lo: Any, hi: Any) -> Any:
        return Clip(Transpose(x), lo, hi)

    @staticmethod
    def rhs(x: Value, lo: Value | None, hi: Value | None, *, match: Match) -> Any:
        return Transpose(Clip(x, lo, hi), perm=perm_of(match, x.type.rank))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return layout_example(rng, lo=None, hi=np.asarray(1.0, np.float32))


def push_binary(op: str) -> tuple[type[Rule], type[Rule]]:
    """The two rules for one binary operator: both operands transposed alike; the other a constant."""
    apply = constructor(op)

    class Both(Layout):
        @staticmethod
        def lhs(x: Any, y: Any) -> Any:
            return apply(Transpose(x), Transpose(y))

        @staticmethod
        def guard(x: Value, y: Value, match: Match) -> str | None:
            a, b = (order(n.attrs["perm"], n.output.type.rank) for n in match.nodes[1:])
            return None if a == b else "the two are transposed differently"

        @staticmethod
        def rhs(x: Value, y: Value, *, match: Match) -> Any:
            return Transpose(apply(x, y), perm=perm_of(match, x.type.rank))

        @staticmethod
        def example(rng: np.random.Generator) -> Example:
            return layout_example(rng, y=random_tensor(rng, (2, 3, 4, 5)))

    class Constant(Layout):
        @staticmethod
        def lhs(x: Any, c: Any) -> Any:
            return apply(Transpose(x), c)

        @staticmethod
        def guard(x: Value, c: Array) -> str | None:
            return None if c.ndim <= x.type.rank else "the constant has more axes"

        @staticmethod
        def rhs(x: Value, c: Array, *, match: Match) -> Any:
            perm = perm_of(match, x.type.rank)
            return Transpose(apply(x, before(c, perm)), perm=perm)

        @staticmethod
        def example(rng: np.random.Generator) -> Example:
            example = layout_example(rng)
            perm = example.attrs["Transpose"]["perm"]
            return Example({**example.values, "c": random_tensor(rng, ((2, 3, 4, 5)[perm[3]],))}, example.attrs)

    Both.__name__ = Both.__qualname__ = f"Transpose{op}Both"
    Both.__doc__ = f"{op}(transpose(x), transpose(y)) = transpose({op}(x, y))"
    Constant.__name__ = Constant.__qualname__ = f"Transpose{op}Constant"
    Constant.__doc__ = f"{op}(transpose(x), c) = transpose({op}(x, c transposed back))"
    return rule(Both), rule(Constant)


BINARY_RULES = tuple(r for op in ("Add", "Mul", "Sub", "Max", "Min") for r in push_binary(op))


@rule
class TransposeConcat(Layout):
    """concat(transpose(a), transpose(b), ...) = transpose(concat(a, b, ...)), all transposed alike"""

    @staticmethod
    def lhs(a: Any, b: Any) -> Any:
        return Concat(Transpose(a), Transpose(b))

    @staticmethod
    def lhs_three(a: Any, b: Any, c: Any) -> Any:
        return Concat(Transpose(a), Transpose(b), Transpose(c))

    @staticmethod
    def lhs_four(a: Any, b: Any, c: Any, d: Any) -> Any:
        return Concat(Transpose(a), Transpose(b), Transpose(c), Transpose(d))

    @staticmethod
    def guard(match: Match) -> str | None:
        perms = {tuple(order(n.attrs["perm"], n.output.type.rank)) for n in match.nodes[1:]}
        return None if len(perms) == 1 else "they are transposed differently"

    @staticmethod
    def rhs(a: Value, b: Value, c: Value | None, d: Value | None, *, match: Match, axis: int) -> Any:
        perm = perm_of(match, a.type.rank)
        parts = [v for v in (a, b, c, d) if v is not None]
        return Transpose(Concat(*parts, axis=perm[axis]), perm=perm)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        perm = [[0, 2, 3, 1], [0, 3, 1, 2]][int(rng.integers(0, 2))]
        values = {k: random_tensor(rng, (2, 3, 3, 3)) for k in "abcd"}
        return Example(values, {"Transpose": {"perm": perm}, "Concat": {"axis": int(rng.choice([1, 3, -1]))}})


@rule
class TransposeReduceMean(Layout):
    """mean(transpose(x), axes) = mean(x, perm[axes]), where the axes that stay keep their order; else transposed"""

    @staticmethod
    def lhs(x: Any, axes: Any) -> Any:
        return ReduceMean(Transpose(x), axes)

    @staticmethod
    def guard(x: Value, axes: Array, keepdims: int, match: Match) -> str | None:
        perm = perm_of(match, x.type.rank)
        gone = {int(a) % len(perm) for a in axes.reshape(-1)}
        stay = [p for i, p in enumerate(perm) if i not in gone]
        return None if keepdims or stay == sorted(stay) else "the axes that stay change their order"

    @staticmethod
    def rhs(x: Value, axes: Array, *, keepdims: int, match: Match) -> Any:
        perm = perm_of(match, x.type.rank)
        mean = ReduceMean(x, np.asarray([perm[int(a)] for a in axes.reshape(-1)], np.int64))
        return Transpose(mean, perm=perm) if keepdims else mean

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values = {"x": random_tensor(rng, (2, 3, 4, 5)), "axes": np.asarray([1, 2])}
        attrs = {"Transpose": {"perm": [0, 2, 3, 1]}, "ReduceMean": {"keepdims": int(rng.integers(0, 2))}}
        return Example(values, attrs)


@rule
class TransposeSoftmax(Layout):
    """softmax(transpose(x), axis) = transpose(softmax(x, perm[axis]))"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Softmax(Transpose(x))

    @staticmethod
    def rhs(x: Value, *, axis: int, match: Match) -> Any:
        perm = perm_of(match, x.type.rank)
        return Transpose(Softmax(x, axis=perm[axis]), perm=perm)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return layout_example(rng)


LAYOUT_RULES: tuple[type[Rule], ...] = (
    *UNARY_RULES, TransposeClip, *BINARY_RULES, TransposeConcat, TransposeReduceMean, TransposeSoftmax,
)  # fmt: skip
