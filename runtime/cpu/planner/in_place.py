"""Sums written over their residual: bytes that are read anyway need not be fetched again to be written.

A residual block's end reads an int16 tensor, adds to it and keeps the sum in 16 bits.  Where nobody reads that tensor
afterwards, the sum takes its place: less memory, and a third less traffic on layers that do little else.
"""

from __future__ import annotations

from qir.graph import Value

from ...compile.tensors import View
from .builder import Builder
from .joined import Finish
from .steps import Step


def write_in_place(b: Builder, step: Step) -> None:
    """Points the 16-bit target of an epilogue that is one `Finish` at its summand, if that is not needed any more.

    Only for steps that touch each element once.
    """
    finish = step.epilogue[0] if len(step.epilogue) == 1 else None
    if not isinstance(finish, Finish):
        return
    found = [pair for view in (finish.summand, finish.wide) for pair in _living(b, view)]
    if len(found) != 2 or found[0][0] is found[1][0]:
        return
    (summand, source), (total, target) = found
    same = (source.shape, source.strides, source.order, source.dtype, source.offset) == (
        target.shape, target.strides, target.order, target.dtype, target.offset,
    )  # fmt: skip
    if not same or _needed(b, summand) or total.is_output or source.buffer.size != target.buffer.size:
        return
    b.alias(total, source)
    step.epilogue[0] = finish.over_summand()
    step.writes[step.writes.index(target)] = source


def _living(b: Builder, view: View | None) -> list[tuple[Value, View]]:
    """The value in a view's buffer, and its own view; nothing where it shares the buffer with others in use."""
    if view is None or view.buffer.space != "arena":
        return []
    inside = [(v, b.views[v]) for v in b.residents.get(view.buffer, ()) if b.views[v].buffer is view.buffer]
    # the latest comes last: those before it may have been overwritten by it
    return inside[-1:] if not any(_needed(b, v) for v, _ in inside[:-1]) else []


def _needed(b: Builder, value: Value) -> bool:
    """Whether somebody reads the value after the steps so far."""
    return value in b.keep or value.is_output or any(node not in b.done for node, _ in value.uses())
