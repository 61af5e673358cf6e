"""Micro-operations that one kernel does together are found and joined."""

from __future__ import annotations

from collections.abc import Sequence

from ...compile.micro_operations import AddTensor, Load, MicroOperation, Rescale, Store, is_read
from .finish_plan import finished
from .joined import AddMemory, RescaleStore


def peephole(operations: Sequence[MicroOperation], columns: int) -> list[MicroOperation]:
    """The same with one kernel for several where there is one: the whole end of a layer; else a rescaling that is only
    stored in 8 bits; a sum whose other operand is only loaded for it.  Whole groups of 8 columns only: those kernels
    touch memory outside the registers.
    """
    if columns % 8:
        return list(operations)
    out: list[MicroOperation] = []
    at = 0
    while at < len(operations):
        joined = finished(operations, at, columns) or _sum(operations, at) or _stored(operations, at)
        operation, count = joined or (operations[at], 1)
        out.append(operation)
        at += count
    return out


def _sum(operations: Sequence[MicroOperation], at: int) -> tuple[AddMemory, int] | None:
    """(A sum with its load and, if it has one, its 8-bit store; how many operations it stands for)."""
    if at + 1 >= len(operations):
        return None
    load, add = operations[at : at + 2]
    if not (isinstance(load, Load) and isinstance(add, AddTensor) and load.plain and add.high):
        return None
    if load.view.dtype.name not in ("uint8", "int8", "int16") or is_read(operations, at + 2, load.target):
        return None
    if (add.a == load.target) == (add.b == load.target):
        return None
    add = add.swapped() if add.a == load.target else add  # the kernel has the register first
    store = _byte_store(operations, at + 2, add.target)
    return AddMemory(load, add, store), 2 + (store is not None)


def _stored(operations: Sequence[MicroOperation], at: int) -> tuple[RescaleStore, int] | None:
    """(A rescaling with its 8-bit store, how many operations it stands for)."""
    rescale = operations[at]
    if not isinstance(rescale, Rescale) or not rescale.high:
        return None
    store = _byte_store(operations, at + 1, rescale.target)
    return None if store is None else (RescaleStore(rescale, store), 2)


def _byte_store(operations: Sequence[MicroOperation], at: int, register: int) -> Store | None:
    """The operation if it stores a register in 8 bits, the last to read it."""
    store = operations[at] if at < len(operations) else None
    if isinstance(store, Store) and store.source == register and store.view.dtype.itemsize == 1:
        return None if is_read(operations, at + 1, register) else store
    return None
