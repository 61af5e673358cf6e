"""Micro-operations as the records that kernels read (kernels/record.py): the only file that writes their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qir.dyadic import Int64
from qir.types import Array

from ...compile.micro_operations import (
    HIGH_WORD,
    AddBias,
    AddTensor,
    Clamp,
    Load,
    Lookup,
    MicroOperation,
    Multiply,
    Rescale,
    Store,
)
from ...compile.tensors import View
from ..kernels import record as r
from .joined import AddMemory, Finish, RescaleStore
from .steps import AnyStep, Number, Step, constant, padded, ref

Fields = dict[int, Number]


def encode(operation: MicroOperation) -> list[Number]:
    """One record, EPILOGUE_WIDTH numbers; constants become arrays in the layout of the kernels."""
    record: list[Number] = [0] * r.EPILOGUE_WIDTH
    for position, number in ENCODERS[type(operation)](operation).items():
        record[position] = number
    return record


def encode_plan(steps: Sequence[AnyStep], number: Callable[[Number], int]) -> tuple[Array, Array]:
    """(steps, one row each; records of their epilogues) as int64 arrays.  number: what an address is by now."""
    program, records = np.zeros((len(steps), r.STEP_WIDTH), np.int64), list[list[int]]()
    for index, step in enumerate(steps):
        if isinstance(step, Step):
            span = {r.EPILOGUE_FIRST: len(records), r.EPILOGUE_COUNT: len(step.epilogue)}
            for position, value in {**step.fields, **span}.items():
                program[index, position] = number(value)
            records += ([number(n) for n in encode(operation)] for operation in step.epilogue)
    return program, np.asarray(records or [[0] * r.EPILOGUE_WIDTH], np.int64)


def row_stride(view: View) -> int:
    """Bytes between rows, all axes but the innermost taken as one."""
    rows = view.rows()
    assert rows is not None
    return rows[2]


def _dtype(view: View) -> int:
    return r.DTYPE_CODE[view.dtype.name]


def _load(o: Load) -> Fields:
    return {
        r.KIND: r.LOAD, r.TARGET: o.target, r.OPERAND: ref(o.view), r.STRIDE: row_stride(o.view),
        r.DTYPE: _dtype(o.view), r.DIVISOR: o.divisor, r.MODULUS: o.modulus, r.ONE_COLUMN: int(o.one_column),
    }  # fmt: skip


def _store(o: Store) -> Fields:
    return {
        r.KIND: r.STORE, r.SOURCE: o.source, r.OPERAND: ref(o.view), r.STRIDE: row_stride(o.view),
        r.DTYPE: _dtype(o.view),
    }  # fmt: skip


def _add_bias(o: AddBias) -> Fields:
    bias = constant(padded(o.bias.astype(np.int32)))
    return {r.KIND: r.BIAS, r.TARGET: o.target, r.SOURCE: o.source, r.OPERAND: bias}


def _interleaved(c: Int64) -> Int64:
    """Of each eight columns the even ones, then the odd ones: the order of products of 32 bits."""
    return np.ascontiguousarray(padded(c.reshape(-1)).reshape(-1, 4, 2).swapaxes(1, 2))


def _vector(values: Int64) -> Number:
    return constant(padded(values.reshape(-1).astype(np.int32)))


def _rescale(o: Rescale) -> Fields:
    fields: Fields = {
        r.KIND: r.RESCALE, r.TARGET: o.target, r.SOURCE: o.source, r.ZERO_POINT: o.zero_point, r.LO: o.lo, r.HI: o.hi,
        r.COLUMNS_GIVEN: o.multiplier.shape[-1], r.ROWS_GIVEN: o.multiplier.shape[0],
    }  # fmt: skip
    if not o.high:
        narrow = [constant(a.astype(np.int32)) for a in (o.multiplier, o.shift)]
        return {**fields, r.OPERAND: narrow[0], r.CONSTANT: constant(o.constant), r.SHIFT: narrow[1],
                r.MODE: r.GENERIC}  # fmt: skip
    up = o.pre_shift
    fields[r.OPERAND], fields[r.SHIFT] = _vector(o.multiplier), _vector(np.maximum(o.shift - HIGH_WORD, 0))
    fields[r.CONSTANT] = constant(_interleaved(o.constant << up))
    if up.any():
        fields[r.PRE_SHIFTED], fields[r.PRE_SHIFT] = 1, _vector(up)
    return fields


def _rescale_store(o: RescaleStore) -> Fields:
    target = {r.BYTES: ref(o.store.view), r.BYTES_STRIDE: row_stride(o.store.view)}
    return {**_rescale(o.rescale), r.KIND: r.RESCALE_STORE, **target}


def _add(o: AddTensor) -> Fields:
    return {
        r.KIND: r.ADD, r.TARGET: o.target, r.SOURCE: o.a, r.OPERAND: o.b, r.A_MULTIPLIER: o.a_multiplier,
        r.B_MULTIPLIER: o.b_multiplier, r.SUM_CONSTANT: o.constant, r.SUM_SHIFT: o.shift,
        r.SUM_ZERO_POINT: o.zero_point, r.SUM_LO: o.lo, r.SUM_HI: o.hi, r.SUM_MODE: 0 if o.high else r.GENERIC,
    }  # fmt: skip


def _add_memory(o: AddMemory) -> Fields:
    fields = {
        **_add(o.add), r.KIND: r.ADD_MEMORY, r.OPERAND: ref(o.load.view), r.SUMMAND_STRIDE: row_stride(o.load.view),
        r.SUMMAND_DTYPE: _dtype(o.load.view),
    }  # fmt: skip
    if o.store is not None:
        fields[r.SUM_BYTES], fields[r.SUM_BYTES_STRIDE] = ref(o.store.view), row_stride(o.store.view)
    return fields


def _multiply(o: Multiply) -> Fields:
    return {
        r.KIND: r.MULTIPLY, r.TARGET: o.target, r.SOURCE: o.a, r.OPERAND: o.b, r.MULTIPLIER: o.multiplier,
        r.PRODUCT_SHIFT: o.shift, r.A_ZERO_POINT: o.a_zero_point, r.B_ZERO_POINT: o.b_zero_point,
        r.PRODUCT_ZERO_POINT: o.zero_point, r.PRODUCT_LO: o.lo, r.PRODUCT_HI: o.hi,
    }  # fmt: skip


def _lookup(o: Lookup) -> Fields:
    return {
        r.KIND: r.LOOKUP, r.TARGET: o.target, r.SOURCE: o.source, r.OPERAND: constant(o.table.astype(np.int32)),
        r.LEAST: o.least, r.PER_COLUMN: int(o.per_column), r.ENTRIES: o.table.shape[-1],
    }  # fmt: skip


def _clamp(o: Clamp) -> Fields:
    return {r.KIND: r.CLAMP, r.TARGET: o.target, r.SOURCE: o.source, r.CLAMP_LO: o.lo, r.CLAMP_HI: o.hi}


def _finish(o: Finish) -> Fields:
    rescale = o.rescale
    # what is added after the shift goes into the constant
    c = rescale.constant + (np.int64(o.added) << rescale.shift)
    fields: Fields = {
        r.KIND: r.FINISH, r.SOURCE: rescale.source, r.OPERAND: _vector(rescale.multiplier),
        r.CONSTANT: constant(_interleaved(c)), r.SHIFT: _vector(rescale.shift - HIGH_WORD),
        r.PARAMETERS: constant(np.asarray(o.parameters, np.int64).astype(np.int32)), r.ENDING: o.mode,
    }  # fmt: skip
    places = (r.SUMMAND, r.WIDE, r.NARROW), (r.SUMMAND_16_STRIDE, r.WIDE_STRIDE, r.NARROW_STRIDE)
    for place, stride, view in zip(*places, (o.summand, o.wide, o.narrow), strict=True):
        if view is not None:
            fields[place], fields[stride] = ref(view), row_stride(view)
    return fields


ENCODERS: dict[type[MicroOperation], Callable[[Any], Fields]] = {
    Load: _load,
    Store: _store,
    AddBias: _add_bias,
    Rescale: _rescale,
    RescaleStore: _rescale_store,
    AddTensor: _add,
    AddMemory: _add_memory,
    Multiply: _multiply,
    Lookup: _lookup,
    Clamp: _clamp,
    Finish: _finish,
}
