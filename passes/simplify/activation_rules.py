"""Activations spelled out in elementary operators, back into one operator each.

Divisions and subtractions of constants are products and sums by the time these rules look (see affine_rules).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.matcher import equals_number
from ..rewriting.rules import Example, Match, Rule, Within, rule
from ..rewriting.terms import (  # fmt: skip
    Add,
    Clip,
    Erf,
    Gelu,
    HardSigmoid,
    HardSwish,
    LeakyRelu,
    Max,
    Mul,
    Neg,
    Pow,
    PRelu,
    Relu,
    Sigmoid,
    Swish,
    Tanh,
)


def signal(rng: np.random.Generator, scale: float = 3.0) -> Example:
    """x alone."""
    return Example({"x": rng.normal(scale=scale, size=(2, 3, 40)).astype(np.float32)})


class OfX(Rule):
    """Base of the rules in x alone."""

    claim = Within(ulps=16)
    near = False

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return signal(rng)


@rule
class FuseSwish(OfX):
    """x sigmoid(x) = swish(x)"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(x, Sigmoid(x))

    @staticmethod
    def rhs(x: Value) -> Any:
        return Swish(x, alpha=1.0)


@rule
class FuseScaledSwish(OfX):
    """x sigmoid(a x) = swish(x; a)"""

    @staticmethod
    def lhs(x: Any, a: Any) -> Any:
        return Mul(x, Sigmoid(Mul(x, a)))

    @staticmethod
    def rhs(x: Value, a: float) -> Any:
        return Swish(x, alpha=a)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "a": np.float32(rng.uniform(0.5, 2))})


@rule
class FuseHardSigmoid(OfX):
    """clip(x + 3, 0, 6) / 6 = hardsigmoid(x; 1/6, 1/2)"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(Clip(Add(x, 3.0), 0.0, 6.0), 1 / 6)

    @staticmethod
    def lhs_scaled_first(x: Any) -> Any:
        return Clip(Mul(Add(x, 3.0), 1 / 6), 0.0, 1.0)

    @staticmethod
    def lhs_affine(x: Any) -> Any:
        return Clip(Add(Mul(x, 1 / 6), 0.5), 0.0, 1.0)

    @staticmethod
    def rhs(x: Value) -> Any:
        return HardSigmoid(x, alpha=1 / 6, beta=0.5)


@rule
class FuseHardSwish(OfX):
    """x hardsigmoid(x; 1/6, 1/2) = x clip(x + 3, 0, 6) / 6 = hardswish(x)             [MobileNetV3]"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(Mul(x, Clip(Add(x, 3.0), 0.0, 6.0)), 1 / 6)

    @staticmethod
    def lhs_scaled_x(x: Any) -> Any:
        return Mul(Mul(x, 1 / 6), Clip(Add(x, 3.0), 0.0, 6.0))

    @staticmethod
    def rhs(x: Value) -> Any:
        return HardSwish(x)


@rule
class GateOfSix(OfX):
    """x clip(x + 3, 0, 6) = 6 hardswish(x), where the sixth has moved elsewhere"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(x, Clip(Add(x, 3.0), 0.0, 6.0))

    @staticmethod
    def rhs(x: Value) -> Any:
        return Mul(HardSwish(x), 6.0)


@rule
class GateToHardSwish(OfX):
    """x hardsigmoid(x; 1/6, 1/2) = hardswish(x)"""

    claim = Within(ulps=64)

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(x, HardSigmoid(x))

    @staticmethod
    def guard(alpha: float, beta: float) -> str | None:
        same = math.isclose(alpha, 1 / 6, rel_tol=2e-6) and math.isclose(beta, 0.5, rel_tol=1e-6)
        return None if same else f"alpha {alpha} and beta {beta} are not 1/6 and 1/2"

    @staticmethod
    def rhs(x: Value) -> Any:
        return HardSwish(x)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(signal(rng).values, {"HardSigmoid": {"alpha": float(np.float32(1 / 6)), "beta": 0.5}})


SQRT_HALF = math.sqrt(0.5)


@rule
class FuseGelu(OfX):
    """x/2 (1 + erf(x / sqrt 2)) = gelu(x)"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(Mul(x, Add(Erf(Mul(x, SQRT_HALF)), 1.0)), 0.5)

    @staticmethod
    def lhs_halved_x(x: Any) -> Any:
        return Mul(Mul(x, 0.5), Add(Erf(Mul(x, SQRT_HALF)), 1.0))

    @staticmethod
    def lhs_halved_gate(x: Any) -> Any:
        return Mul(x, Mul(Add(Erf(Mul(x, SQRT_HALF)), 1.0), 0.5))

    @staticmethod
    def lhs_halved_erf(x: Any) -> Any:
        return Mul(x, Add(Mul(Erf(Mul(x, SQRT_HALF)), 0.5), 0.5))

    @staticmethod
    def rhs(x: Value) -> Any:
        return Gelu(x, approximate="none")


def _cubed(x: Any, cube: Any) -> Any:
    return Tanh(Mul(Add(x, Mul(cube, 0.044715)), math.sqrt(2 / math.pi)))


@rule
class FuseTanhGelu(OfX):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = gelu(x; tanh)"""

    claim = Within(ulps=64)

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(Mul(x, Add(_cubed(x, Pow(x, 3.0)), 1.0)), 0.5)

    @staticmethod
    def lhs_halved_x(x: Any) -> Any:
        return Mul(Mul(x, 0.5), Add(_cubed(x, Pow(x, 3.0)), 1.0))

    @staticmethod
    def lhs_halved_gate(x: Any) -> Any:
        return Mul(x, Mul(Add(_cubed(x, Pow(x, 3.0)), 1.0), 0.5))

    @staticmethod
    def lhs_products(x: Any) -> Any:
        return Mul(Mul(x, Add(_cubed(x, Mul(Mul(x, x), x)), 1.0)), 0.5)

    @staticmethod
    def lhs_products_halved_x(x: Any) -> Any:
        return Mul(Mul(x, 0.5), Add(_cubed(x, Mul(Mul(x, x), x)), 1.0))

    @staticmethod
    def rhs(x: Value) -> Any:
        return Gelu(x, approximate="tanh")


@rule
class MaxToLeakyRelu(OfX):
    """max(x, a x) = leakyrelu(x; a), 0 <= a < 1"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, a: Any) -> Any:
        return Max(x, Mul(x, a))

    @staticmethod
    def guard(a: float) -> str | None:
        return None if 0 <= a < 1 else f"the slope {a} is not in [0, 1)"

    @staticmethod
    def rhs(x: Value, a: float) -> Any:
        return LeakyRelu(x, alpha=a)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "a": np.float32(rng.uniform(0.01, 0.9))})


SEVERAL_AXES = "the slopes vary along several axes"


def axes_along(a: Array) -> int:
    """How many axes a constant varies along, by its shape."""
    return sum(d > 1 for d in a.shape)


@rule
class ReluPairToPRelu(OfX):
    """relu(x) + a relu(-x) = prelu(x; -a)                                                (Keras' spelling)"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, a: Any) -> Any:
        return Add(Relu(x), Mul(Relu(Neg(x)), a))

    @staticmethod
    def guard(a: Array) -> str | None:
        return None if axes_along(a) <= 1 else SEVERAL_AXES

    @staticmethod
    def rhs(x: Value, a: Array) -> Any:
        return PRelu(x, -a)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "a": rng.normal(size=(3, 1)).astype(np.float32)})


@rule
class PReluToReluPair(OfX):
    """prelu(x; a) = relu(x) - a relu(-x), where there are too many slopes for a table each"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, a: Any) -> Any:
        return PRelu(x, a)

    @staticmethod
    def guard(a: Array) -> str | None:
        return None if axes_along(a) > 1 else "the slopes vary along one axis only"

    @staticmethod
    def rhs(x: Value, a: Array) -> Any:
        return Add(Relu(x), Mul(Relu(Neg(x)), -a))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "a": rng.normal(size=(3, 40)).astype(np.float32)})


@rule
class UniformPRelu(OfX):
    """prelu(x; a) = leakyrelu(x; a) where all slopes are one number"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, a: Any) -> Any:
        return PRelu(x, a)

    @staticmethod
    def rhs(x: Value, a: float) -> Any:
        return LeakyRelu(x, alpha=a)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "a": np.full((3, 1), rng.normal(), np.float32)})


@rule
class MulByOne(OfX):
    """x * 1 = x"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any) -> Any:
        return Mul(x, 1.0)

    @staticmethod
    def guard(x: Value, match: Match) -> str | None:
        return None if not x.is_constant and x.type == match.root.output.type else "the product broadcasts x"

    @staticmethod
    def rhs(x: Value) -> Any:
        return x


@rule
class AddOfZero(OfX):
    """x + 0 = x"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, zero: Any) -> Any:
        return Add(x, zero)

    @staticmethod
    def guard(x: Value, zero: Array, match: Match) -> str | None:
        same = not x.is_constant and x.type == match.root.output.type
        return None if same and equals_number(zero, 0.0) else "something is added"

    @staticmethod
    def rhs(x: Value, zero: Array) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "zero": np.zeros((3, 1), np.float32)})


ACTIVATION_RULES: tuple[type[Rule], ...] = (
    MulByOne, AddOfZero, FuseHardSwish, FuseHardSigmoid, GateToHardSwish, FuseGelu, FuseTanhGelu, FuseSwish,
    FuseScaledSwish, ReluPairToPRelu, MaxToLeakyRelu, UniformPRelu, PReluToReluPair,
)  # fmt: skip
