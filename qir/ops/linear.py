"""Weights and biases of Conv, ConvTranspose, Gemm and MatMul on their way to integers, with the overflow proof."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..dyadic import round_half_even
from ..errors import LoweringError, OverflowProofError
from ..lowering import Lowering
from ..types import Array, QuantParams

if TYPE_CHECKING:
    from ..graph import Graph, Node, Value

LIMIT = 2**31


@dataclass(frozen=True)
class LinearWeights:
    """Integer weights, their quantization and the folded int32 bias of one layer.

    ints: the weight tensor in quant.dtype's NumPy type.  zero_point: per tensor (0 but for others' models).
    bias: (channels,) int32 with -z_x sum(w - z_w) in it, or None when it is all zero.
    """

    ints: Array
    quant: QuantParams
    zero_point: int
    bias: NDArray[np.int32] | None

    def constants(self, graph: Graph, name: str) -> list[Value | None]:
        """[w, bias] as constants of the graph being built."""
        w = graph.add_constant(f"{name}.w", self.ints, self.quant.dtype, self.quant)
        return [w, None if self.bias is None else graph.add_constant(f"{name}.bias", self.bias)]


def weights_and_bias(low: Lowering, node: Node, channel_axis: int) -> tuple[Array, QuantParams, NDArray[np.float64]]:
    """Integers and quantization of a linear node's weights (input 1), and its bias (input 2) for each channel.

    Raises LoweringError (weights not quantized, along another axis, or with several zero points).
    """
    form = low.form(node.input(1))
    ints, quant = getattr(form, "ints", None), getattr(form, "quant", None)
    if ints is None or quant is None:
        raise LoweringError(
            "weights are not quantized constants", where=str(node),
            hint="insert a QuantizeLinear/DequantizeLinear pair on them (passes.InsertQdq does)",
        )  # fmt: skip
    if quant.per_channel and quant.axis % ints.ndim != channel_axis:
        raise LoweringError(f"weights are quantized along axis {quant.axis}, not {channel_axis}", where=str(node))
    if len(set(quant.zero_point)) != 1:
        raise LoweringError("weights have a zero point for each channel", where=str(node))
    bias_value = node.optional(2)
    channels = ints.shape[channel_axis]
    bias = np.zeros(channels)
    if bias_value is not None:
        bias = np.broadcast_to(low.real_constant(bias_value).reshape(-1), (channels,))
    return ints, quant, bias


def fold(
    low: Lowering, ints: Array, quant: QuantParams, bias: Array, x: QuantParams, axis: int, where: str
) -> LinearWeights:
    """Weights and bias of a layer whose activation is quantized as `x`.

    bias_i32 = round_half_even(b / (s_w s_x)) - z_x * sum(w - z_w)                         [docs/arithmetic.md 3]
    Proof of no overflow: sum|w - z_w| * max|x - z_x| + |b| < 2^31 for each channel.  Where the bias alone is too
    large, the channel's weight scale is widened until it fits, and a note says so.
    Raises OverflowProofError (a sum too long for int32).
    """
    zero = quant.zero_point[0]
    scale = np.broadcast_to(np.asarray(quant.scale, np.float64), bias.shape).copy()
    span = max(x.dtype.hi - x.zero_point[0], x.zero_point[0] - x.dtype.lo)
    widest = max(abs(x.dtype.lo), x.dtype.hi)
    others = tuple(a for a in range(ints.ndim) if a != axis)

    def proof(w: Array, s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(size of the sum, size of the bias) for each channel, exact in float64."""
        total = np.abs(w.astype(np.float64) - zero).sum(axis=others)
        return total * max(span, widest), np.abs(bias / (s * x.scale[0]))

    products, sizes = proof(ints, scale)
    if (products >= LIMIT / 2).any():
        worst = int(np.argmax(products))
        raise OverflowProofError(
            f"channel {worst}: sum|w| * max|x| = {products[worst]:.4g} does not fit int32", where=where
        )
    too_big = products + sizes >= LIMIT - 1
    if too_big.any():
        factor = np.where(too_big, sizes / (LIMIT / 2) * 1.001, 1.0)
        if not quant.per_channel:
            factor = np.full_like(factor, factor.max())
        scale = scale * factor
        shape = [1] * ints.ndim
        shape[axis] = -1
        ints = round_half_even((ints.astype(np.float64) - zero) / factor.reshape(shape) + zero).astype(ints.dtype)
        low.note(
            f"bias of {int(too_big.sum())} channels does not fit int32, weight scale widened up to {factor.max():.4g}x"
        )
        quant = replace(quant, scale=tuple(scale) if quant.per_channel else (float(scale[0]),))
    centred_sum = (ints.astype(np.int64) - zero).sum(axis=others)
    folded = round_half_even(bias / (scale * x.scale[0])) - x.zero_point[0] * centred_sum
    if np.abs(folded).max(initial=0) >= LIMIT:
        raise OverflowProofError("the folded bias does not fit int32", where=where)
    folded_i32 = folded.astype(np.int32)
    return LinearWeights(ints.astype(quant.dtype.numpy), quant, zero, folded_i32 if folded_i32.any() else None)
