"""All operators, by name."""

from . import (
    convolution,
    elementwise_integer,
    mathematics,
    requantize,
    reshaping,
    shaping,
    table,
    unary,
)
from .base import REGISTRY, REQUIRED, Op, op_of, register

__all__ = ["REGISTRY", "REQUIRED", "Op", "op_of", "register"]
_modules = (
    convolution,
    elementwise_integer,
    mathematics,
    requantize,
    reshaping,
    shaping,
    table,
    unary,
)
