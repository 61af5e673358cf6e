"""Sizes that are open: their expressions, and how an operator's are found."""

from .expressions import (
    BATCH,
    TYPICAL,
    Sizes,
    Symbol,
    add,
    bind_sizes,
    canonical,
    dim_at,
    floor_divide,
    multiply,
    sizes_of,
    sizes_text,
    solve,
    solve_terms,
    symbols_of,
    value_of,
)

__all__ = [
    "BATCH",
    "TYPICAL",
    "Sizes",
    "Symbol",
    "add",
    "bind_sizes",
    "canonical",
    "dim_at",
    "floor_divide",
    "multiply",
    "sizes_of",
    "sizes_text",
    "solve",
    "solve_terms",
    "symbols_of",
    "value_of",
]
