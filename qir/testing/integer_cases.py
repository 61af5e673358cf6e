"""Integer graphs of a few nodes: each operator in the variants that a runtime may treat differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..ops.integer_softmax import reciprocal_table
from ..ops.normalize import inverse_root_table, normalize_constants
from ..types import DType, QuantParams, TensorType
from .integer import IntegerCase as Case

Build = Callable[[Case], None]


def conv_odd(c: Case) -> None:
    """Odd channels, stride, dilation, uneven pads: tensor cores."""
    x = c.input(DType.UINT8, 21, 9, 11)
    c.requantize(c.conv(x, 37, (3, 2), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1]), channels=37)


def conv_signed(c: Case) -> None:
    x = c.input(DType.INT8, 16, 7, 7)
    c.requantize(c.conv(x, 130, (3, 3), pads=[1, 1, 1, 1], pad_value=[-5]), DType.INT8, channels=130)


def conv_depthwise(c: Case) -> None:
    x = c.input(DType.UINT8, 19, 8, 6)
    c.requantize(c.conv(x, 19, (3, 3), group=19, pads=[1, 1, 1, 1], strides=[2, 2]), channels=19)


def conv_grouped_per_channel_pad(c: Case) -> None:
    x = c.input(DType.UINT8, 12, 5, 5)
    c.conv(x, 8, (3, 3), group=4, pads=[1, 1, 1, 1])
    c.conv(x, 5, (3, 3), pads=[1, 0, 0, 1], pad_value=list(range(12)))


def conv_one_dimensional(c: Case) -> None:
    x = c.input(DType.UINT8, 20, 33)
    c.requantize(c.conv(x, 9, (5,), strides=[2], pads=[2, 2], dilations=[2]), channels=9, rank=3)


def residual_block(c: Case) -> None:
    """Fused: convolution, requantize, add, table; the other operand int16, then int8, then int32."""
    x = c.input(DType.UINT8, 24, 6, 6)
    y = c.requantize(c.conv(x, 24, (3, 3), pads=[1, 1, 1, 1]), DType.INT8, channels=24)
    wide = c.requantize(c.conv(x, 24, (1, 1)), DType.INT16)
    y = c.table(c.add(y, wide))
    z = c.requantize(c.conv(y, 24, (1, 1)), DType.INT8, channels=24)
    y = c.add(z, y, DType.INT16)
    acc = c.conv(c.table(c.requantize(y, DType.INT8)), 24, (1, 1))
    c.add(c.requantize(c.conv(x, 24, (1, 1)), DType.INT16), acc, DType.INT8)


def coarse_scales(c: Case) -> None:
    """Ratios near one and above, whose shifts are small; sums that leave 32 bits before they are clamped."""
    for channels, dtype in ((16, DType.INT8), (13, DType.INT16)):
        x = c.input(DType.INT8, 16, 4, 5, span=3)
        y = c.requantize(c.conv(x, channels, (1, 1)), dtype, channels=channels, ratios=(0.05, 3.0))
        z = c.requantize(c.conv(x, channels, (1, 1)), DType.INT16, ratios=(1.0, 40.0))
        c.add(y, z, DType.INT16, shift=7)
        c.add(c.requantize(c.conv(x, channels, (1, 1)), DType.INT16, ratios=(0.1, 0.2)), z, DType.INT8, shift=41)


def matrix_products(c: Case) -> None:
    x = c.input(DType.UINT8, 5, 27)
    w = c.graph.add_constant("w", c.ints(DType.INT8, (27, 70)))
    bias = c.graph.add_constant("b", c.ints(DType.INT32, (70,), 9999))
    y = c.node("qir.MatMul", x, w, bias, weight_zero_point=0)
    c.requantize(y, DType.INT8)
    other = c.input(DType.INT8, 27, 13)
    c.node("qir.MatMulActivations", x, other, a_zero_point=7, b_zero_point=-3)


def first_layer(c: Case) -> None:
    """Three channels in cells of four bytes, dilated too; and one channel."""
    x = c.input(DType.UINT8, 3, 11, 9)
    c.requantize(c.conv(x, 20, (3, 3), strides=[2, 2], pads=[0, 1, 1, 1]), channels=20)
    y = c.table(x)
    c.requantize(c.conv(y, 70, (7, 2), pads=[3, 0, 3, 1], dilations=[1, 3], pad_value=[-9]), DType.INT8, channels=70)
    c.requantize(c.conv(c.input(DType.INT8, 1, 6, 6), 8, (1, 1)), DType.INT8, channels=8)


def depthwise(c: Case) -> None:
    """Windows of 3, 5 and 4x2, both signs, channels that fill chunks and not, a residual."""
    x = c.input(DType.UINT8, 35, 7, 6)
    y = c.requantize(c.conv(x, 35, (3, 3), group=35, pads=[1, 1, 1, 1]), DType.INT8, channels=35)
    z = c.requantize(c.conv(y, 35, (5, 5), group=35, pads=[2, 2, 2, 2]), DType.INT8, channels=35)
    c.add(z, y, DType.INT16)
    z = c.conv(z, 35, (4, 2), group=35, pads=[1, 0, 2, 0], dilations=[1, 2], pad_value=[-7])
    c.conv(c.requantize(c.conv(x, 32, (1, 1)), channels=32), 32, (3, 3), group=32, strides=[2, 1])


def split_products(c: Case) -> None:
    """Few rows, long sums: K is shared among blocks."""
    x = c.input(DType.UINT8, 2100)
    w = c.graph.add_constant("w", c.ints(DType.INT8, (2100, 90)))
    c.requantize(c.node("qir.MatMul", x, w, None, weight_zero_point=0), DType.INT8, channels=None)
    y = c.input(DType.INT8, 300, 3, 3)
    y = c.requantize(c.conv(y, 20, (3, 3)), DType.INT8, channels=20)
    c.add(y, y, DType.INT16)


def four_bits(c: Case) -> None:
    """int4 weights, packed; both activation signs, every tile width, a product."""
    for kind, filters in ((DType.UINT8, 37), (DType.INT8, 130)):
        x = c.input(kind, 21, 6, 5)
        w = c.graph.add_constant("w", c.ints(DType.INT8, (filters, 21, 3, 3), 7), DType.INT4)
        attrs: dict[str, Any] = {"strides": [1, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "pad_value": [3]}
        c.requantize(c.node("qir.Conv", x, w, None, **attrs), channels=filters)
        w = c.graph.add_constant("w", c.ints(DType.INT8, (5, 19), 7), DType.INT4)
        c.node("qir.MatMul", x, w, None, weight_zero_point=0)


def weights_of_others(c: Case) -> None:
    """Zero points of weights: those that fit int8 once subtracted, and those that do not."""
    x = c.input(DType.UINT8, 5, 6, 6)
    for zero, lo, hi in ((128, 0, 256), (17, 0, 256), (3, 0, 16)):
        w = c.graph.add_constant("w", c.rng.integers(lo, hi, (7, 5, 3, 3)).astype(np.uint8))
        attrs: dict[str, Any] = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "pad_value": [3]}
        c.requantize(c.node("qir.Conv", x, w, None, weight_zero_point=zero, **attrs), channels=7)
        w = c.graph.add_constant("w", c.rng.integers(lo, hi, (6, 9)).astype(np.uint8))
        c.requantize(c.node("qir.MatMul", x, w, None, weight_zero_point=zero), DType.INT8)


def logic(c: Case) -> None:
    x, y = c.input(DType.INT8, 4, 3, span=2), c.input(DType.INT8, 4, 1, span=2)
    found = [c.node(op, x, y) for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")]
    both = c.node("And", found[0], c.node("Not", found[1]))
    either = c.node("Or", both, found[2])
    c.node("Where", either, x, y)
    c.node("Cast", either, to="uint8")
    c.node("Cast", x, to="int64")
    c.node("Cast", x, to="bool")
    c.node("Cast", c.node("ReduceSum", c.node("Cast", x, to="int32"), c.constant([1])), to="int8")
    c.node("ReduceProd", c.node("Cast", x, to="int64"), c.constant([2]), keepdims=0)
    c.node("ReduceMin", x, c.constant([1]))
    i, j = (c.node("Cast", v, to="int64") for v in (x, y))
    c.node("Max", c.node("Mul", c.node("Add", i, j), c.node("Sub", j, i)), c.node("Neg", i), c.constant(1))
    c.node("Min", c.node("Cast", x, to="int32"), c.constant([[1]], np.int32))
    c.node("Gather", c.constant(np.arange(50).reshape(10, 5)), c.node("ArgMax", x, axis=1, keepdims=0), axis=0)


def shapes(c: Case) -> None:
    """Shape subgraphs that follow the batch are worked out when the plan is made."""
    x = c.input(DType.INT8, 4, 3)
    c.node("Gather", c.node("Shape", x), c.constant(0), axis=0)
    c.node("Cast", c.node("Size", x), to="int32")


def elementwise(c: Case) -> None:
    x = c.input(DType.UINT8, 5, 4, 3)
    gate = c.input(DType.UINT8, 5, 1, 1)
    y = c.node(
        "qir.Mul", x, gate, multiplier=1_500_000_000, shift=38, a_zero_point=3, b_zero_point=9, zero_point=100, lo=0,
        hi=255, dtype="uint8",
    )  # fmt: skip
    c.table(y, axis=1, dtype=DType.INT16)
    c.add(y, gate, DType.INT16)
    c.node("Clip", x, c.constant(17, np.uint8), c.constant(99, np.uint8))
    c.node("qir.Max", x, y)
    c.node("qir.Min", x, y)


def windows(c: Case) -> None:
    x = c.input(DType.INT8, 6, 9, 7)
    c.node("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])
    c.node("qir.SumPool", x, kernel_shape=[3, 3], strides=[2, 1], pads=[1, 1, 0, 1], dilations=[1, 2], pad_value=-4)
    c.node("qir.ReduceSum", x, axes=[2, 3], keepdims=1)
    c.node("qir.ReduceSum", x, axes=[1], keepdims=0)
    c.node("ReduceMax", x, c.constant([2, 3]), keepdims=0)


def movement(c: Case) -> None:
    x = c.input(DType.UINT8, 8, 4, 6)
    c.node("Reshape", x, c.constant([0, 4, -1]))
    c.node("Transpose", x, perm=[0, 2, 3, 1])
    c.node("Slice", x, c.constant([1, -1]), c.constant([7, -9]), c.constant([1, 3]), c.constant([2, -2]))
    c.node("Split", x, c.constant([3, 5]), axis=1, outputs=2)
    c.node("Concat", x, c.table(x, dtype=DType.UINT8), axis=1)
    c.node("Pad", x, c.constant([0, 0, 1, 2, 0, 1, 0, 1]), c.constant(9, np.uint8))
    c.node("Pad", x, c.constant([0, 0, 1, 2, 0, 0, 2, 1]), None, mode="reflect")
    c.node("Gather", x, c.constant([3, 0, -1, 3, 2]), axis=2)
    c.node("Gather", x, c.constant([[3, 0], [1, -1]]), axis=1)
    c.node("Gather", x, c.constant(2), axis=3)
    c.node("DepthToSpace", x, blocksize=2, mode="DCR")
    c.node("DepthToSpace", x, blocksize=2, mode="CRD")
    c.node("SpaceToDepth", x, blocksize=2)
    c.node("Tile", x, c.constant([1, 2, 1, 2]))
    c.node("Unsqueeze", x, c.constant([2]))
    c.node("Expand", c.node("ReduceMax", x, c.constant([2]), keepdims=1), c.constant([1, 1, 5, 1]))
    c.node("Flatten", x, axis=2)


def channel_shuffle(c: Case) -> None:
    x = c.conv(c.input(DType.UINT8, 16, 4, 4), 16, (1, 1))
    y = c.requantize(x, channels=16)
    y = c.node("Reshape", y, c.constant([0, 4, 4, 4, 4]))
    y = c.node("Reshape", c.node("Transpose", y, perm=[0, 2, 1, 3, 4]), c.constant([0, 16, 4, 4]))
    c.requantize(c.conv(y, 20, (3, 3), pads=[1, 1, 1, 1]), channels=20)


def interpolation(c: Case) -> None:
    x = c.input(DType.UINT8, 3, 5, 1)
    places, weights = ([0, 0, 2, 4], [1, 0, 3, 4]), ([2048, 1000, 5, 0], [0, 1048, 2043, 2048])
    rows = [c.constant(v) for v in places] + [c.constant(v, np.int32) for v in weights]
    y = c.node("qir.Interpolate", x, *rows, axis=2)
    one = [c.constant([0]), c.constant([0]), c.constant([2048], np.int32), c.constant([0], np.int32)]
    c.node("qir.Interpolate", y, *one, axis=3)


def ranking(c: Case) -> None:
    x = c.input(DType.INT8, 5, 7, span=3)
    c.node("ArgMax", x, axis=1, keepdims=1)
    c.node("ArgMax", x, axis=2, keepdims=0, select_last_index=1)
    c.node("ArgMin", x, axis=-1, keepdims=0)
    c.node("TopK", x, c.constant([4]), axis=2, outputs=2)


def softmax(c: Case) -> None:
    """Of 8 and 16 bits, with masks that broadcast and masks of rows that keep nothing."""
    k = np.arange(256)
    exponentials = np.rint(2.0**16 * np.exp(-0.05 * k)).astype(np.int64)
    high, low = (np.rint(2.0**30 * np.exp(-s * k)).astype(np.int64) for s in (256 * 4e-4, 4e-4))
    reciprocal = c.constant(np.rint(2.0**39 / (256 + k + 0.5)).astype(np.int64))
    for source, axis, kind, zero in (
        (DType.UINT8, 2, "uint8", 0), (DType.INT8, 1, "int8", -128), (DType.INT16, -1, "uint8", 0),
        (DType.UINT16, 1, "int8", -128),
    ):  # fmt: skip
        wide = source.bits > 8
        x = c.input(source, 4, 45)
        table, fine = c.constant(high if wide else exponentials), c.constant(low) if wide else None
        attrs: dict[str, Any] = {"axis": axis, "zero_point": zero, "dtype": kind}
        c.node("qir.Softmax", x, table, reciprocal, None, fine, **attrs)
        rows, columns = c.rng.random((4, 1)) < 0.5, c.rng.random(45) < 0.5
        c.node("qir.Softmax", x, table, reciprocal, c.constant(rows | columns, np.bool_), fine, **attrs)
        c.node("qir.Softmax", x, table, reciprocal, c.constant(columns, np.bool_), fine, **attrs)
        computed = c.node("Less", c.input(DType.INT8, 1, 45), c.constant(3, np.int8))
        c.node("qir.Softmax", x, table, reciprocal, computed, fine, **attrs)
        for n in (48, 132):  # rows of whole words
            row = c.input(source, 3, n)
            some = c.constant(np.arange(n) % 3 > 0, np.bool_)
            for mask in (None, some, c.node("Less", c.input(DType.INT8, 3, n), c.constant(3, np.int8))):
                c.node("qir.Softmax", row, table, reciprocal, mask, fine, **{**attrs, "axis": -1})


def normalize(c: Case) -> None:
    """Rows that are whole words and not; constants of each element, and of each row."""
    rng = np.random.default_rng(5)
    for n in (45, 48, 516):
        for dtype, kind in ((DType.INT16, "int8"), (DType.UINT8, "int16"), (DType.INT8, "uint8")):
            x = c.input(dtype, 4, n)
            zero = 3 if kind != "uint8" else 130
            grid, target = QuantParams.make(0.01, 0, dtype), QuantParams.make(0.01, zero, DType(kind))
            for centre, gamma in (
                (True, rng.normal(size=n)),
                (False, rng.normal(size=n)),
                (False, rng.normal(size=(4, 1))),
            ):
                k = normalize_constants(grid, n, centre, gamma, gamma, 1e-5, target, "here")
                c.node(
                    "qir.Normalize", x, c.constant(k.multiplier_i32, np.int32), c.constant(k.offset_i64),
                    c.constant(inverse_root_table()), centre=int(centre), x_zero_point=0, extra=k.extra,
                    noise=k.noise, shift=k.shift, lo=target.dtype.lo, hi=target.dtype.hi, dtype=kind,
                )  # fmt: skip


def division(c: Case) -> None:
    a, b = c.input(DType.INT16, 4, 45), c.input(DType.UINT8, 4, 45)
    table = c.constant(reciprocal_table())
    numbers = {"b_zero_point": 3, "least": 1, "bits": 16, "multiplier": 1 << 30, "shift": 51}
    c.node("qir.Div", a, b, table, **numbers, lo=-128, hi=127, dtype="int8")


def channels_last(c: Case) -> None:
    """Images as convolutions leave them: elementwise, pooling, copies by chunks of 16 channels; 19 channels in 32."""
    for channels in (16, 19):
        x = c.requantize(c.conv(c.input(DType.UINT8, 5, 6, 7), channels, (1, 1)), channels=channels)
        y = c.requantize(c.conv(c.input(DType.UINT8, 5, 6, 7), channels, (1, 1)), DType.INT16, channels=channels)
        window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 1]}
        c.node("MaxPool", x, **window)
        c.node("MaxPool", y, kernel_shape=[2, 3], dilations=[2, 1])
        wide = c.node("qir.SumPool", y, **window, dilations=[1, 1], pad_value=-7)
        c.requantize(wide, DType.INT16)
        c.node("Relu", y)
        c.node("Clip", x, c.constant(17, np.uint8), c.constant(99, np.uint8))
        c.table(x, axis=1)
        c.table(c.add(y, x), dtype=DType.INT16)
        total = c.node("qir.ReduceSum", x, axes=[2, 3], keepdims=1)
        c.node("qir.ReduceSum", y, axes=[2, 3], keepdims=0)
        c.node("ReduceMax", y, c.constant([2, 3]), keepdims=1)
        gate = c.requantize(total, channels=channels)
        numbers = {"a_zero_point": 3, "b_zero_point": 9, "multiplier": 1_500_000_000, "shift": 38}
        c.node("qir.Mul", x, gate, **numbers, zero_point=100, lo=0, hi=255, dtype="uint8")
        c.node("Concat", x, c.table(x, dtype=DType.UINT8), axis=1)
        c.node("Split", y, c.constant([3, channels - 3]), axis=1, outputs=2)


def wide_movement(c: Case) -> None:
    """Data movement of elements of two, four and eight bytes."""
    for dtype in ("int16", "int32", "int64"):
        x = c.node("Cast", c.input(DType.INT8, 6, 5), to=dtype)
        c.node("Transpose", x, perm=[0, 2, 1])
        c.node("Gather", x, c.constant([3, 0, -1]), axis=1)
        c.node("Pad", x, c.constant([0, 1, 0, 0, 0, 2]), None, mode="edge")


def border(c: Case) -> None:
    """Quantized images of three channels, and vectors; back to float."""
    for name, shape in (("image", (3, 5, 4)), ("signed", (2, 3, 3)), ("vector", (7,))):
        kind = DType.INT8 if name == "signed" else DType.UINT8
        x = c.graph.add_input(name, TensorType(DType.FLOAT32, ("N", *shape)))
        c.feeds[name] = c.rng.normal(scale=60, size=(c.batch, *shape)).astype(np.float32)
        scale, zero = c.constant(0.7, np.float32), c.constant(99, kind.numpy)
        q = c.graph.add_node("QuantizeLinear", [x, scale, zero], quant=QuantParams.make(0.7, 99, kind)).output
        c.node("DequantizeLinear", q, scale, zero)
        if name != "vector":
            c.conv(q, 5, (3, 3))


def more_depthwise(c: Case) -> None:
    x = c.input(DType.INT8, 20, 6, 5)
    y = c.requantize(c.conv(x, 20, (3, 3), group=20, pads=[1, 1, 1, 1]), channels=20)
    c.conv(y, 20, (5, 5), group=20, pads=[2, 2, 2, 2])
    c.conv(y, 20, (2, 3), group=20)


def depthwise_walks(c: Case) -> None:
    """Square windows of every size and stride, both signs; images taller and wider than what one thread takes."""
    for sign, other in ((DType.UINT8, DType.INT8), (DType.INT8, DType.UINT8)):
        x = c.input(sign, 20, 23, 14)
        y = c.requantize(c.conv(x, 20, (3, 3), group=20, pads=[1, 0, 1, 1]), other, channels=20)
        z = c.requantize(c.conv(y, 20, (5, 5), group=20, pads=[2, 2, 1, 2]), sign, channels=20)
        z = c.requantize(c.conv(z, 20, (7, 7), group=20, pads=[3, 3, 3, 1]), other, channels=20)
        c.requantize(c.conv(z, 20, (3, 3), group=20, strides=[2, 2], pads=[1, 1, 0, 1]), other, channels=20)
        c.requantize(c.conv(z, 20, (5, 5), group=20, strides=[2, 2], pads=[2, 1, 2, 2]), sign, channels=20)
        c.conv(z, 20, (3, 3), group=20, pads=[5, 1, 0, 1], pad_value=[-100 if other == DType.INT8 else 200])
        c.conv(z, 20, (3, 3), group=20, pads=[0, 2, 0, 0])


def windows_of_chunks(c: Case) -> None:
    """Pooling channels last: bytes of both signs and 16 bits, padding on every side, dilation, more than 256 taps."""
    for kind in (DType.INT8, DType.UINT8, DType.INT16):
        y = c.requantize(c.conv(c.input(DType.INT8, 33, 19, 17), 33, (1, 1)), kind, channels=33)
        c.node("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        c.node("MaxPool", y, kernel_shape=[2, 4], dilations=[3, 2], pads=[1, 2, 1, 3])
        for kernel, pads in (([3, 3], [1, 1, 1, 1]), ([17, 17], [0, 2, 0, 2])):
            total = c.node(
                "qir.SumPool", y, kernel_shape=kernel, strides=[2, 1], dilations=[1, 1], pads=pads, pad_value=3
            )
            c.requantize(total, DType.INT8, ratios=(1e-3, 2e-3))
        c.requantize(c.node("qir.ReduceSum", y, axes=[2, 3], keepdims=1), DType.INT8, ratios=(1e-3, 2e-3))


BUILDERS: tuple[Build, ...] = (
    conv_odd, conv_signed, conv_depthwise, conv_grouped_per_channel_pad, conv_one_dimensional, residual_block,
    first_layer, depthwise, split_products, four_bits, weights_of_others,
    logic, shapes, matrix_products, elementwise, windows, movement, channel_shuffle, interpolation, ranking, softmax,
    normalize, division,
    coarse_scales, channels_last, wide_movement, border, more_depthwise,
    depthwise_walks, windows_of_chunks,
)  # fmt: skip
