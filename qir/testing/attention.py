"""Attention blocks whose masks are written as exporters write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..graph import Graph, Value
from ..types import Array, DType, TensorType

LEAST = float(np.finfo(np.float32).min)
FLOAT, INT64, BOOL = DType.FLOAT32, DType.INT64, DType.BOOL


class AttentionBuilder:
    """softmax(q k^T / sqrt(d) and a mask) v of `x` (N, length, width); `mask` (N, length) where it is read."""

    def __init__(self, length: int = 10, heads: int = 2, size: int = 16, seed: int = 0, x: Value | None = None) -> None:
        """x: a tensor (N, length, heads * size) of a graph to build in, instead of a graph of its own."""
        self.length, self.heads, self.size = length, heads, size
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("attention") if x is None else x.graph
        self.x = self.graph.add_input("x", TensorType(FLOAT, ("N", length, heads * size))) if x is None else x

    def mask(self, kind: DType = INT64) -> Value:
        """The padding mask as an input, (N, length)."""
        return self.graph.add_input(self.graph.fresh("mask"), TensorType(kind, ("N", self.length)))

    def const(self, data: Any, dtype: Any = np.float32) -> Value:
        return self.graph.add_constant("c", np.asarray(data, dtype))

    def op(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.graph.add_node(op, inputs, attrs, outputs=[self.graph.fresh("t")]).output

    def cast(self, x: Value, to: DType) -> Value:
        return self.op("Cast", x, to=str(to))

    def spread(self, mask: Value, *axes: int) -> Value:
        """Axes of size 1, one Unsqueeze each, as TorchScript writes them."""
        for axis in axes:
            mask = self.op("Unsqueeze", mask, self.const([axis], np.int64))
        return mask

    def padding(self, kind: DType = INT64) -> Value:
        """The padding mask as (N, 1, 1, length)."""
        return self.spread(self.mask(kind), 1, 2)

    def triangle(self) -> Array:
        """Booleans (length, length): what a causal mask keeps."""
        return np.tri(self.length, dtype=bool)

    def projection(self, x: Value) -> Value:
        d = self.heads * self.size
        w, b = self.rng.normal(size=(d, d)) / np.sqrt(d), self.rng.normal(size=d) * 0.1
        return self.op("Add", self.op("MatMul", x, self.const(w)), self.const(b))

    def split(self, x: Value, perm: tuple[int, ...] = (0, 2, 1, 3)) -> Value:
        shape = self.const([0, self.length, self.heads, self.size], np.int64)
        return self.op("Transpose", self.op("Reshape", self.projection(x), shape), perm=list(perm))

    def build(self, attend: Callable[[AttentionBuilder, Value], Value]) -> Graph:
        """attend: from scores (N, heads, length, length) to weights that sum to 1."""
        q, k, v = self.split(self.x), self.split(self.x, (0, 2, 3, 1)), self.split(self.x)
        scores = self.op("Mul", self.op("MatMul", q, k), self.const(self.size**-0.5))
        y = self.op("MatMul", attend(self, scores), v)
        shape = self.const([0, self.length, self.heads * self.size], np.int64)
        y = self.projection(self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), shape))
        self.graph.set_outputs([y])
        return self.graph

    def feeds(self, samples: int, seed: int) -> dict[str, Array]:
        """Random inputs: masks keep between 3 and all positions."""
        rng = np.random.default_rng((seed, 77))
        feeds: dict[str, Array] = {}
        for value in self.graph.inputs:
            shape = [samples, *(int(d) for d in value.shape[1:])]
            if value is self.x:
                feeds[value.name] = rng.normal(size=shape).astype(np.float32)
                continue
            feeds[value.name] = padding_mask(rng, shape).astype(value.dtype.numpy)
        return feeds


def padding_mask(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    """Booleans that keep the first positions along the last axis, at least 3 of them where there are as many."""
    most = rng.integers(min(3, shape[-1]), shape[-1] + 1, size=(*shape[:-1], 1))
    return np.broadcast_to(np.arange(shape[-1]) < most, shape)


Attend = Callable[[AttentionBuilder, Value], Value]
"""From scores to weights."""


def _soft(m: AttentionBuilder, scores: Value) -> Value:
    return m.op("Softmax", scores, axis=-1)


def added(build: Callable[[AttentionBuilder], Value]) -> Attend:
    """A mask that is added to the scores."""
    return lambda m, scores: _soft(m, m.op("Add", scores, build(m)))


def _inverted(m: AttentionBuilder, least: float) -> Value:
    """(1 - m) * least, of integers cast to floats."""
    inverse = m.op("Sub", m.const(1.0), m.cast(m.padding(), FLOAT))
    return m.op("Mul", inverse, m.const(least))


def _filled(m: AttentionBuilder) -> Value:
    """masked_fill(1 - m, (1 - m).bool(), least)"""
    inverse = m.op("Sub", m.const(1.0), m.cast(m.padding(), FLOAT))
    return m.op("Where", m.cast(inverse, BOOL), m.const(LEAST), inverse)


def _whole(m: AttentionBuilder) -> Value:
    """Computed on integers, cast in the end."""
    inverse = m.op("Mul", m.op("Sub", m.const(1, np.int64), m.padding()), m.const(-10000, np.int64))
    return m.cast(inverse, FLOAT)


def _outer(m: AttentionBuilder) -> Value:
    """1 - m_i m_j"""
    mask = m.cast(m.mask(), FLOAT)
    both = m.op("Mul", m.spread(mask, 1, 2), m.spread(mask, 1, 3))
    return m.op("Mul", m.op("Sub", m.const(1.0), both), m.const(LEAST))


def _causal_and_padding(m: AttentionBuilder) -> Value:
    """Where(expand(causal and padding), 0, least), as transformers 5 writes it."""
    keep = m.op("And", m.const(m.triangle()[None, None], bool), m.cast(m.padding(), BOOL))
    keep = m.op("Expand", keep, m.const([1, 1, m.length, m.length], np.int64))
    return m.op("Where", keep, m.const(0.0), m.const(LEAST))


def _where_dropped(m: AttentionBuilder, scores: Value) -> Value:
    dropped = m.op("Equal", m.padding(), m.const(0, np.int64))
    return _soft(m, m.op("Where", dropped, m.const(-np.inf), scores))


def _where_kept(m: AttentionBuilder, scores: Value) -> Value:
    return _soft(m, m.op("Where", m.cast(m.padding(), BOOL), scores, m.const([LEAST])))


def _where_boolean(m: AttentionBuilder, scores: Value) -> Value:
    return _soft(m, m.op("Where", m.op("Not", m.padding(BOOL)), m.const(-1e9), scores))


def _sdpa(m: AttentionBuilder, scores: Value) -> Value:
    mask = m.op("Where", m.cast(m.padding(), BOOL), m.const([0.0]), m.const([-np.inf]))
    y = _soft(m, m.op("Add", scores, mask))
    return m.op("Where", m.op("IsNaN", y), m.const([0.0]), y)


def _two(m: AttentionBuilder, scores: Value) -> Value:
    causal = m.const(np.where(m.triangle(), 0, -np.inf))
    return _soft(m, m.op("Add", m.op("Add", scores, causal), _inverted(m, -1e4)))


def _scaled_after(m: AttentionBuilder, scores: Value) -> Value:
    causal = m.const(np.where(m.triangle(), 0, LEAST))
    return _soft(m, m.op("Div", m.op("Add", causal, scores), m.const(2.0)))


def _gpt2(m: AttentionBuilder, scores: Value) -> Value:
    """w b - 1e4 (1 - b), b ones and zeros: the first GPT-2."""
    b = m.const(m.triangle()[None, None])
    dropped = m.op("Mul", m.op("Sub", m.const(1.0), b), m.const(1e4))
    return _soft(m, m.op("Sub", m.op("Mul", scores, b), dropped))


def _limited(m: AttentionBuilder, scores: Value) -> Value:
    """max(scores + mask, least), reshaped to (N heads, length, length): OPT."""
    s = m.op("Max", m.op("Add", scores, _inverted(m, LEAST)), m.const(LEAST))
    s = m.op("Reshape", s, m.const([-1, m.length, m.length], np.int64))
    y = m.op("Softmax", s, axis=-1)
    return m.op("Reshape", y, m.const([-1, m.heads, m.length, m.length], np.int64))


def _zeros_behind(m: AttentionBuilder, scores: Value) -> Value:
    dropped = m.op("Not", m.cast(m.padding(), BOOL))
    y = _soft(m, m.op("Where", dropped, m.const(LEAST), scores))
    return m.op("Where", dropped, m.const(0.0), y)


def _product_behind(m: AttentionBuilder, scores: Value) -> Value:
    mask = m.cast(m.padding(), FLOAT)
    bias = m.op("Mul", m.op("Sub", m.const(1.0), mask), m.const(-1e6))
    return m.op("Mul", _soft(m, m.op("Add", bias, scores)), mask)


def _subtracted(m: AttentionBuilder, scores: Value) -> Value:
    inverse = m.op("Sub", m.const(1.0), m.cast(m.padding(), FLOAT))
    return _soft(m, m.op("Sub", scores, m.op("Mul", inverse, m.const(1e9))))


def _logarithm(m: AttentionBuilder) -> Value:
    """log(m): 0 and -inf."""
    return m.op("Log", m.cast(m.padding(BOOL), FLOAT))


def _minus_one(m: AttentionBuilder) -> Value:
    """(m - 1) 9999, of int32, causal and padding in one product of floats."""
    both = m.op("Mul", m.cast(m.padding(DType.INT32), FLOAT), m.const(m.triangle()[None, None]))
    return m.op("Mul", m.op("Sub", both, m.const(1.0)), m.const(9999.0))


def _where_zero(m: AttentionBuilder, scores: Value) -> Value:
    """masked_fill(m == 0, least) of a mask of floats."""
    dropped = m.op("Equal", m.padding(FLOAT), m.const(0.0))
    return _soft(m, m.op("Where", dropped, m.const(LEAST), scores))


def _indexed(m: AttentionBuilder) -> Value:
    """The mask gathered by index from what it is flattened to, as transformers 5 is exported by TorchScript."""
    flat = m.op("Flatten", m.cast(m.mask(), BOOL), axis=0)
    sizes = m.op("Shape", m.x)
    batch = m.op("Gather", sizes, m.const(0, np.int64), axis=0)
    rows = m.op("Range", m.const(0, np.int64), batch, m.const(1, np.int64))
    at = m.op("Mul", m.spread(rows, 1, 2, 3), m.const([m.length], np.int64))
    at = m.op("Add", m.const(np.arange(m.length)[None, None, None], np.int64), at)
    kept = m.op("Gather", m.op("Reshape", flat, m.const([-1], np.int64)), at, axis=0)
    causal = m.op(
        "LessOrEqual", m.const(np.arange(m.length)[None], np.int64), m.const(np.arange(m.length)[:, None], np.int64)
    )
    return m.op("Where", m.op("And", kept, causal), m.const(0.0), m.const(LEAST))


SPELLINGS: dict[str, Attend] = {
    "none": _soft,
    **{
        f"causal {least:g}": added(lambda m, v=least: m.const(np.where(m.triangle(), 0, v)))
        for least in (-np.inf, LEAST, -1e4)
    },
    "causal, relative bias": added(lambda m: m.const(np.where(m.triangle(), -0.1 * np.arange(m.length), -np.inf))),
    "(1 - m) -1e4": added(lambda m: _inverted(m, -1e4)),
    "(1 - m) least": added(lambda m: _inverted(m, LEAST)),
    "(1 - float m) least": added(lambda m: m.op("Mul", m.op("Sub", m.const(1.0), m.padding(FLOAT)), m.const(LEAST))),
    "filled": added(_filled),
    "integers": added(_whole),
    "outer product": added(_outer),
    "logarithm": added(_logarithm),
    "(m - 1) 9999": added(_minus_one),
    "where zero": _where_zero,
    "indexed": added(_indexed),
    "causal and padding": added(_causal_and_padding),
    "where dropped": _where_dropped,
    "where kept": _where_kept,
    "where boolean": _where_boolean,
    "sdpa": _sdpa,
    "one after the other": _two,
    "scaled after": _scaled_after,
    "w b - 1e4 (1 - b)": _gpt2,
    "limited, reshaped": _limited,
    "zeros behind": _zeros_behind,
    "product behind": _product_behind,
    "subtracted": _subtracted,
}
"""Name -> the way from scores to weights."""
