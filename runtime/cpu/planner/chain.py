"""Fused chains: the pointwise operators that follow a head are executed on its result while that is in cache.

`Chain.grow` walks from a value in a register to its consumers, depth first: a consumer whose other operand is ready
joins the chain, and whatever somebody outside the chain still needs is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from qir.graph import Node, Value
from qir.ops.table import first_entry
from qir.types import Array

from ...compile.micro_operations import (
    AddBias,
    AddTensor,
    Clamp,
    Load,
    Lookup,
    MicroOperation,
    Multiply,
    Rescale,
    Store,
    largest,
)
from ...compile.tensors import Buffer, View, dense_strides
from ..kernels.record import REGISTERS
from .builder import Builder
from .peephole import peephole
from .steps import constant

POINTWISE_OPS = ("qir.Requantize", "qir.Add", "qir.Mul", "qir.Table", "Clip")


@dataclass
class Chain:
    """The epilogue of one step. order: memory order of every tensor in it; shape: their memory shape."""

    builder: Builder
    order: tuple[int, ...]
    shape: tuple[int, ...]
    operations: list[MicroOperation] = field(default_factory=lambda: [])
    reads: list[View] = field(default_factory=lambda: [])
    writes: list[View] = field(default_factory=lambda: [])
    nodes: list[Node] = field(default_factory=lambda: [])
    limits: dict[Value, int] = field(default_factory=lambda: {})
    free: list[int] = field(default_factory=lambda: list(range(1, REGISTERS)))

    def epilogue(self) -> list[MicroOperation]:
        """The operations, joined where one kernel does several."""
        return peephole(self.operations, self.columns)

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
            self.operations.append(AddBias(register, register, bias))
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

    # -- operations ---------------------------------------------------------------------------
    def store(self, value: Value, register: int) -> None:
        view = self.builder.destination(value, self.order)
        self.operations.append(Store(register, view))
        self.writes.append(view)

    def load(self, value: Value, register: int) -> None:
        """The value, broadcast to the chain's shape."""
        view, divisor, modulus, narrow = self._operand(value)
        self.operations.append(Load(register, view, divisor, modulus, narrow))
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
            Buffer(math.prod(self.shape) * view.dtype.itemsize), 0, self.shape,
            dense_strides(self.shape, view.dtype.itemsize), self.order, view.dtype,
        )  # fmt: skip
        self.builder.copy(source, target, [])
        return target

    def apply(self, node: Node, value: Value, source: int, target: int, bias: Array | None = None) -> None:
        """Operations that compute `node` from `value` in register `source` into `target`."""
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
            self.operations.append(Clamp(target, source, low, high))
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
            self.operations.append(AddTensor.of(at, target, first, second, (largest(a.dtype), largest(b.dtype))))
        else:
            self.operations.append(
                Multiply(
                    target, first, second, at["multiplier"], at["shift"], at["a_zero_point"], at["b_zero_point"],
                    at["zero_point"], at["lo"], at["hi"],
                )
            )  # fmt: skip
        if temporary >= 0:
            self.free.append(temporary)

    def _table(self, node: Node, source: int, target: int) -> None:
        table = node.input(1).array()
        by_channel = node.attrs["axis"] is not None
        self.operations.append(Lookup(target, source, table if by_channel else table.reshape(-1), first_entry(node)))

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
        if bias is not None and kind != "column":
            self.operations.append(AddBias(source, source, bias))
            bias = None
        limit = self.limits.get(node.input(0), largest(node.input(0).dtype))
        m64, s64 = m.astype(np.int64), s.astype(np.int64)
        b64 = None if bias is None else bias.astype(np.int64)
        self.operations.append(Rescale.of(at, target, source, m64, s64, limit, b64))


def block_of(columns: int, rows: int, most: int = 256, room: int = 4096) -> tuple[int, int, int]:
    """(block rows, block columns, leading dimension) of a step's register block."""
    width = min(-(-columns // 16) * 16, most)
    return max(1, min(rows, room // width)), width, width
