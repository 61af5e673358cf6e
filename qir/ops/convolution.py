"""Conv and its integer form qir.Conv."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OverflowProofError, TypeInferenceError
from ..lowering import Lowering, Quantized
from ..types import Array, DType, TensorType
from .base import EIGHT_BITS, INT32_CONSTANT, REQUIRED, WEIGHTS, Op, elements, register
from .exact_product import operand
from .halves import is_wide, linear_in_halves
from .intervals import interval, joined, weighted_overflow
from .linear import LinearWeights, fold, weights_and_bias
from .open_axes import at_every_size
from .requantize import quant_of
from .windows import conv_output, resolve_pads, windows

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


def convolve(x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int) -> Array:
    """Cross-correlation of an already padded x (N, C, *spatial) with w (M, C/group, *kernel), in x's dtype.

    Integer callers pass float64 arrays: every partial sum is an integer below 2^53, so the result is exact and
    BLAS does the work.
    """
    n, m = x.shape[0], w.shape[0]
    win = windows(x, w.shape[2:], strides, dilations)  # (N, C, *out, *kernel)
    rank = w.ndim - 2
    out = win.shape[2 : 2 + rank]
    taps = int(np.prod(w.shape[2:]))
    cg = x.shape[1] // group
    cols = win.reshape(n, group, cg, int(np.prod(out)), taps)
    cols = np.moveaxis(cols, 3, 2).reshape(n, group, -1, cg * taps)  # (N, G, P, cg*taps)
    kernel = w.reshape(group, m // group, cg * taps)
    y = np.matmul(kernel[None], np.swapaxes(cols, 2, 3))  # (N, G, M/G, P)
    return y.reshape(n, m, *out)


def _shape(types: Sequence[TensorType | None], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    xs, ws = [int(d) for d in x.shape], [int(d) for d in w.shape]
    if len(xs) != len(ws) or len(xs) < 3:
        raise TypeInferenceError(f"x {x} and w {w} need the same rank, 3 or more")
    if xs[1] != ws[1] * attrs["group"] or ws[0] % attrs["group"]:
        raise TypeInferenceError(f"x {x}, w {w} and group {attrs['group']} do not fit")
    check_bias(types, ws[0])
    return conv_output(xs, ws, attrs)


def check_bias(types: Sequence[TensorType | None], channels: int) -> None:
    """The third input, where it is there, has one number for each output channel.  Raises TypeInferenceError."""
    bias = types[2] if len(types) > 2 else None
    if bias is not None and bias.shape != (channels,):
        raise TypeInferenceError(f"bias {bias} for {channels} channels")


@register
class Conv(Op):
    """y[n,m,p] = b[m] + sum_{c,k} w[m,c,k] x[n,c, p*stride + k*dilation - pad]   (grouped: c within m's group)"""

    name = "Conv"
    linear = True
    weights = 1
    trained = True
    inputs = "x w b?"
    attrs = {
        "auto_pad": "NOTSET", "dilations": None, "group": 1, "kernel_shape": None, "pads": None, "strides": None,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        assert types[0] is not None
        return [TensorType(types[0].dtype, _shape(types, attrs))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        pads, strides, dilations = resolve_pads(x.shape[2:], w.shape[2:], attrs)
        rank = w.ndim - 2
        padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
        y = convolve(padded, w, strides, dilations, attrs["group"])
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = low.quantized(node.input(0))
        q = quant_of(x)
        ints, quant, bias = weights_and_bias(low, node, channel_axis=0)
        kernel = ints.shape[2:]
        pads, strides, dilations = at_every_size(
            node, node.input(0).shape[2:], lambda spatial: resolve_pads(spatial, kernel, node.attrs), "its pads"
        )
        g = low.graph
        name, where = node.output.name, str(node)

        def emit(source: Value, weights: LinearWeights, stem: str) -> Value:
            q = quant_of(source)
            return g.add_node(
                "qir.Conv",
                [source, *weights.constants(g, stem)],
                {
                    "strides": list(strides), "pads": list(pads), "dilations": list(dilations),
                    "group": node.attrs["group"], "pad_value": [q.zero_point[0]],
                    "weight_zero_point": weights.zero_point,
                },
                outputs=[f"{stem}.acc"], quant=low.accumulator_quant(q, weights.quant, axis=1),
            ).output  # fmt: skip

        if is_wide(x):
            acc = linear_in_halves(low, x, ints, quant, bias, 0, 1, where, name, emit)
        else:
            acc = emit(x, fold(low, ints, quant, bias, q, 0, where), name)
        low.set(node.output, Quantized(acc))

    def macs(self, node: Node) -> int:
        return elements(node.output) * math.prod(int(d) for d in node.input(1).shape[1:])


def pad_spatial(x: Array, pads: Sequence[int], value: Sequence[int]) -> Array:
    """Spatial padding with one value, or with one value a channel."""
    rank = x.ndim - 2
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    if not any(pads):
        return x
    if len(value) == 1:
        return np.pad(x, widths, constant_values=value[0])
    shift = np.asarray(value, dtype=x.dtype).reshape(1, -1, *[1] * rank)
    inside = np.pad(np.ones((1, 1, *x.shape[2:]), bool), widths)
    return np.where(inside, np.pad(x, widths), shift)


@register
class IntegerConv(Op):
    """acc = sum (w - weight_zero_point) * x + bias        [HAWQ-V3 eq. 5, docs/arithmetic.md 3]

    x: int8/uint8 (or 4 bits), padded with pad_value (one value, or one a channel).  w: int8/uint8/int4/uint4.
    bias: int32 (M,), -z_x sum(w - z_w) folded in.  acc: int32; overflow is excluded by proof when it is lowered.
    """

    name = "qir.Conv"
    accumulates = True
    linear = True
    weights = 1
    inputs = "x w bias?"
    operands = {"x": EIGHT_BITS, "w": WEIGHTS, "bias": INT32_CONSTANT}
    outputs = "acc"
    attrs = {
        "strides": REQUIRED, "pads": REQUIRED, "dilations": REQUIRED, "group": 1, "pad_value": REQUIRED,
        "weight_zero_point": 0,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x = types[0]
        if x is not None and x.rank > 2:
            values = attrs["pad_value"]
            if not isinstance(values, list) or len(values) not in (1, x.shape[1]):
                raise TypeInferenceError(f"pad_value {values} is not one for all channels of {x}, or one for each")
        return [TensorType(DType.INT32, _shape(types, {**attrs, "auto_pad": "NOTSET"}))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, w, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        padded = pad_spatial(x, attrs["pads"], attrs["pad_value"]).astype(np.float64)
        centred = w.astype(np.float64) - attrs["weight_zero_point"]
        acc = convolve(padded, centred, attrs["strides"], attrs["dilations"], attrs["group"]).astype(np.int64)
        if bias is not None:
            acc = acc + bias.astype(np.int64).reshape(-1, *[1] * (w.ndim - 2))
        return (check_int32(acc),)

    def function_body(self, body: Body, node: Node) -> None:
        attrs, kind = node.attrs, body.dtype("x")
        rank = body.rank("x") - 2
        x = operand(body, "x", kind, 0)
        if any(attrs["pads"]):
            padded = pad_body(body, x.name, kind, rank, attrs["pads"], attrs["pad_value"])
            x = replace(x, name=padded)
        x, w = x.unsigned(body), operand(body, "w", body.dtype("w"), attrs["weight_zero_point"]).unsigned(body)
        out = body.op(
            "ConvInteger", x.name, w.name, x.zero(body), w.zero(body), dilations=attrs["dilations"],
            group=attrs["group"], strides=attrs["strides"], pads=[0] * (2 * rank),
            output=None if body.has("bias") else "acc",
        )  # fmt: skip
        if body.has("bias"):
            shape = body.int64([1, -1] + [1] * rank)
            body.op("Add", out, body.op("Reshape", "bias", shape), output="acc")

    def macs(self, node: Node) -> int:
        return elements(node.output) * math.prod(int(d) for d in node.input(1).shape[1:])

    def overflows(self, node: Node) -> Iterator[str]:
        x = interval(node.input(0))
        if any(node.attrs["pads"]):
            x = joined(x, *node.attrs["pad_value"])
        yield from weighted_overflow(node, 0, x)


def pad_body(body: Body, x: str, kind: DType, rank: int, pads: Sequence[int], value: Sequence[int]) -> str:
    """Spatial padding with one value (Pad), or with one a channel (Pad, then Where picks the channel's outside)."""
    np_kind = (DType.INT8 if kind.is_signed else DType.UINT8).numpy if kind.bits < 8 else kind.numpy
    onnx_pads = body.int64([0, 0, *pads[:rank], 0, 0, *pads[rank:]])
    if len(value) == 1:
        return body.op("Pad", x, onnx_pads, body.constant(np.asarray(value[0], dtype=np_kind)))
    per_channel = body.constant(np.asarray(value, dtype=np_kind).reshape(1, -1, *[1] * rank))
    shape = body.op("Shape", x)
    ones = body.op("Expand", body.constant(np.asarray(True)), shape)
    inside = body.cast(body.op("Pad", body.cast(ones, DType.UINT8), onnx_pads), DType.BOOL)
    zeros = body.op("Pad", x, onnx_pads)
    return body.op("Where", inside, zeros, per_channel)


def check_int32(acc: Array) -> Array:
    """int64 accumulator as int32.  Raises OverflowProofError: the proof at lowering was wrong."""
    if acc.size and (int(acc.max()) > DType.INT32.hi or int(acc.min()) < DType.INT32.lo):
        raise OverflowProofError("an accumulator left int32")
    return acc.astype(np.int32)
