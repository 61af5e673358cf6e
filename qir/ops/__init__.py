"""All operators, by name."""

from . import (
    concatenation,
    convolution,
    elementwise_integer,
    logic,
    mathematics,
    padding,
    requantize,
    reshaping,
    shaping,
    slicing,
    table,
    transposing,
    unary,
)
from .base import REGISTRY, REQUIRED, Op, op_of, register

__all__ = ["REGISTRY", "REQUIRED", "Op", "op_of", "register"]
_modules = (
    concatenation,
    convolution,
    elementwise_integer,
    logic,
    mathematics,
    padding,
    requantize,
    reshaping,
    shaping,
    slicing,
    table,
    transposing,
    unary,
)
