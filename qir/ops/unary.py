"""Unary float functions. One formula each, in float64: it is the reference, and it fills the integer tables."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..lowering import Lowering
from ..types import Array
from .base import register
from .elementwise import Elementwise
from .table import lower_unary

if TYPE_CHECKING:
    from ..graph import Node

Reals = NDArray[np.float64]

_erf = np.frompyfunc(math.erf, 1, 1)


def erf(x: Reals) -> Reals:
    """Error function, float64."""
    return np.asarray(_erf(x), dtype=np.float64)


def sigmoid(x: Reals) -> Reals:
    """1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def softplus(x: Reals) -> Reals:
    """log(1 + exp(x)), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


class Unary(Elementwise):
    """y = f(x), elementwise.  On integers: one qir.Table on the 8-bit input  [docs/arithmetic.md 7]."""

    pointwise = True
    everywhere: ClassVar[bool] = True
    """Finite on all reals, and in float32 too: the moments of a normal variable through it exist."""
    inputs = "x"

    @staticmethod
    @abstractmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        """The function on float64."""

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x = inputs[0]
        with np.errstate(all="ignore"):
            return (np.asarray(self.f(x.astype(np.float64), attrs)).astype(x.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_unary(low, node, lambda x: self.f(x, node.attrs))


@register
class LeakyRelu(Unary):
    """y = x for x >= 0, alpha x below"""

    name = "LeakyRelu"
    homogeneous = True
    attrs = {"alpha": 0.01}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.where(x < 0, attrs["alpha"] * x, x)


@register
class Sigmoid(Unary):
    """y = 1 / (1 + exp(-x))"""

    name = "Sigmoid"
    nonnegative = True

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return sigmoid(x)


@register
class Tanh(Unary):
    """y = tanh(x)"""

    name = "Tanh"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.tanh(x)


@register
class HardSigmoid(Unary):
    """y = max(0, min(1, alpha x + beta))"""

    name = "HardSigmoid"
    nonnegative = True
    attrs = {"alpha": 0.2, "beta": 0.5}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.clip(attrs["alpha"] * x + attrs["beta"], 0, 1)


@register
class HardSwish(Unary):
    """y = x max(0, min(1, x/6 + 1/2))        [MobileNetV3]"""

    name = "HardSwish"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return x * np.clip(x / 6 + 0.5, 0, 1)


@register
class Swish(Unary):
    """y = x sigmoid(alpha x); SiLU for alpha = 1.  Standard from opset 24 on, a local function before."""

    name = "Swish"
    attrs = {"alpha": 1.0}
    standard_since = 24

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return x * sigmoid(attrs["alpha"] * x)

    def function_body(self, body: Any, node: Node) -> None:
        alpha, scaled = float(node.attrs["alpha"]), "x"
        if alpha != 1.0:
            scaled = body.op("Mul", "x", body.constant(np.asarray(alpha, dtype=body.dtype("x").numpy)))
        body.op("Mul", "x", body.op("Sigmoid", scaled), output="y")


@register
class Gelu(Unary):
    """y = x/2 (1 + erf(x / sqrt 2)), or with approximate="tanh" x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))"""

    name = "Gelu"
    attrs = {"approximate": "none"}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        if attrs["approximate"] == "tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))


@register
class Elu(Unary):
    """y = x for x >= 0, alpha (exp(x) - 1) below"""

    name = "Elu"
    attrs = {"alpha": 1.0}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.where(x < 0, attrs["alpha"] * np.expm1(np.minimum(x, 0)), x)


@register
class Celu(Unary):
    """y = max(0, x) + min(0, alpha (exp(x / alpha) - 1))"""

    name = "Celu"
    attrs = {"alpha": 1.0}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        a = attrs["alpha"]
        return np.maximum(x, 0) + np.minimum(0, a * np.expm1(x / a))


@register
class Selu(Unary):
    """y = gamma x for x > 0, gamma alpha (exp(x) - 1) below"""

    name = "Selu"
    attrs = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return attrs["gamma"] * np.where(x > 0, x, attrs["alpha"] * np.expm1(np.minimum(x, 0)))


@register
class Softplus(Unary):
    """y = log(1 + exp(x))"""

    name = "Softplus"
    nonnegative = True

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return softplus(x)


@register
class Softsign(Unary):
    """y = x / (1 + |x|)"""

    name = "Softsign"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return x / (1 + np.abs(x))


@register
class Mish(Unary):
    """y = x tanh(log(1 + exp(x)))"""

    name = "Mish"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return x * np.tanh(softplus(x))


@register
class Erf(Unary):
    """y = 2/sqrt(pi) integral_0^x exp(-t^2) dt"""

    name = "Erf"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return erf(x)


@register
class ThresholdedRelu(Unary):
    """y = x for x > alpha, else 0"""

    name = "ThresholdedRelu"
    attrs = {"alpha": 1.0}

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.where(x > attrs["alpha"], x, 0)


@register
class Cos(Unary):
    """y = cos(x)"""

    name = "Cos"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.cos(x)


@register
class Sin(Unary):
    """y = sin(x)"""

    name = "Sin"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.sin(x)


@register
class Atan(Unary):
    """y = arctan(x)"""

    name = "Atan"

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.arctan(x)
