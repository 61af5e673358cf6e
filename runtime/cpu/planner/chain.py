"""Fused chains: the pointwise operators that follow a head are executed on its result while that is in cache.

`Chain.grow` walks from a value in a register to its consumers, depth first: a consumer whose other operand is ready
joins the chain, and whatever somebody outside the chain still needs is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.dyadic import rounding
from qir.graph import Node, Value
from qir.ops.addition import addition_constant
from qir.types import Array

from ...compile.tensors import View, dense_strides
from ..kernels.record import ADD, BIAS, CLAMP, GENERIC, LOAD, MUL, REGISTERS, REQUANTIZE, STORE, TABLE
from .builder import Builder
from .peephole import peephole
from .steps import Number, constant, ref

POINTWISE_OPS = ("qir.Requantize", "qir.Add", "qir.Mul", "qir.Table", "Clip")


@dataclass
class Chain:
    """The tail of one step. order: memory order of every tensor in it; shape: their memory shape."""

    builder: Builder
    order: tuple[int, ...]
    shape: tuple[int, ...]
    records: list[list[Number]] = field(default_factory=lambda: [])
    reads: list[View] = field(default_factory=lambda: [])
    writes: list[View] = field(default_factory=lambda: [])
    nodes: list[Node] = field(default_factory=lambda: [])
    limits: dict[Value, int] = field(default_factory=lambda: {})
    free: list[int] = field(default_factory=lambda: list(range(1, REGISTERS)))

    def tail(self) -> list[list[Number]]:
        """The records, pairs of them joined where one kernel does both."""
        return peephole(self.records, self.columns)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        return self.shape[-1] if len(self.shape) else 1

    # -- walking ------------------------------------------------------------------------------
    def grow(self, value: Value, register: int, bias: Array | None = None) -> None:
        """`value` (less a per-channel bias) is in `register`; the register may be overwritten."""
        b = self.builder
        users = list(dict.fromkeys(n for n, _ in value.uses()))
        joining = [n for n in users if n not in b.done and self._joins(n, value)]
        room = len(self.free)
        # each consumer but the last needs a register of its own, and every one may need one for its other operand
        if joining and room < (2 if len(joining) > 1 else 1):
            joining = []
        stored = value in b.keep or value.is_output or len(joining) < len(users) or not users
        if bias is not None and (stored or any(n.op != "qir.Requantize" for n in joining)):
            self.records.append([BIAS, register, register, constant(padded(bias.astype(np.int32)))])
            bias = None
        if stored:
            self.store(value, register)
        for i, node in enumerate(joining):
            if node in b.done:  # it joined deeper in the chain
                continue
            last = i == len(joining) - 1
            target = register if last else self.free.pop()
            b.done.add(node)
            self.nodes.append(node)
            self.apply(node, value, register, target, bias)
            self.grow(node.output, target)
            if not last:
                self.free.append(target)

    def _joins(self, node: Node, value: Value) -> bool:
        b = self.builder
        if node.op not in POINTWISE_OPS or b.shape(node.output) != b.shape(value):
            return False
        if value.dtype.bits > 32 or node.output.dtype.bits > 32:
            return False
        if node.op in ("qir.Add", "qir.Mul"):
            other = node.input(1) if node.input(0) is value else node.input(0)
            return (other is value or b.ready(other)) and len(b.shape(other)) <= len(self.order)
        return self.fits(node, value)

    def fits(self, node: Node, value: Value) -> bool:
        """Whether a one-operand node's constants run along the innermost axis, or along rows for Requantize."""
        if not self.order:
            return True
        if node.input(0) is not value or any(v is not None and v.data is None for v in node.inputs[1:]):
            return False
        if node.op == "qir.Requantize":
            kind, *_ = self._multiplier(node.input(1).array())
            return kind != "none"
        if node.op == "qir.Table" and node.attrs["axis"] is not None:
            return node.attrs["axis"] % len(self.order) == self.order[-1]
        return True

    # -- records ------------------------------------------------------------------------------
    def store(self, value: Value, register: int) -> None:
        view = self.builder.destination(value, self.order)
        _, _, stride = rows_of(view)
        self.records.append([STORE, 0, register, ref(view), stride, self.builder.code(view)])
        self.writes.append(view)

    def load(self, value: Value, register: int) -> None:
        """The value, broadcast to the chain's shape."""
        b = self.builder
        view, divisor, modulus, narrow = self._operand(value)
        _, _, stride = rows_of(view)
        self.records.append([LOAD, register, 0, ref(view), stride, b.code(view), divisor, modulus, int(narrow)])
        self.reads.append(view)

    def _operand(self, value: Value) -> tuple[View, int, int, bool]:
        """(view, row divisor, row modulus, one column) that read a broadcast operand row by row."""
        b = self.builder
        shape = b.shape(value)
        rank = len(self.order)
        full = (1,) * (rank - len(shape)) + shape
        memory = tuple(full[a] for a in self.order)
        if memory == self.shape and len(shape) == rank:
            return b.in_order(value, self.order), 1, 0, False
        outer, narrow = memory[:-1], bool(memory) and memory[-1] == 1 and self.columns != 1
        ones = [i for i, (n, m) in enumerate(zip(outer, self.shape[:-1], strict=True)) if n == 1 and m != 1]
        rows = math.prod(outer)
        data = value.data
        if data is not None:
            array = np.ascontiguousarray(np.transpose(data.reshape(full), self.order))
            c = constant(array)
            view = View(c.buffer, 0, array.shape, dense_strides(array.shape, array.itemsize), self.order, array.dtype)
        elif len(shape) == rank:
            view = b.in_order(value, self.order)
        else:
            plain = b.in_order(value, range(len(shape)))
            strides = dict(enumerate(plain.strides, start=rank - len(shape)))
            view = View(
                plain.buffer,
                plain.offset,
                memory,
                tuple(strides.get(a, 0) for a in self.order),
                self.order,
                plain.dtype,
            )
        kept = [i for i, m in enumerate(self.shape[:-1]) if m != 1 and i not in ones]
        if view.rows() is not None and (not ones or not kept or max(kept) < min(ones)):
            return view, self.rows // max(rows, 1), 0, narrow  # rows repeat in blocks
        if view.rows() is not None and max(ones) < min(kept):
            return view, 1, rows, narrow  # all rows repeat as a whole
        return self._expanded(view), 1, 0, False

    def _expanded(self, view: View) -> View:
        """A full copy of a broadcast operand whose pattern fits no row rule."""
        strides = tuple(0 if n == 1 else s for n, s in zip(view.shape, view.strides, strict=True))
        source = View(view.buffer, view.offset, self.shape, strides, self.order, view.dtype)
        target = View(
            self._temporary(math.prod(self.shape) * view.dtype.itemsize), 0, self.shape,
            dense_strides(self.shape, view.dtype.itemsize), self.order, view.dtype,
        )  # fmt: skip
        self.builder.copy(source, target, [])
        return target

    @staticmethod
    def _temporary(size: int) -> Any:
        from ...compile.tensors import Buffer

        return Buffer(size)

    def apply(self, node: Node, value: Value, source: int, target: int, bias: Array | None = None) -> None:
        """Records that compute `node` from `value` in register `source` into `target`."""
        if node.op == "qir.Requantize":
            self._requantize(node, source, target, bias)
        elif node.op == "qir.Table":
            self._table(node, source, target)
        elif node.op == "Clip":
            lo, hi = (node.optional(i) for i in (1, 2))
            kind = node.output.dtype
            low = kind.lo if lo is None else int(lo.array())
            high = kind.hi if hi is None else int(hi.array())
            # where the limits cross, ONNX lets the maximum win: min(max(x, lo), hi)
            self.records.append([CLAMP, target, source, 0, low, high])
        else:
            self._binary(node, value, source, target)

    def _binary(self, node: Node, value: Value, source: int, target: int) -> None:
        a, b = node.input(0), node.input(1)
        other = b if a is value else a
        register = source
        temporary = -1
        if other is not value:
            register = temporary = self.free.pop()
            self.load(other, register)
        first, second = (source, register) if a is value else (register, source)
        at = node.attrs
        if node.op == "qir.Add":
            m_a, m_b, shift = at["a_multiplier"], at["b_multiplier"], at["shift"]
            c = addition_constant(at)
            # the lane kernel shifts operands left until the wanted bits are a high half: is there room?
            room = max(32 - shift, 0)
            fits = all((_limit(v) << room) < 2**31 for v in (a, b)) and (abs(c) << room) < 2**61
            mode = 0 if fits else GENERIC
            self.records.append(
                [ADD, target, first, second, m_a, m_b, c, shift, at["zero_point"], at["lo"], at["hi"], mode]
            )
        else:
            self.records.append(
                [MUL, target, first, second, at["multiplier"], at["shift"], at["a_zero_point"], at["b_zero_point"],
                 at["zero_point"], at["lo"], at["hi"]]
            )  # fmt: skip
        if temporary >= 0:
            self.free.append(temporary)

    def _table(self, node: Node, source: int, target: int) -> None:
        x, table = node.input(0), node.input(1).array().astype(np.int32)
        per_channel = node.attrs["axis"] is not None
        # 4-bit tensors live in 8-bit arrays: the table's length says where the dtype begins
        least = -(table.shape[-1] // 2) if x.dtype.is_signed else 0
        self.records.append([TABLE, target, source, constant(table), least, int(per_channel), table.shape[-1]])

    def _multiplier(self, m: Array) -> tuple[str, Array]:
        """("column" | "row" | "none", the tensor as (period, columns) in memory order)."""
        rank = len(self.order)
        full = m.reshape((1,) * (rank - m.ndim) + m.shape) if m.ndim <= rank else m
        memory: Array = np.transpose(full, self.order) if rank else full.reshape(())
        if memory.size == 1:
            return "column", np.broadcast_to(memory.reshape(1, 1), (1, self.columns))
        shape = [int(n) for n in memory.shape]
        if all(n == 1 for n in shape[:-1]):
            return "column", memory.reshape(1, -1)
        kept = [i for i, n in enumerate(shape[:-1]) if n != 1]
        if shape[-1] == 1 and tuple(shape[min(kept) : -1]) == self.shape[min(kept) : -1]:
            return "row", memory.reshape(-1, 1)
        return "none", memory

    def _requantize(self, node: Node, source: int, target: int, bias: Array | None) -> None:
        at = node.attrs
        kind, m = self._multiplier(node.input(1).array())
        # the shift's shape may be smaller than the multiplier's
        shifts = np.broadcast_to(node.input(2).array(), node.input(1).array().shape)
        _, s = self._multiplier(shifts)
        m64, s64 = m.astype(np.int64), s.astype(np.int64)
        if bias is not None and kind != "column":
            self.records.append([BIAS, source, source, constant(padded(bias.astype(np.int32)))])
            bias = None
        offset = -np.int64(at["x_zero_point"]) if bias is None else bias.astype(np.int64) - at["x_zero_point"]
        with np.errstate(over="ignore"):
            c = offset * m64 + rounding(s64)
        up = np.maximum(32 - s64, 0)
        # the lane kernel wants the high half of a product: small shifts are made up for on the left
        room = self.limits.get(node.input(0), _limit(node.input(0)))
        fits = (up == 0) | (((room << up) < 2**31) & (np.abs(c) < np.int64(1) << (61 - up)))
        lanes = kind == "column" and bool(fits.all())
        raised: list[Number] = [0, 0]
        if lanes:
            m32 = padded(m64.reshape(-1).astype(np.int32))
            s32 = padded(np.maximum(s64.reshape(-1) - 32, 0).astype(np.int32))
            # even, then odd constants of each eight channels
            c64 = np.ascontiguousarray(padded((c << up).reshape(-1)).reshape(-1, 4, 2).swapaxes(1, 2))
            if up.any():
                raised = [1, constant(padded(up.reshape(-1).astype(np.int32)))]
        else:
            m32, s32, c64 = m.astype(np.int32), s.astype(np.int32), c
        self.records.append(
            [REQUANTIZE, target, source, constant(m32), constant(c64), constant(s32), at["zero_point"], at["lo"],
             at["hi"], 0 if lanes else GENERIC, m.shape[-1], m.shape[0], 0, 0, *raised]
        )  # fmt: skip


def rows_of(view: View) -> tuple[int, int, int]:
    got = view.rows()
    assert got is not None
    return got


def padded(v: Array, multiple: int = 16) -> Array:
    """A vector with zeros up to a multiple: vector code reads whole groups."""
    extra = -v.size % multiple
    return np.concatenate([v, np.zeros(extra, v.dtype)]) if extra else np.ascontiguousarray(v)


def _limit(value: Value) -> int:
    return max(abs(value.dtype.lo), value.dtype.hi)


def block_of(columns: int, rows: int, most: int = 256, room: int = 4096) -> tuple[int, int, int]:
    """(block rows, block columns, leading dimension) of a step's register block."""
    width = min(-(-columns // 16) * 16, most)
    return max(1, min(rows, room // width)), width, width
