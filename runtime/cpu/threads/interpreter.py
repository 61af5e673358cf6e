"""The interpreter: executes a plan's native steps without Python, on any number of threads.

Every thread runs the same program.  A step is cut into chunks that threads claim with an atomic counter; a step is
over when all its chunks are done, so a thread that comes late or never costs nothing but its help.

Helpers come in by the plan's gate, which the caller opens before it wakes them and closes behind its last step; it
leaves when all who came in have left.  What lies behind the gate (counters, arena) may change only while it is shut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from ..kernels import record as r
from ..kernels.depthwise import depthwise_chunk
from ..kernels.epilogue import run_epilogue
from ..kernels.gemm import gemm_chunk
from ..kernels.intrinsics import as_pointer, atomic_load, carray, fetch_add, pause
from ..kernels.movement import copy_chunk, dequantize_chunk, gather_chunk, quantize_chunk
from ..kernels.pooling import depthwise_region, pool_region
from ..kernels.rows.normalize import normalize_chunk
from ..kernels.rows.products import product_chunk
from ..kernels.rows.rowwise import interpolate_chunk, softmax_chunk
from ..kernels.winograd import winograd_chunk
from .kernel_cache import CACHE

SPINS = 2000

sched_yield: Any = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True)
def region_chunk(step: Any, chunk: int, records: Any, pointers: Any, scratch: int) -> None:
    """Rows and columns of a chunk, block by block: head, then epilogue."""
    rows, columns, per_row = step[r.ROWS], step[r.COLUMNS], step[r.COLUMN_CHUNKS]
    row_chunk, column_chunk = chunk // per_row, chunk % per_row
    r_first, r_last = rows * row_chunk // step[r.ROW_CHUNKS], rows * (row_chunk + 1) // step[r.ROW_CHUNKS]
    # column chunks begin at multiples of 16: vector constants are laid out in such groups
    units = (columns + 15) // 16
    c_first = units * column_chunk // per_row * 16
    c_last = min(units * (column_chunk + 1) // per_row * 16, columns)
    op = step[r.OP]
    for r0 in range(r_first, r_last, step[r.BLOCK_ROWS]):
        rn = min(step[r.BLOCK_ROWS], r_last - r0)
        for c0 in range(c_first, c_last, step[r.BLOCK_COLUMNS]):
            cn = min(step[r.BLOCK_COLUMNS], c_last - c0)
            if op == r.DEPTHWISE:
                depthwise_region(step, pointers, scratch, r0, rn, c0, cn)
            elif op == r.POOL:
                pool_region(step, pointers, scratch, r0, rn, c0, cn)
            run_epilogue(
                records, step[r.EPILOGUE_FIRST], step[r.EPILOGUE_COUNT], pointers, scratch + r.AT_REGISTERS,
                r.REGISTER_BYTES,
                step[r.LD], r0, rn, c0, cn,
            )  # fmt: skip


@njit(nogil=True)
def run_chunk(step: Any, index: int, chunk: int, records: Any, pointers: Any, scratch: int, panel_bytes: int) -> None:
    op = step[r.OP]
    if op == r.GEMM:
        gemm_chunk(step, index, chunk, records, pointers, scratch, panel_bytes)
    elif op == r.DEPTHWISE_ROWS:
        depthwise_chunk(step, chunk, records, pointers, scratch, panel_bytes)
    elif op == r.WINOGRAD:
        winograd_chunk(step, index, chunk, records, pointers, scratch, panel_bytes)
    elif op == r.QUANTIZE:
        quantize_chunk(step, chunk, pointers)
    elif op == r.DEQUANTIZE:
        dequantize_chunk(step, chunk, pointers)
    elif op == r.COPY:
        copy_chunk(step, chunk, pointers)
    elif op == r.GATHER:
        gather_chunk(step, chunk, pointers)
    elif op == r.SOFTMAX:
        softmax_chunk(step, chunk, pointers)
    elif op == r.NORMALIZE:
        normalize_chunk(step, chunk, pointers)
    elif op == r.INTERPOLATE:
        interpolate_chunk(step, chunk, pointers)
    elif op == r.PRODUCT:
        product_chunk(step, chunk, pointers, scratch)
    else:
        region_chunk(step, chunk, records, pointers, scratch)


@njit(nogil=True)
def wait_a_little(spins: int) -> int:
    """One turn of a waiting loop; the number of turns since the core was last offered to others."""
    pause(0)
    if spins < SPINS:
        return spins + 1
    sched_yield()
    return 0


@njit(nogil=True)
def set_gate(gate: int, state: int) -> None:
    """1: open, 0: shut, whatever it was; the caller's alone.  Who sees it open sees what was written before."""
    fetch_add(gate, state - atomic_load(gate))


def _open_gate(gate: int) -> None:
    set_gate(gate, 1)


def _build(digest: int) -> Any:
    # `digest` is part of numba's cache key through the closure: a change in any kernel file recompiles
    @njit(nogil=True, cache=True)
    def execute(
        program: Any,
        records: Any,
        pointers: Any,
        counters: int,
        gate: int,
        scratch: int,
        panel_bytes: int,
        caller: bool,
    ) -> int:
        if not caller:
            fetch_add(gate + r.AT_INSIDE, 1)
            if not atomic_load(gate):
                fetch_add(gate + r.AT_INSIDE, -1)
                return digest
        key = carray(as_pointer(scratch), 2, np.int64)
        key[0] = -1
        for index in range(atomic_load(gate + 8), atomic_load(gate + 16)):
            step = program[index]
            chunks = step[r.CHUNKS]
            counter = counters + index * r.COUNTER_BYTES
            while True:
                chunk = fetch_add(counter, 1)
                if chunk >= chunks:
                    break
                run_chunk(step, index, chunk, records, pointers, scratch, panel_bytes)
                fetch_add(counter + 64, 1)
            spins = 0
            while atomic_load(counter + 64) < chunks:
                spins = wait_a_little(spins)
        if caller:
            set_gate(gate, 0)
            spins = 0
            while atomic_load(gate + r.AT_INSIDE):
                spins = wait_a_little(spins)
        else:
            fetch_add(gate + r.AT_INSIDE, -1)
        return digest

    return execute


with CACHE.used():
    execute: Any = _build(CACHE.digest)
    open_gate: Any = njit(nogil=True, cache=True)(_open_gate)
"""execute(program, records, pointers, counters, gate, scratch, panel_bytes, caller): int64 arrays and addresses.

gate: three int64 (open, first step, step after the last), and at AT_INSIDE how many helpers are inside.
"""
