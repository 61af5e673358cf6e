"""Unary functions that act on integer tensors too (shape arithmetic): Exp, Log, Sqrt, Reciprocal, Abs, Neg ..."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lowering import Lowering, Quantized
from ..types import Array
from .base import register
from .division import quotient
from .elementwise import Elementwise
from .table import lower_unary
from .unary import Reals, Unary

if TYPE_CHECKING:
    from ..graph import Node


@register
class Exp(Unary):
    """y = exp(x)"""

    name = "Exp"
    nonnegative = True
    float_only = True
    everywhere = False

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.exp(x)


@register
class Log(Unary):
    """y = log(x)"""

    name = "Log"
    float_only = True
    everywhere = False

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.log(x)


@register
class Sqrt(Unary):
    """y = sqrt(x)"""

    name = "Sqrt"
    float_only = True
    everywhere = False

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return np.sqrt(x)


@register
class Reciprocal(Unary):
    """y = 1 / x"""

    name = "Reciprocal"
    float_only = True
    everywhere = False

    @staticmethod
    def f(x: Reals, attrs: Mapping[str, Any]) -> Reals:
        return 1 / x

    def to_integer(self, low: Lowering, node: Node) -> None:
        form = low.form(node.input(0))
        if isinstance(form, Quantized) and form.quant.dtype.bits > 8:
            low.set(node.output, quotient(low, node, None, node.input(0)))
        else:
            lower_unary(low, node, lambda x: 1 / x)


class _Exact(Elementwise):
    """Functions that NumPy computes exactly in any dtype, integers included."""

    pointwise = True
    inputs = "x"
    exact: Callable[[Array], Array]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        return (np.asarray(type(self).exact(inputs[0])).astype(inputs[0].dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        lower_unary(low, node, type(self).exact)


@register
class Abs(_Exact):
    """y = |x|"""

    name = "Abs"
    nonnegative = True
    exact = np.abs


@register
class Neg(_Exact):
    """y = -x"""

    name = "Neg"
    exact = np.negative


@register
class Floor(_Exact):
    """y = floor(x)"""

    name = "Floor"
    flat = True
    exact = np.floor


@register
class Ceil(_Exact):
    """y = ceil(x)"""

    name = "Ceil"
    flat = True
    exact = np.ceil


@register
class Round(_Exact):
    """y = the nearest integer, half to even"""

    name = "Round"
    flat = True
    exact = np.rint


@register
class Sign(_Exact):
    """y = -1, 0 or 1"""

    name = "Sign"
    flat = True
    exact = np.sign
