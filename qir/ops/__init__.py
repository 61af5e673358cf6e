"""All operators, by name."""

from . import (
    average_pooling,
    concatenation,
    convolution,
    elementwise_integer,
    logic,
    mathematics,
    max_pooling,
    padding,
    ranking,
    reductions,
    requantize,
    reshaping,
    resizing,
    shaping,
    slicing,
    softmax,
    table,
    transposing,
    unary,
)
from .base import REGISTRY, REQUIRED, Op, op_of, register

__all__ = ["REGISTRY", "REQUIRED", "Op", "op_of", "register"]
_modules = (
    average_pooling,
    concatenation,
    convolution,
    elementwise_integer,
    logic,
    mathematics,
    max_pooling,
    padding,
    ranking,
    reductions,
    requantize,
    reshaping,
    resizing,
    shaping,
    slicing,
    softmax,
    table,
    transposing,
    unary,
)
