"""Values computed from constants and shapes alone, evaluated at a probe batch size.

Exporters compute Reshape targets with Shape, Gather, Concat ... .  Such a value is known as soon as the batch size
is, so evaluating it at two batch sizes tells what is constant and what follows the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import QirError
from ..types import Array
from .base import dim_at, op_of

if TYPE_CHECKING:
    from ..graph import Node, Value

MAX_ELEMENTS = 1 << 26
"""Larger results are not evaluated: no shape subgraph needs them, a hostile file might ask for them."""

KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Never folded: a quantized constant must stay one."""


def known_inputs(node: Node, wanted: Sequence[int], batch: int) -> list[Array | None]:
    """Data of the node's inputs: constants, and the inputs `wanted` evaluated at the batch where that is possible."""
    found: list[Array | None] = [None if v is None else v.data for v in node.inputs]
    memo: dict[Value, Array | None] = {}
    for i in wanted:
        if i < len(found) and found[i] is None and (value := node.inputs[i]) is not None:
            found[i] = known(value, batch, memo)
    return found


def known(value: Value, batch: int, memo: dict[Value, Array | None]) -> Array | None:
    """The value's data at a batch size, or None where they depend on what is fed.  `memo` is filled on the way."""
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
        evaluate(node, batch, memo)
    return memo[value]


def reads_shape(node: Node) -> bool:
    """Whether the node's output depends on its inputs' shapes alone."""
    return op_of(node.op).reads_shape_only


def evaluate(node: Node, batch: int, memo: dict[Value, Array | None]) -> None:
    """Put the node's outputs at a batch size into `memo`: None where an input is unknown, or the result too large."""
    for value in node.outputs:
        memo[value] = None
    op = op_of(node.op)
    args: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            args.append(None)
        elif op.reads_shape_only:
            shape = tuple(dim_at(d, batch) for d in value.shape)
            args.append(np.broadcast_to(np.zeros((), value.dtype.numpy), shape))
        else:
            data = value.data if value.data is not None else memo.get(value)
            if data is None:
                return
            args.append(data)
    if node.op in KEPT or op.is_integer_op:
        return
    sizes = [int(np.prod([float(dim_at(d, batch)) for d in v.shape])) for v in node.outputs]
    if max(sizes, default=0) > MAX_ELEMENTS:
        return
    try:
        with np.errstate(all="ignore"):
            results = op.reference(node.attrs, *args)
    except (QirError, ValueError, IndexError, TypeError, ArithmeticError):
        return  # its own `infer` or the executor will say what is wrong
    for value, result in zip(node.outputs, results, strict=False):
        memo[value] = np.asarray(result)
