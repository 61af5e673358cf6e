"""ConvTranspose; on integers a qir.Conv that makes all sub-pixel phases, then DepthToSpace and Slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError, TypeInferenceError
from ..lowering import Fixed, Lowering, Quantized
from ..sizes import add, multiply
from ..types import Array, Dim, QuantParams, TensorType
from .base import Op, elements, register
from .convolution import check_bias
from .linear import fold
from .open_axes import at_every_size, sizes_constant
from .requantize import quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value


def geometry(spatial: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]) -> tuple[list[int], ...]:
    """(begin pads, output sizes, strides, dilations) with auto_pad, output_shape and defaults resolved."""
    rank = len(kernel)
    strides = list(attrs["strides"] or [1] * rank)
    dilations = list(attrs["dilations"] or [1] * rank)
    extra = list(attrs["output_padding"] or [0] * rank)
    if len(spatial) != rank or {len(strides), len(dilations), len(extra)} != {rank}:
        raise TypeInferenceError(f"{rank}-D kernel on {len(spatial)} spatial axes")
    full = [s * (n - 1) + (k - 1) * d + 1 for s, n, k, d in zip(strides, spatial, kernel, dilations, strict=True)]
    auto, wanted = attrs["auto_pad"], attrs["output_shape"]
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is not None:
        sizes = list(wanted)[-rank:]
        begins: list[int] = []
        for f, e, w in zip(full, extra, sizes, strict=True):
            total = max(f + e - w, 0)
            begins.append(total - total // 2 if auto != "SAME_UPPER" else total // 2)
        return begins, sizes, strides, dilations
    pads = list(attrs["pads"] or [0] * (2 * rank)) if auto == "NOTSET" else [0] * (2 * rank)
    sizes = [f + e - pads[i] - pads[rank + i] for i, (f, e) in enumerate(zip(full, extra, strict=True))]
    if min(sizes) < 1:
        raise TypeInferenceError(f"pads {pads} leave nothing of the output")
    return pads[:rank], sizes, strides, dilations


@register
class ConvTranspose(Op):
    """y[n, m, i*stride + k*dilation - pad] += w[c, m, k] x[n, c, i], + b[m]"""

    name = "ConvTranspose"
    linear = True
    weights = 1
    trained = True
    inputs = "x w b?"
    attrs = {
        "auto_pad": "NOTSET", "dilations": None, "group": 1, "kernel_shape": None, "output_padding": None,
        "output_shape": None, "pads": None, "strides": None,
    }  # fmt: skip

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, w = types[0], types[1]
        assert x is not None and w is not None
        if x.rank != w.rank or x.rank < 3 or x.shape[1] != w.shape[0] or int(w.shape[0]) % attrs["group"]:
            raise TypeInferenceError(f"x {x}, w {w} and group {attrs['group']} do not fit")
        check_bias(types, int(w.shape[1]) * attrs["group"])
        kernel = [int(d) for d in w.shape[2:]]
        _, sizes, _, _ = geometry([int(d) for d in x.shape[2:]], kernel, attrs)
        return [TensorType(x.dtype, (x.shape[0], int(w.shape[1]) * attrs["group"], *sizes))]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        rank, group = w.ndim - 2, attrs["group"]
        begins, sizes, strides, dilations = geometry(x.shape[2:], w.shape[2:], attrs)
        spans = [
            s * (n - 1) + (k - 1) * d + 1
            for s, n, k, d in zip(strides, x.shape[2:], w.shape[2:], dilations, strict=True)
        ]
        room = [max(f, p + z) for f, p, z in zip(spans, begins, sizes, strict=True)]
        m = w.shape[1]
        full = np.zeros((x.shape[0], group * m, *room), x.dtype)
        cg = x.shape[1] // group
        for tap in np.ndindex(*w.shape[2:]):
            where = tuple(
                slice(k * d, k * d + s * (n - 1) + 1, s)
                for k, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
            )
            for g in range(group):
                part = np.tensordot(
                    w[(slice(g * cg, (g + 1) * cg), slice(None), *tap)], x[:, g * cg : (g + 1) * cg], (0, 1)
                )
                full[(slice(None), slice(g * m, (g + 1) * m), *where)] += np.moveaxis(part, 1, 0)
        crop = tuple(slice(p, p + z) for p, z in zip(begins, sizes, strict=True))
        y = full[(slice(None), slice(None), *crop)]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        x = low.quantized(node.input(0))
        form = low.form(node.input(1))
        if not isinstance(form, Fixed) or form.ints is None or form.quant is None:
            raise LoweringError(
                "weights are not quantized constants", where=str(node),
                hint="insert a QuantizeLinear/DequantizeLinear pair on them (passes.InsertQdq does)",
            )  # fmt: skip
        if quant_of(x).per_channel or quant_of(x).dtype.bits > 8:
            raise LoweringError(f"input {x.name!r} is {x.type}; 8 bits with one scale are needed", where=str(node))
        low.set(node.output, Quantized(_lower(low, node, x, form.ints, form.quant)))

    def macs(self, node: Node) -> int:
        return elements(node.input(0)) * math.prod(int(d) for d in node.input(1).shape[1:])


def _lower(low: Lowering, node: Node, x: Value, w: Array, wq: QuantParams) -> Value:
    """Output position stride*q + r takes taps k = r + stride*j from x[q - j]: for each phase r a plain convolution."""
    group, rank, name, g = node.attrs["group"], w.ndim - 2, node.output.name, low.graph
    if (wq.per_channel and (wq.axis or 0) % w.ndim != 1) or len(set(wq.zero_point)) != 1:
        raise LoweringError("weights are quantized per tensor or along axis 1", where=str(node))

    def find(spatial: list[int]) -> tuple[list[int], ...]:
        begins, sizes, strides, dilations = geometry(spatial, w.shape[2:], node.attrs)
        blocks = [-(-(p + z) // s) for p, z, s in zip(begins, sizes, strides, strict=True)]
        return begins, strides, dilations, [max(q - n, 0) for q, n in zip(blocks, spatial, strict=True)]

    begins, strides, dilations, right = at_every_size(node, x.shape[2:], find, "its pads")
    sizes = node.output.shape[2:]
    phases = list(np.ndindex(*strides))
    m, cg = w.shape[1], w.shape[0] // group
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    taps = [-(-span // s) for span, s in zip(spans, strides, strict=True)]
    kernel = np.full((group, len(phases), m, cg, *taps), wq.zero_point[0], dtype=w.dtype)
    by_group = w.reshape(group, cg, *w.shape[1:])
    for tap in np.ndindex(*w.shape[2:]):
        at = [k * d for k, d in zip(tap, dilations, strict=True)]
        phase = phases.index(tuple(a % s for a, s in zip(at, strides, strict=True)))
        t = tuple(n - 1 - a // s for n, a, s in zip(taps, at, strides, strict=True))
        kernel[(slice(None), phase, slice(None), slice(None), *t)] = np.moveaxis(
            by_group[(slice(None), slice(None), slice(None), *tap)], 1, 2
        )
    repeat = group * len(phases)
    quant = (
        wq if not wq.per_channel else replace(wq, scale=wq.scale * repeat, zero_point=wq.zero_point * repeat, axis=0)
    )
    bias_value = node.optional(2)
    bias = np.zeros(group * m) if bias_value is None else low.real_constant(bias_value).reshape(-1)
    bias = np.repeat(bias.reshape(group, 1, m), len(phases), axis=1).reshape(-1)
    qx = quant_of(x)
    folded = fold(low, kernel.reshape(-1, cg, *taps), quant, bias, qx, 0, str(node))
    left = [t - 1 for t in taps]
    acc = g.add_node(
        "qir.Conv", [x, *folded.constants(g, name)],
        {
            "strides": [1] * rank, "pads": left + right, "dilations": [1] * rank, "group": group,
            "pad_value": [qx.zero_point[0]], "weight_zero_point": folded.zero_point,
        },
        outputs=[f"{name}.phases"], quant=low.accumulator_quant(qx, folded.quant, axis=1),
    ).output  # fmt: skip
    return _interleave(low, acc, group, m, strides, begins, sizes, name)


def _interleave(
    low: Lowering, acc: Value, group: int, m: int, strides: Sequence[int], begins: Sequence[int], sizes: Sequence[Dim],
    name: str,
) -> Value:  # fmt: skip
    """Phases to space, then the crop. Channels come as (group, phase, m)."""
    g, rank = low.graph, len(strides)
    phases = int(np.prod(strides))
    blocks = acc.shape[2:]
    q = acc.quant
    assert q is not None
    if q.per_channel:  # every phase repeats the scales of its channels
        per_group = np.reshape(q.scale, (group, phases, m))[:, 0].reshape(-1)
        q = replace(q, scale=tuple(float(s) for s in per_group), zero_point=(0,) * (group * m))

    def ints(values: Sequence[Dim]) -> Value:
        return sizes_constant(g, values, f"{name}.shape", name)

    def step(op: str, inputs: Sequence[Value], last: bool = False, **attrs: Any) -> Value:
        out = [f"{name}.acc" if last else f"{name}.interleaved"]
        return g.add_node(op, inputs, attrs, outputs=out, quant=q if last else None).output

    y = acc
    if phases > 1:
        if group > 1:
            y = step("Reshape", [y, ints([0, group, phases, multiply(m, *blocks)])])
            y = step("Transpose", [y], perm=[0, 2, 1, 3])
        y = step("Reshape", [y, ints([0, *strides, group * m, *blocks])])
        order = [0, 1 + rank, *(a for i in range(rank) for a in (2 + rank + i, 1 + i))]
        y = step("Transpose", [y], perm=order)
        y = step("Reshape", [y, ints([0, group * m, *(multiply(b, s) for b, s in zip(blocks, strides, strict=True))])])
    ends = [add(z, b) for b, z in zip(begins, sizes, strict=True)]
    return step("Slice", [y, ints(begins), ints(ends), ints(list(range(2, 2 + rank)))], last=True)
