"""Differences and quotients with constants as sums and products, and several of those as one."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.rules import Affine, Example, Rule, Within, rule
from ..rewriting.terms import Add, Div, Mul, Sub
from .conv_rules import CONV_RULES
from .gemm_rules import GEMM_RULES


def grown(a: Array, b: Array) -> str | None:
    """The sentence for two constants whose combination is larger than either."""
    size = np.broadcast(a, b).size
    return None if size <= max(a.size, b.size) else f"together the constants have {size} elements"


@rule
class SubToAdd(Affine):
    """x - c = x + (-c)"""

    near = False

    @staticmethod
    def lhs(x: Any, c: Any) -> Any:
        return Sub(x, c)

    @staticmethod
    def guard(x: Value, c: Array) -> str | None:
        return None if x.dtype.is_float and not x.is_constant else "not a float tensor and a constant"

    @staticmethod
    def rhs(x: Value, c: Array) -> Any:
        return Add(x, -c)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({k: rng.normal(size=s).astype(np.float32) for k, s in (("x", (2, 3, 4)), ("c", (3, 1)))})


@rule
class DivToMul(Affine):
    """x / c = x * (1 / c)"""

    claim = Within(ulps=2)
    near = False

    @staticmethod
    def lhs(x: Any, c: Any) -> Any:
        return Div(x, c)

    @staticmethod
    def guard(x: Value, c: Array) -> str | None:
        if not x.dtype.is_float or x.is_constant:
            return "not a float tensor and a constant"
        return None if (np.abs(c) > 1e-30).all() else "the divisor is zero somewhere"

    @staticmethod
    def rhs(x: Value, c: Array) -> Any:
        return Mul(x, 1.0 / c)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x = rng.normal(size=(2, 3, 4)).astype(np.float32)
        return Example({"x": x, "c": (rng.uniform(0.1, 9, size=(3, 1)) * rng.choice([-1, 1])).astype(np.float32)})


@rule
class MulMul(Affine):
    """(x a) b = x (a b)"""

    claim = Within(ulps=4)
    near = False

    @staticmethod
    def lhs(x: Any, a: Any, b: Any) -> Any:
        return Mul(Mul(x, a), b)

    @staticmethod
    def guard(a: Array, b: Array) -> str | None:
        return grown(a, b)

    @staticmethod
    def rhs(x: Value, a: Array, b: Array) -> Any:
        return Mul(x, a * b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (3, 1), (3, 4)))
        return Example({"x": x, "a": a, "b": b})


@rule
class AddAdd(Affine):
    """(x + a) + b = x + (a + b)"""

    claim = Within(ulps=8)
    near = False

    @staticmethod
    def lhs(x: Any, a: Any, b: Any) -> Any:
        return Add(Add(x, a), b)

    @staticmethod
    def guard(a: Array, b: Array) -> str | None:
        return grown(a, b)

    @staticmethod
    def rhs(x: Value, a: Array, b: Array) -> Any:
        return Add(x, a + b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (3, 1), (3, 4)))
        return Example({"x": x, "a": a, "b": b})


AFFINE_RULES: tuple[type[Rule], ...] = (SubToAdd, DivToMul, MulMul, AddAdd, *GEMM_RULES, *CONV_RULES)
