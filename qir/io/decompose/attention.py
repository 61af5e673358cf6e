"""Attention and rotary embeddings, as products of matrices, a softmax, and what stands around them."""

from __future__ import annotations

import math

import numpy as np

from ..adapters import Raw, Scope
from .steps import Decomposition, Steps, Writer

LEAST = float(np.finfo(np.float32).min)
"""Added where a mask drops a position."""


def _heads(w: Writer, name: str, heads: int) -> Steps:
    """(batch, length, heads * size) -> (batch, heads, length, size)."""
    yield w("Reshape", name, w.ints([0, 0, heads, -1]))
    yield w("Transpose", w.last, perm=[0, 2, 1, 3])


def _scores(w: Writer, q: str, k: str, scale: float, softcap: float = 0.0) -> Steps:
    """scale q k^T, (batch, heads, length, length)."""
    rank = w.rank(k)
    yield w("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    yield w("MatMul", q, w.last)
    yield w("Mul", w.last, w.real(scale))
    if softcap:
        yield w("Mul", w.last, w.real(1.0 / softcap))
        yield w("Tanh", w.last)
        yield w("Mul", w.last, w.real(softcap))


def _additive(w: Writer, keep: str) -> Steps:
    """A boolean mask as a term of the scores."""
    yield w("Where", keep, w.real(0.0), w.real(LEAST))


def _causal(w: Writer, scores: str) -> Steps:
    """Scores with positions after the query's own dropped; the last query sees all keys."""
    rows, columns = w.shape(scores)[-2:]
    if isinstance(rows, int) and isinstance(columns, int):
        keep = np.tril(np.ones((rows, columns), bool), columns - rows)
        yield from _additive(w, w.constant(keep))
        yield w("Add", scores, w.last)
        return
    ranges: list[str] = []
    for start in (-2, -1):
        yield w("Shape", scores, start=start, end=-1) if start == -2 else w("Shape", scores, start=start)
        yield w("Squeeze", w.last, w.ints([0]))
        yield w("Range", w.ints(0), w.last, w.ints(1))
        ranges.append(w.last)
    yield w("Shape", scores, start=-1)
    size = w.last
    yield w("Shape", scores, start=-2, end=-1)
    yield w("Sub", size, w.last)
    yield w("Add", ranges[0], w.last)
    yield w("Unsqueeze", w.last, w.ints([1]))
    last = w.last
    yield w("Unsqueeze", ranges[1], w.ints([0]))
    yield w("LessOrEqual", w.last, last)
    yield from _additive(w, w.last)
    yield w("Add", scores, w.last)


def _grouped(w: Writer, name: str, groups: int, times: int) -> Steps:
    """(batch, groups, length, size) -> (batch, groups * times, length, size), each group repeated."""
    w.last = name
    if times > 1:
        yield w("Unsqueeze", name, w.ints([2]))
        yield w("Expand", w.last, w.ints([1, 1, times, 1, 1]))
        length, size = w.shape(name)[2:]
        target = [0, groups * times, length if isinstance(length, int) else -1, size if isinstance(size, int) else -1]
        yield w("Reshape", w.last, w.ints(target))


def _size(w: Writer, name: str, heads: int | None = None) -> int:
    last = w.shape(name)[-1]
    if not isinstance(last, int) or last < 1 or (heads and last % heads):
        raise w.refuse("the size of a head is not known")
    return last // (heads or 1)


def attention(scope: Scope, raw: Raw) -> Steps:
    """Attention (opset 23): softmax(scale q k^T + mask) v, heads inside the last axis or on an axis of their own."""
    w = Writer(scope, raw)
    w.only("is_causal", "q_num_heads", "kv_num_heads", "scale", "softcap", "softmax_precision", "qk_matmul_output_mode")
    w.unused(3)
    q, k, v = (w.need(i) for i in range(3))
    flat = w.rank(q) == 3
    if flat:
        heads, groups = int(w.number("q_num_heads", 0)), int(w.number("kv_num_heads", 0))
        if heads < 1 or groups < 1 or heads % groups:
            raise w.refuse(f"q_num_heads {heads} and kv_num_heads {groups}")
        sides: list[str] = []
        for name, count in ((q, heads), (k, groups), (v, groups)):
            yield from _heads(w, name, count)
            sides.append(w.last)
        q, k, v = sides
    else:
        sizes = [w.shape(n)[1] for n in (q, k)]
        if not all(isinstance(s, int) for s in sizes):
            raise w.refuse("the number of heads is not known")
        heads, groups = int(sizes[0]), int(sizes[1])
    for index, name in ((4, "k"), (5, "v")):
        past = raw.input(index)
        if past:
            now = k if name == "k" else v
            wanted = raw.outputs[index - 3] if len(raw.outputs) > index - 3 else None
            yield w("Concat", past, now, axis=2, output=wanted)
            k, v = (w.last, v) if name == "k" else (k, w.last)
        elif len(raw.outputs) > index - 3 and raw.outputs[index - 3]:
            yield w("Identity", k if name == "k" else v, output=raw.outputs[index - 3])
    size = _size(w, q)
    repeated: list[str] = []
    for name in (k, v):
        yield from _grouped(w, name, groups, heads // groups)
        repeated.append(w.last)
    k, v = repeated
    yield from _scores(w, q, k, float(w.number("scale", None) or 1 / math.sqrt(size)), float(w.number("softcap", 0.0)))
    scores = w.last
    if mask := raw.input(3):
        if not scope.type(mask).dtype.is_float:
            yield from _additive(w, mask)
            mask = w.last
        yield w("Add", scores, mask)
        scores = w.last
    if w.number("is_causal", 0):
        yield from _causal(w, scores)
        scores = w.last
    yield w("Softmax", scores, axis=-1)
    yield w("MatMul", w.last, v, output=None if flat else w.result)
    if flat:
        yield w("Transpose", w.last, perm=[0, 2, 1, 3])
        yield w("Reshape", w.last, w.ints([0, 0, heads * _size(w, v)]), output=w.result)


def _masked(w: Writer, scores: str, mask: str, filler: float) -> Steps:
    """Scores where an integer mask of onnxruntime keeps a position: (batch,) lengths, (batch, keys), (batch, q, k)."""
    rank, keys = w.rank(mask), w.shape(scores)[-1]
    if rank == 1:
        if not isinstance(keys, int):
            raise w.refuse("a mask of lengths for an open number of keys")
        kind = w.scope.type(mask).dtype.numpy
        yield w("Unsqueeze", mask, w.ints([1, 2, 3]))
        yield w("Less", w.constant(np.arange(keys, dtype=kind)), w.last)
    else:
        yield w("Cast", mask, to="bool")
        yield w("Unsqueeze", w.last, w.ints({2: [1, 2], 3: [1]}.get(rank, [])))
    yield w("Where", w.last, w.real(0.0), w.real(filler))
    yield w("Add", scores, w.last)


def _attend(w: Writer, q: str, k: str, v: str, heads: int, mask: str | None, bias: str | None) -> Steps:
    """Heads of (batch, length, heads * size) tensors through onnxruntime's attention."""
    size = _size(w, q, heads)
    sides: list[str] = []
    for name in (q, k, v):
        yield from _heads(w, name, heads)
        sides.append(w.last)
    yield from _scores(w, sides[0], sides[1], float(w.number("scale", 0.0)) or 1 / math.sqrt(size))
    if bias:
        yield w("Add", w.last, bias)
    if mask:
        yield from _masked(w, w.last, mask, float(w.number("mask_filter_value", -10000.0)))
    if w.number("unidirectional", 0):
        yield from _causal(w, w.last)
    yield w("Softmax", w.last, axis=-1)
    yield w("MatMul", w.last, sides[2])
    yield w("Transpose", w.last, perm=[0, 2, 1, 3])
    yield w("Reshape", w.last, w.ints([0, 0, _size(w, v)]), output=w.result)


def packed_attention(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft Attention: one matrix gives queries, keys and values."""
    w = Writer(scope, raw)
    w.only("num_heads", "unidirectional", "scale", "mask_filter_value", "qkv_hidden_sizes")
    w.unused(1)
    if raw.input(4) or raw.input(6):
        raise w.refuse("keys and values of earlier steps (past) are not supported")
    weights = w.shape(raw.input(1))
    sizes = [int(s) for s in w.number("qkv_hidden_sizes", None) or [_size(w, raw.inputs[1] or "", 3)] * 3]
    if len(weights) != 2 or sum(sizes) != weights[1]:
        raise w.refuse(f"weights {list(weights)} for sizes {sizes}")
    yield w("MatMul", w.need(0), raw.inputs[1])
    if raw.input(2):
        yield w("Add", w.last, raw.input(2))
    split = w.many("Split", 3, w.last, w.ints(sizes), axis=-1)
    yield split
    q, k, v = (str(n) for n in split.outputs)
    yield from _attend(w, q, k, v, int(w.number("num_heads", 1)), raw.input(3), raw.input(5))


def multi_head_attention(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft MultiHeadAttention on (batch, length, size) queries, keys and values."""
    w = Writer(scope, raw)
    w.only("num_heads", "unidirectional", "scale", "mask_filter_value")
    w.unused(1)
    if any(raw.input(i) for i in range(6, 10)):
        raise w.refuse("keys and values of earlier steps (past) are not supported")
    sides = [w.need(i) for i in range(3)]
    if any(w.rank(n) != 3 for n in sides):
        raise w.refuse("packed queries, keys and values are not supported")
    if raw.input(3):
        split = w.many("Split", 3, raw.input(3), w.ints([_size(w, n) for n in sides]), axis=0)
        yield split
        for i, part in enumerate(split.outputs):
            yield w("Add", sides[i], part)
            sides[i] = w.last
    q, k, v = sides
    yield from _attend(w, q, k, v, int(w.number("num_heads", 1)), raw.input(4), raw.input(5))


def rotary_embedding(scope: Scope, raw: Raw) -> Steps:
    """RotaryEmbedding: pairs (a, b) of each head turned by an angle: (a cos - b sin, a sin + b cos).

    Opset 23: x, cos, sin, positions; com.microsoft: x, positions, cos, sin.  Pairs are halves, or neighbours
    (interleaved).
    """
    w = Writer(scope, raw)
    w.only("interleaved", "num_heads", "rotary_embedding_dim", "scale")
    x, second = w.need(0), raw.domain == "com.microsoft"
    cos, sin, positions = (w.need(2), w.need(3), raw.input(1)) if second else (w.need(1), w.need(2), raw.input(3))
    if float(w.number("scale", 1.0) or 1.0) != 1.0:
        raise w.refuse("a scale of positions is not supported")
    flat, heads = w.rank(x) == 3, int(w.number("num_heads", 0))
    if flat:
        if heads < 1:
            half = w.shape(cos)[-1]
            whole = w.shape(x)[-1]
            if not isinstance(half, int) or not isinstance(whole, int) or whole % (2 * half):
                raise w.refuse("num_heads is missing")
            heads = whole // (2 * half)
        yield from _heads(w, x, heads)
        x = w.last
    if positions is not None:
        if w.rank(positions) == 1:  # where the first token stands
            length = w.shape(x)[2]
            if not isinstance(length, int):
                raise w.refuse("positions given by their first, for an open length")
            yield w("Unsqueeze", positions, w.ints([1]))
            yield w("Add", w.last, w.ints(list(range(length))))
            positions = w.last
        angles: list[str] = []
        for table in (cos, sin):
            yield w("Gather", table, positions, axis=0)
            angles.append(w.last)
        cos, sin = angles
    sides: list[str] = []
    for table in (cos, sin):
        yield w("Unsqueeze", table, w.ints([1]))
        sides.append(w.last)
    cos, sin = sides
    size, turned = _size(w, x), int(w.number("rotary_embedding_dim", 0)) or _size(w, x)
    rest: str | None = None
    if turned < size:
        split = w.many("Split", 2, x, w.ints([turned, size - turned]), axis=3)
        yield split
        x, rest = str(split.outputs[0]), split.outputs[1]
    axis, half = w.ints([3]), turned // 2
    if w.number("interleaved", 0):
        pair: list[str] = []
        for start in (0, 1):
            yield w("Slice", x, w.ints([start]), w.ints([turned]), axis, w.ints([2]))
            pair.append(w.last)
        a, b = pair
    else:
        split = w.many("Split", 2, x, w.ints([half, half]), axis=3)
        yield split
        a, b = (str(n) for n in split.outputs)
    parts: list[str] = []
    for first, other, op in ((cos, sin, "Sub"), (sin, cos, "Add")):
        yield w("Mul", a, first)
        left = w.last
        yield w("Mul", b, other)
        yield w(op, left, w.last)
        parts.append(w.last)
    if w.number("interleaved", 0):
        for i, part in enumerate(parts):
            yield w("Unsqueeze", part, w.ints([4]))
            parts[i] = w.last
        yield w("Concat", *parts, axis=4)
        yield w("Reshape", w.last, w.ints([0, 0, 0, turned]))
        parts = [w.last]
    if rest is not None:
        parts.append(rest)
    if len(parts) > 1:
        yield w("Concat", *parts, axis=3)
    if flat:
        yield w("Transpose", w.last, perm=[0, 2, 1, 3])
        yield w("Reshape", w.last, w.ints([0, 0, heads * size]))
    yield w("Identity", w.last, output=w.result)


STANDARD: dict[str, Decomposition] = {"Attention": attention, "RotaryEmbedding": rotary_embedding}
MICROSOFT: dict[str, Decomposition] = {
    "Attention": packed_attention, "MultiHeadAttention": multi_head_attention, "RotaryEmbedding": rotary_embedding,
}  # fmt: skip
