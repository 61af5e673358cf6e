"""All operators, by name."""

from . import (
    addition,
    arithmetic,
    average_pooling,
    clipping,
    concatenation,
    conv_transpose,
    convolution,
    gemm,
    logic,
    mathematics,
    matmul_integer,
    max_pooling,
    normalization,
    padding,
    product,
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
from .base import REGISTRY, REQUIRED, Op, least_outputs, op_of, register

__all__ = ["FORBIDDEN", "REGISTRY", "REQUIRED", "Op", "least_outputs", "op_of", "register"]
_modules = (
    average_pooling,
    product,
    normalization,
    matmul_integer,
    gemm,
    conv_transpose,
    clipping,
    arithmetic,
    concatenation,
    convolution,
    addition,
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

FORBIDDEN = frozenset({name for name, op in REGISTRY.items() if op.float_only} | {"Mod"})
"""Operators that have no place in an integer graph, whatever their dtype (a file may hold Mod)."""
