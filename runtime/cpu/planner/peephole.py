"""Tail records that one kernel does together."""

from __future__ import annotations

from ..kernels.record import ADD, ADD_MEMORY, GENERIC, I8, I16, LOAD, MUL, REQUANTIZE, REQUANTIZE_STORE, STORE, U8
from .finish_plan import finished
from .steps import Number


def peephole(records: list[list[Number]], columns: int) -> list[list[Number]]:
    """Records with one kernel for several: the whole end of a layer where `finish` has a kernel for it; else a
    requantization that is only stored in 8 bits; a sum whose other operand is only loaded for it.  Whole groups of 8
    columns only: those kernels touch memory outside the registers.
    """
    if columns % 8:
        return records
    records = [list(r) for r in records]
    out: list[list[Number]] = []
    i = 0
    while i < len(records):
        end = finished(records, i, columns, _read)
        if end is not None:
            out.append(end[0])
            i += end[1]
            continue
        r = records[i]
        follow = records[i + 1] if i + 1 < len(records) else None
        if r[0] == LOAD and follow is not None and follow[0] == ADD and _plain_load(r) and follow[11] != GENERIC:
            if follow[3] == r[1] and follow[2] != r[1] and r[5] in (U8, I8, I16) and not _read(records, i + 2, r[1]):
                r = [ADD_MEMORY, follow[1], follow[2], r[3], *follow[4:12], r[4], r[5], 0, 0]
                i += 1
            elif follow[2] == r[1] and follow[3] != r[1] and r[5] in (U8, I8, I16) and not _read(records, i + 2, r[1]):
                # the sum is commutative: swap operands
                r = [ADD_MEMORY, follow[1], follow[3], r[3], follow[5], follow[4], *follow[6:12], r[4], r[5], 0, 0]
                i += 1
            follow = records[i + 1] if i + 1 < len(records) else None
        stores = (
            follow is not None and follow[0] == STORE and follow[2] == r[1] and follow[5] in (U8, I8)
            and not _read(records, i + 2, r[1])
        )  # fmt: skip
        if follow is not None and stores and r[0] == REQUANTIZE and r[9] != GENERIC:
            r = [REQUANTIZE_STORE, *r[1:12], follow[3], follow[4], *r[14:16]]
            i += 1
        elif follow is not None and stores and r[0] == ADD_MEMORY:
            r = [*r[:14], follow[3], follow[4]]
            i += 1
        out.append(r)
        i += 1
    return out


def _plain_load(r: list[Number]) -> bool:
    return r[6] == 1 and r[7] == 0 and r[8] == 0


def _read(records: list[list[Number]], start: int, register: Number) -> bool:
    """Whether a register is read before it is written again."""
    for r in records[start:]:
        sources = [r[2]] if r[0] != LOAD else []
        if r[0] in (ADD, MUL):
            sources.append(r[3])
        if register in sources:
            return True
        if r[0] not in (STORE, REQUANTIZE_STORE) and r[1] == register:
            return False
    return False
