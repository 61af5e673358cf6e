"""Sums and means over axes whose sizes are open.

The zero point leaves x first (x - z is exact in int16), because z times an open count is no constant.  A mean by n
elements is a rescaling whose multiplier and shift are computed from n, on int64:

    e = floor(log2 n)        multiplier = (m 2^e + n / 2) / n        shift = s + e

for the dyadic m / 2^s of the scales' ratio; 2^e / n lies in (1/2, 1], so that the multiplier keeps 30 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import dyadic_array
from ..errors import LoweringError, OverflowProofError
from ..lowering import FREE, Bounds, Deferred, Form, Lowering, Quantized
from ..sizes import BATCH, multiply, symbols_of
from ..types import Array, DType, QuantParams
from .intervals import longest
from .open_axes import sizes_constant
from .requantize import output_grid, quant_of

if TYPE_CHECKING:
    from ..graph import Node, Value

LOGARITHMS = 31
"""Powers of two that a count is compared with."""


def lower_open_sum(low: Lowering, node: Node, axes: tuple[int, ...], *, keepdims: bool, mean: bool) -> Form:
    """The sum or the mean of input 0 over axes of which some are open.  Raises LoweringError for the batch."""
    x, name = low.quantized(node.input(0)), node.output.name
    sizes = [x.shape[a] for a in axes]
    if any(BATCH in symbols_of(d) for d in sizes):
        raise LoweringError("sums over the batch", where=str(node), hint="bind the batch to a number when loading")
    q, most = quant_of(x), longest(*sizes)
    narrow = q.dtype.bits <= 8 or (q.dtype is DType.INT16 and not any(q.zero_point))
    if q.per_channel or not narrow or most is None:
        raise OverflowProofError(f"a sum over {sizes} of {q.dtype} may not fit int32", where=str(node),
                                 hint="quantize its input to 8 bits, per tensor")  # fmt: skip
    centred = QuantParams(q.scale, (0,), DType.INT16)
    if q.zero_point[0]:
        x = low.requantize(x, centred, FREE, f"{name}.centred")
    acc = low.graph.add_node(
        "qir.ReduceSum", [x], {"axes": list(axes), "keepdims": int(keepdims)}, outputs=[f"{name}.acc"],
        quant=QuantParams(q.scale, (0,), DType.INT32),
    ).output  # fmt: skip
    if not mean:
        return Quantized(acc)
    count = sizes_constant(low.graph, [multiply(*sizes)], f"{name}.count", str(node))

    def build(target: QuantParams, bounds: Bounds, name: str) -> Value:
        multiplier, shift = _divided(low, q.scale[0] / target.scale[0], count, name)
        lo, hi = bounds.on(target)
        attrs = {"x_zero_point": 0, **output_grid(target, lo, hi)}
        return low.graph.add_node(
            "qir.Requantize", [acc, multiplier, shift], attrs, outputs=[name], quant=target
        ).output  # fmt: skip

    return Deferred(build)


def _divided(low: Lowering, ratio: float, count: Value, name: str) -> tuple[Value, Value]:
    """(multiplier, shift), int32 (1,), of ratio / count."""
    g = low.graph
    m, s = (int(v.item()) for v in dyadic_array(np.asarray(ratio), where=name))

    def constant(data: Any) -> Value:
        values: Array = np.asarray(data, np.int64)
        return g.add_constant(f"{name}.number", values)

    def op(kind: str, *inputs: Value, **attrs: Any) -> Value:
        return g.add_node(kind, inputs, attrs, outputs=[f"{name}.by"]).output

    reached = op("GreaterOrEqual", count, constant([2**k for k in range(1, LOGARITHMS)]))
    exponent = op("ReduceSum", op("Cast", reached, to="int64"), constant([0]), keepdims=1)
    scaled = op("Gather", constant([m << k for k in range(LOGARITHMS)]), exponent, axis=0)
    multiplier = op("Div", op("Add", scaled, op("Div", count, constant([2]))), count)
    return op("Cast", multiplier, to="int32"), op("Cast", op("Add", exponent, constant([s])), to="int32")
