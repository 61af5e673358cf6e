"""y = factor * x + offset with constants, on whatever integers x is: the lowering behind Add, Mul, BatchNormalization.

Where x is narrow it becomes a table; where x is the accumulator of a linear layer, factor and offset go into that
layer's scale, weights and bias; elsewhere (int16, int32) one qir.Requantize, qir.Add or qir.Mul does it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..dyadic import common_dyadic, dyadic, round_half_even
from ..errors import LoweringError, OverflowProofError
from ..lowering import FREE, Bounds, Deferred, Fixed, Form, Lowering, Quantized
from ..types import Array, DType, QuantParams
from .linear import LIMIT, fold
from .requantize import output_grid, quant_of
from .table import Mapped, as_mapped

if TYPE_CHECKING:
    from ..graph import Node, Value

Reals = NDArray[np.float64]

EXACT = 1e-9
"""A quotient this near to an integer is that integer."""

FINE = 256
"""Intermediate grids are this much finer than the output's, so that their rounding does not show."""


def lower_affine(low: Lowering, node: Node, form: Form, factor: Array, offset: Array) -> None:
    """Record factor * form + offset as the form of the node's output.

    factor, offset: float64, broadcast with the node's output shape.
    Raises LoweringError (nothing applies), OverflowProofError (a folded bias does not fit).
    """
    factor, offset = np.asarray(factor, np.float64), np.asarray(offset, np.float64)
    low.set(node.output, affine(low, node, form, factor, offset))


def affine(low: Lowering, node: Node, form: Form, factor: Reals, offset: Reals, source: Value | None = None) -> Form:
    """The form of factor * form + offset; `source` is the value that `form` stands for (default: input 0)."""
    factor, offset = np.asarray(factor, np.float64), np.asarray(offset, np.float64)
    if isinstance(form, Fixed):
        return Fixed(form.data * factor + offset)
    rank = node.output.type.rank
    if isinstance(form, ByChannel) and (factor > 0).all() and _fits(form.x, form.factor * factor):
        return ByChannel(form.x, form.factor * factor, form.offset * factor + offset)
    mapped = as_mapped(form)
    if mapped is not None:
        got = _mapped(mapped, factor, offset, rank)
        if got is not None:
            return got
    if not isinstance(form, Quantized) and factor.size == 1 and offset.size == 1 and float(factor.reshape(())) > 0:
        return Shifted(form, float(factor.reshape(())), float(offset.reshape(())))
    x = form.value if isinstance(form, Quantized) else low.quantized(source or node.input(0))
    folded = fold_into_layer(low, node, x, factor, offset)
    if folded is not None:
        return Quantized(folded)
    q = quant_of(x)
    if q.per_channel:
        ratio = low.channels(np.asarray(q.scale), q, rank) * factor
        if (ratio <= 0).any() or not _fits(x, ratio):
            raise LoweringError(
                f"{x.name!r} has a scale for each channel and the constant does not follow it", where=str(node),
                hint="insert a QuantizeLinear/DequantizeLinear pair before this operator",
            )  # fmt: skip
        return ByChannel(x, ratio, offset)
    return Deferred(lambda target, bounds, name: emit_affine(low, x, factor, offset, target, bounds, name))


@dataclass(frozen=True)
class Shifted(Form):
    """factor * inner + offset for numbers, factor > 0: the same integers read on another grid.

    With grid (s, z) the inner form is emitted on (s / factor, z + offset / s), which is exact where offset / s is an
    integer; elsewhere it goes through a finer int32 grid.
    """

    inner: Form
    factor: float
    offset: float

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        if target.per_channel:
            raise LoweringError("activations are quantized per tensor", where=str(low.node or name))
        steps = self.offset / target.scale[0]
        zero = target.zero_point[0] + round(steps)
        if abs(steps - round(steps)) < EXACT and target.dtype.lo <= zero <= target.dtype.hi:
            grid = QuantParams((target.scale[0] / self.factor,), (zero,), target.dtype)
            limits = Bounds(*((b - self.offset) / self.factor for b in (bounds.lo, bounds.hi)))
            x = self.inner.emit(low, grid, limits, f"{name}.unscaled")
            return low.graph.add_node("Identity", [x], outputs=[name], quant=target).output
        fine = QuantParams((target.scale[0] / self.factor / FINE,), (0,), DType.INT32)
        x = self.inner.emit(low, fine, FREE, f"{name}.fine")
        return emit_affine(low, x, np.asarray(self.factor), np.asarray(self.offset), target, bounds, name)


@dataclass(frozen=True)
class ByChannel(Form):
    """factor * x + offset of integers whose scale differs by channels: maps of maps stay one, until a grid is known."""

    x: Value
    factor: Reals
    offset: Reals

    def emit(self, low: Lowering, target: QuantParams, bounds: Bounds, name: str) -> Value:
        return _emit_channels(low, self.x, self.factor, self.offset, target, bounds, name)


def channel_vector(array: Reals, rank: int) -> tuple[int, Reals] | None:
    """(axis, vector) of a constant that varies along one axis of a tensor of `rank` axes; axis -1 for none."""
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    axes = [i for i, d in enumerate(full.shape) if d > 1]
    if len(axes) > 1 or full.ndim > rank:
        return None
    return (axes[0] if axes else -1), full.reshape(-1)


def _mapped(mapped: Mapped, factor: Reals, offset: Reals, rank: int) -> Mapped | None:
    """The affine map inside the table, where the constants vary along at most one axis."""
    if mapped.x.type.rank != rank:
        return None
    ways = channel_vector(factor, rank), channel_vector(offset, rank)
    if ways[0] is None or ways[1] is None:
        return None
    axes = {a for a, _ in (ways[0], ways[1]) if a >= 0} | ({mapped.axis} if mapped.axis is not None else set())
    if not axes:
        return mapped.map(lambda r: r * float(ways[0][1][0]) + float(ways[1][1][0]))  # type: ignore[index]
    channels = mapped.x.shape[next(iter(axes))]
    if len(axes) > 1 or not isinstance(channels, int):
        return None
    sizes = {v.size for _, v in (ways[0], ways[1])} | ({mapped.reals.shape[0]} if mapped.axis is not None else set())
    if not sizes <= {1, channels}:
        return None  # the constant makes the tensor larger
    wide = mapped.per_channel(axes.pop(), channels)
    f, c = ways[0][1].reshape(-1, 1), ways[1][1].reshape(-1, 1)
    return wide.map(lambda r: r * f + c)


def fold_into_layer(low: Lowering, node: Node, x: Value, factor: Reals, offset: Reals) -> Value | None:
    """The layer that makes accumulator x, with factor in its scale (and weights' signs) and offset in its bias.

    None where x is no layer's accumulator or the constants do not follow its channels.
    """
    layer, q = x.producer, quant_of(x)
    if layer is None or layer.op not in ("qir.Conv", "qir.MatMul"):
        return None
    rank = x.type.rank
    axis = 1 if layer.op == "qir.Conv" else rank - 1
    ways = channel_vector(factor, rank), channel_vector(offset, rank)
    if ways[0] is None or ways[1] is None or not {ways[0][0], ways[1][0]} <= {-1, axis}:
        return None
    channels = x.shape[axis]
    assert isinstance(channels, int)
    if not {ways[0][1].size, ways[1][1].size} <= {1, channels}:
        return None
    f, c = (np.broadcast_to(v, (channels,)) for _, v in (ways[0], ways[1]))
    scale = np.broadcast_to(np.asarray(q.scale), (channels,))
    w_value, w_axis = layer.input(1), 0 if layer.op == "qir.Conv" else 1
    old = layer.optional(2)
    bias = np.zeros(channels, np.int64) if old is None else old.array().astype(np.int64)
    w = w_value.array()
    signs = np.sign(f)
    if (signs <= 0).any():
        zero = layer.attrs["weight_zero_point"]
        if zero or not w_value.dtype.is_signed or (w.size and int(w.min()) == w_value.dtype.lo):
            return None
        shape = [1] * w.ndim
        shape[w_axis] = -1
        w = (w * signs.reshape(shape).astype(w.dtype)).astype(w.dtype)
        bias = bias * signs.astype(np.int64)
    scale = scale * np.where(f == 0, 1.0, np.abs(f))
    k = finer(w_value, w, c / scale) if layer.attrs["weight_zero_point"] == 0 else 1
    if k > 1:
        low.note(f"weights times {k}: on the grid of so few bits the constant would lose up to half a step")
        w, scale, bias = (w.astype(np.int64) * k).astype(np.int8), scale / k, bias * k
    bias = bias + round_half_even(c / scale)
    # the proof of docs/arithmetic.md 3 again: z_x is inside |bias| already, so max|x| bounds the products
    source = layer.input(0)
    centred = np.abs(w.astype(np.float64) - layer.attrs["weight_zero_point"])
    sums = centred.sum(axis=tuple(a for a in range(w.ndim) if a != w_axis))
    if (sums * max(abs(source.dtype.lo), source.dtype.hi) + np.abs(bias) >= LIMIT).any():
        return _widened(low, node, layer, w, w_axis, scale, bias)
    uniform = q.axis is None and len(set(scale.tolist())) == 1
    quant = QuantParams(
        (float(scale[0]),) if uniform else tuple(float(s) for s in scale), (0,) * (1 if uniform else channels),
        DType.INT32, None if uniform else axis,
    )  # fmt: skip
    g, name = low.graph, node.output.name
    kept = w_value
    if w is not w_value.data:
        kind = DType.INT8 if k > 1 else w_value.dtype
        kept = g.add_constant(f"{name}.w", w, kind, _times(w_value.quant, k, kind))
    inputs = [layer.input(0), kept, g.add_constant(f"{name}.bias", bias.astype(np.int32))]
    return g.add_node(layer.op, inputs, layer.attrs, outputs=[f"{name}.acc"], quant=quant).output


def _widened(
    low: Lowering, node: Node, layer: Node, w: Array, w_axis: int, scale: Reals, bias: NDArray[np.int64]
) -> Value | None:
    """The layer with its weights' scales widened until the bias fits (docs/arithmetic.md 3); None where none do."""
    source, w_value, zero = layer.input(0), layer.input(1), int(layer.attrs["weight_zero_point"])
    x = quant_of(source)
    others = tuple(a for a in range(w.ndim) if a != w_axis)
    reals = (bias + x.zero_point[0] * (w.astype(np.int64) - zero).sum(axis=others)) * scale
    per_channel = tuple(float(s) / x.scale[0] for s in scale)
    quant = QuantParams(per_channel, (zero,) * len(per_channel), w_value.dtype, w_axis)
    try:
        folded = fold(low, w, quant, reals, x, w_axis, str(node))
    except OverflowProofError:
        return None
    axis = 1 if layer.op == "qir.Conv" else source.type.rank - 1
    return low.graph.add_node(
        layer.op, [source, *folded.constants(low.graph, node.output.name)], layer.attrs,
        outputs=[f"{node.output.name}.acc"], quant=low.accumulator_quant(x, folded.quant, axis=axis),
    ).output  # fmt: skip


def finer(w_value: Value, w: Array, steps: Reals) -> int:
    """What to multiply weights of 2 or 3 bits by, within int8, where a bias lies between the accumulator's steps.

    So few bits make steps of the accumulator that are a fair part of the output's.
    """
    most = int(np.abs(w.astype(np.int64)).max(initial=0))
    between = np.abs(steps - np.rint(steps)).max(initial=0) > 1 / 64
    return DType.INT8.hi // most if between and 0 < most <= 3 and w_value.dtype.bits <= 8 else 1


def _times(q: QuantParams | None, k: int, dtype: DType) -> QuantParams | None:
    """Quantization of the same reals by integers k times as large."""
    return q and replace(q, scale=tuple(s / k for s in q.scale), dtype=dtype)


def emit_affine(
    low: Lowering, x: Value, factor: Reals, offset: Reals, target: QuantParams, bounds: Bounds, name: str
) -> Value:
    """factor * x + offset on the grid `target`, x of any integer dtype with one scale."""
    q = quant_of(x)
    if not offset.any() and (factor > 0).all() and factor.ndim <= x.type.rank and _fits(x, factor):
        ratio = np.asarray(q.scale[0] * factor / target.scale[0])
        ratio = ratio.reshape(()) if ratio.size == 1 else ratio
        return low.rescale(x, ratio, target, bounds, name, q.zero_point[0])
    if factor.size != 1:
        fine = wide_grid(target)
        x = multiply_constant(low, x, factor, fine, FREE if offset.any() else bounds, f"{name}.product")
        q, factor = quant_of(x), np.ones(())
    return add_constant(low, x, float(factor.reshape(())), offset, target, bounds, name)


def _emit_channels(
    low: Lowering, x: Value, ratio: Reals, offset: Reals, target: QuantParams, bounds: Bounds, name: str
) -> Value:
    """ratio * x + offset for an accumulator with a scale for each channel, in `ratio`: one grid first, a finer one."""
    fine = wide_grid(target) if offset.any() else target
    limits, stem = (FREE, f"{name}.fine") if offset.any() else (bounds, name)
    made = low.rescale(x, ratio / fine.scale[0], fine, limits, stem)
    return add_constant(low, made, 1.0, offset, target, bounds, name) if offset.any() else made


def _fits(x: Value, constant: Reals) -> bool:
    """Whether a constant broadcasts into x without making it larger."""
    sizes = x.shape[x.type.rank - constant.ndim :]
    return all(c in (1, d) for c, d in zip(constant.shape, sizes, strict=True))


def wide_grid(target: QuantParams) -> QuantParams:
    """An int32 grid FINE times as fine as the target's."""
    return QuantParams((target.scale[0] / FINE,), (0,), DType.INT32)


def constant_operand(low: Lowering, data: Reals, step: float, name: str, bits: int = 30) -> Value:
    """A constant tensor on a symmetric grid at least as fine as `step`, in the narrowest of int16 and int32."""
    top = float(np.abs(data).max(initial=0)) or 1.0
    needed = max(15, math.ceil(math.log2(max(top / step, 1.0))) + 1)
    width = min(needed, bits)
    scale = top / (2**width - 1)
    dtype = DType.INT16 if width <= 15 else DType.INT32
    quant = QuantParams((scale,), (0,), dtype)
    ints = round_half_even(data / scale).astype(dtype.numpy)
    return low.graph.add_constant(name, ints, dtype, quant)


def full_rank(data: Reals, x: Value) -> Reals:
    """A constant with at least as many axes as x, so that executors need not line them up."""
    return data.reshape((1,) * (x.type.rank - data.ndim) + data.shape)


def add_constant(
    low: Lowering, x: Value, factor: float, offset: Reals, target: QuantParams, bounds: Bounds, name: str
) -> Value:
    """factor * x + offset as one qir.Add with a constant operand."""
    c = constant_operand(low, full_rank(offset, x), target.scale[0] / FINE, f"{name}.offset")
    return emit_add(low, x, c, factor, 1.0, target, bounds, name)


def emit_add(
    low: Lowering, a: Value, b: Value, a_factor: float, b_factor: float, target: QuantParams, bounds: Bounds, name: str
) -> Value:
    """a_factor * a + b_factor * b on the grid `target`: one qir.Add  [HAWQ-V3 eq. 9]."""
    qa, qb = quant_of(a), quant_of(b)
    s = target.scale[0]
    ratios = [a_factor * qa.scale[0] / s, b_factor * qb.scale[0] / s]
    if not any(ratios):
        return low.graph.add_constant(name, target.quantize(np.zeros(())), target.dtype, target)
    (m_a, m_b), shift = common_dyadic(ratios, where=str(low.node or name))
    lo, hi = bounds.on(target)
    attrs: dict[str, Any] = {
        "a_multiplier": m_a, "b_multiplier": m_b, "shift": shift, "a_zero_point": qa.zero_point[0],
        "b_zero_point": qb.zero_point[0], **output_grid(target, lo, hi),
    }  # fmt: skip
    return low.graph.add_node("qir.Add", [a, b], attrs, outputs=[name], quant=target).output


def emit_mul(low: Lowering, a: Value, b: Value, target: QuantParams, bounds: Bounds, name: str) -> Value:
    """a * b on the grid `target`: one qir.Mul  [docs/arithmetic.md 7].  Raises LoweringError where that is too wide."""
    qa, qb = quant_of(a), quant_of(b)
    if product_bound(a, b) >= LIMIT:
        raise LoweringError(
            f"the product of {a.name!r} ({a.dtype}) and {b.name!r} ({b.dtype}) does not fit int32",
            where=str(low.node or name), hint="quantize one of them to 8 bits, or both symmetrically",
        )  # fmt: skip
    multiplier, shift = dyadic(qa.scale[0] * qb.scale[0] / target.scale[0], where=str(low.node or name))
    lo, hi = bounds.on(target)
    attrs: dict[str, Any] = {
        "multiplier": multiplier, "shift": shift, "a_zero_point": qa.zero_point[0], "b_zero_point": qb.zero_point[0],
        **output_grid(target, lo, hi),
    }  # fmt: skip
    return low.graph.add_node("qir.Mul", [a, b], attrs, outputs=[name], quant=target).output


def product_bound(a: Value, b: Value) -> int:
    """Largest |(a - z_a)(b - z_b)|: from the data of a constant, from the dtype otherwise."""
    return _extent(a) * _extent(b)


def _extent(v: Value) -> int:
    q = quant_of(v)
    zero = q.zero_point[0]
    if v.data is not None and v.data.size:
        return int(np.abs(v.data.astype(np.int64) - zero).max())
    return max(v.dtype.hi - zero, zero - v.dtype.lo)


def multiply_constant(low: Lowering, x: Value, factor: Reals, target: QuantParams, bounds: Bounds, name: str) -> Value:
    """factor * x for a constant tensor of any signs: one qir.Mul, the constant as wide as the proof allows."""
    bits = min(15, (LIMIT - 1).bit_length() - _extent(x).bit_length())
    if bits < 7:
        raise LoweringError(f"{x.name!r} ({x.dtype}) is too wide for a product with a tensor", where=str(low.node))
    top = float(np.abs(factor).max(initial=0)) or 1.0
    scale = top / (2**bits - 1)
    ints = round_half_even(full_rank(factor, x) / scale).astype(np.int16)
    c = low.graph.add_constant(f"{name}.factor", ints, DType.INT16, QuantParams((scale,), (0,), DType.INT16))
    return emit_mul(low, x, c, target, bounds, name)
