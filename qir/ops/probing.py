"""Values computed from constants and shapes alone, evaluated at given sizes of the symbols.

Exporters compute Reshape targets with Shape, Gather, Concat ... .  Such a value is known as soon as the open sizes
are, so evaluating it at several sizes tells what is constant and what follows which symbol.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MemoryLimitError, QirError
from ..sizes import Sizes, dim_at
from ..types import Array
from .base import op_of

if TYPE_CHECKING:
    from ..graph import Node, Value

MAX_ELEMENTS = 1 << 26
"""Larger results are not evaluated: no shape subgraph needs them, a hostile file might ask for them."""

MAX_OPEN = 1 << 16
"""The same for results whose size is open: evaluated several times, and only to find sizes in them."""

KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Never folded: a quantized constant must stay one."""


def known_inputs(node: Node, wanted: Sequence[int], sizes: Sizes) -> list[Array | None]:
    """Data of the node's inputs: constants, and the inputs `wanted` evaluated at the sizes where that is possible."""
    found: list[Array | None] = [None if v is None else v.data for v in node.inputs]
    memo: dict[Value, Array | None] = {}
    for i in wanted:
        if i < len(found) and found[i] is None and (value := node.inputs[i]) is not None:
            found[i] = known(value, sizes, memo)
    return found


def known(value: Value, sizes: Sizes, memo: dict[Value, Array | None]) -> Array | None:
    """The value's data at given sizes, or None where they depend on what is fed.  `memo` is filled on the way."""
    stack = [value]
    while stack:
        top = stack[-1]
        if top in memo:
            stack.pop()
            continue
        node = top.producer
        if top.data is not None or node is None:
            memo[top] = top.data
            continue
        waiting = [] if reads_shape(node) else [v for v in node.inputs if v is not None and v not in memo]
        if any(memo.get(v, 0) is None for v in node.inputs if v is not None):  # an unknown input settles it
            waiting = []
        if waiting:
            stack.append(waiting[0])
            continue
        evaluate(node, sizes, memo)
    return memo[value]


def reads_shape(node: Node) -> bool:
    """Whether the node's output depends on its inputs' shapes alone."""
    return op_of(node.op).reads_shape_only


def evaluate(node: Node, sizes: Sizes, memo: dict[Value, Array | None], most: int = MAX_OPEN) -> None:
    """Put the node's outputs at given sizes into `memo`: None where an input is unknown, or the result too large.

    most: elements of a result whose size is open.
    """
    for value in node.outputs:
        memo[value] = None
    op = op_of(node.op)
    args: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            args.append(None)
        elif op.reads_shape_only:
            shape = tuple(dim_at(d, sizes) for d in value.shape)
            args.append(np.broadcast_to(np.zeros((), value.dtype.numpy), shape))
        else:
            data = value.data if value.data is not None else memo.get(value)
            if data is None:
                return
            args.append(data)
    if node.op in KEPT or op.is_integer_op:
        return
    for value in node.outputs:
        fixed = all(isinstance(d, int) for d in value.shape)
        count = math.prod(float(dim_at(d, sizes)) for d in value.shape)
        if fixed and count > MAX_ELEMENTS:
            raise MemoryLimitError(f"computes {count:,.0f} elements of constants alone", where=str(node))
        if not fixed and count > most:
            return
    try:
        with np.errstate(all="ignore"):
            results = op.reference(node.attrs, *args)
    except (QirError, ValueError, IndexError, TypeError, ArithmeticError):
        return  # its own `infer` or the executor will say what is wrong
    for value, result in zip(node.outputs, results, strict=False):
        memo[value] = np.asarray(result)
