"""Sums written over their residual: bytes that are read anyway need not be fetched again to be written.

A residual block's end reads an int16 tensor, adds to it and keeps the sum in 16 bits.  Where nobody reads that tensor
afterwards, the sum takes its place: less memory, and a third less traffic on layers that do little else.
"""

from __future__ import annotations

from qir.graph import Value

from ...compile.tensors import View
from ..kernels.record import FINISH
from .builder import Builder
from .steps import Number, Ref

OTHER, WIDE = 8, 10
"""In a FINISH record: the summand and the 16-bit target, each followed by its row stride."""


def write_in_place(b: Builder, tail: list[list[Number]], writes: list[View]) -> None:
    """Points the target of a tail that is one FINISH record at its summand, if the summand is not needed any more.

    writes: the step's, changed with it.  Only for steps that touch each element once.
    """
    if len(tail) != 1 or tail[0][0] != FINISH:
        return
    record = tail[0]
    found = [pair for at in (OTHER, WIDE) for pair in _living(b, record[at], record[at + 1])]
    if len(found) != 2 or found[0][0] is found[1][0]:
        return
    (summand, source), (total, target) = found
    same = (source.shape, source.strides, source.order, source.dtype, source.offset) == (
        target.shape, target.strides, target.order, target.dtype, target.offset,
    )  # fmt: skip
    if not same or _needed(b, summand) or total.is_output or source.buffer.size != target.buffer.size:
        return
    b.alias(total, source)
    record[WIDE] = record[OTHER]
    writes[writes.index(target)] = source


def _living(b: Builder, place: Number, stride: Number) -> list[tuple[Value, View]]:
    """The value in a buffer of the arena, and its view; nothing where it shares the buffer with others in use."""
    if not isinstance(place, Ref) or not stride or place.buffer.space != "arena":
        return []
    inside = [(v, b.views[v]) for v in b.residents.get(place.buffer, ()) if b.views[v].buffer is place.buffer]
    # the latest comes last: those before it may have been overwritten by it
    return inside[-1:] if not any(_needed(b, v) for v, _ in inside[:-1]) else []


def _needed(b: Builder, value: Value) -> bool:
    """Whether somebody reads the value after the steps so far."""
    return value in b.keep or value.is_output or any(node not in b.done for node, _ in value.uses())
