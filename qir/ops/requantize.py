"""Between grids: QuantizeLinear and DequantizeLinear at the border, qir.Requantize inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dyadic import rounding_shift
from ..errors import LoweringError, TypeInferenceError
from ..lowering import FREE, Fixed, Form, Lowering, Quantized, Real
from ..types import Array, DType, QuantParams, TensorType
from .base import INT32_CONSTANT, INTEGER, REQUIRED, Op, register
from .intervals import fits, interval, minus

if TYPE_CHECKING:
    from ..graph import Node, Value
    from ..io.functions import Body


def quant_params(scale: Array, zero_point: Array | None, dtype: DType, axis: int, rank: int) -> QuantParams:
    """QuantParams from the constants of a QuantizeLinear or DequantizeLinear."""
    per_channel = np.ndim(scale) > 0 and np.size(scale) > 1
    zero = np.zeros(1, np.int64) if zero_point is None else zero_point
    return QuantParams.make(scale, zero, dtype, axis % rank if per_channel else None)


def blocks(node: Node) -> bool:
    """Whether a Q or DQ node has a scale for each block along an axis, and not one scale or a vector of them."""
    return bool(node.attrs["block_size"]) and node.input(1).type.rank == node.input(0).type.rank > 0


def params_of(node: Node) -> QuantParams:
    """Quantization that a Q or DQ node applies.  Raises LoweringError when its scale is no constant."""
    x, scale = node.input(0), node.input(1)
    zero = node.optional(2)
    if scale.data is None or (zero is not None and zero.data is None):
        raise LoweringError("scale and zero point must be constants", where=str(node))
    dtype = node.output.dtype if node.op == "QuantizeLinear" else x.dtype
    return quant_params(scale.data, zero.data if zero else None, dtype, node.attrs["axis"], max(x.type.rank, 1))


def _along(v: Array, attrs: Mapping[str, Any], shape: Sequence[int]) -> Array:
    """A scale or zero point that broadcasts against x of `shape`: one number, a vector along an axis, or blocks."""
    if np.ndim(v) == 0 or np.size(v) == 1:
        return np.reshape(v, ())
    axis, block = attrs["axis"] % len(shape), attrs["block_size"]
    if block and np.ndim(v) == len(shape):
        return np.repeat(v, block, axis=axis)[(slice(None),) * axis + (slice(shape[axis]),)]
    full = [1] * len(shape)
    full[axis] = -1
    return np.reshape(v, full)


def check_grid(x: TensorType, grid: Sequence[TensorType | None], axis: int, block: int) -> None:
    """Scale and zero point are one number each, or one for each channel, or for each block of an axis.

    Raises TypeInferenceError.
    """
    scale, zero = grid[0], grid[1] if len(grid) > 1 else None
    if scale is None or not scale.dtype.is_float or (zero is not None and not zero.dtype.is_integer):
        raise TypeInferenceError(f"scale {scale}, zero point {zero}: a float and an integer are wanted")
    for part in (scale, *(() if zero is None else (zero,))):
        if part.shape in ((), (1,)):
            continue
        if block and -x.rank <= axis < x.rank:
            want = [-(-int(d) // block) if i == axis % x.rank else int(d) for i, d in enumerate(x.shape)]
            if list(part.shape) != want:
                raise TypeInferenceError(f"{part} for blocks of {block} along axis {axis} of {x}, {want} expected")
            continue
        if not -x.rank <= axis < x.rank or part.shape != (x.shape[axis],):
            raise TypeInferenceError(f"{part} is not one number for each channel of {x} (axis {axis})")


@register
class QuantizeLinear(Op):
    """y = saturate(round_half_even(x / scale) + zero_point), computed in float32 as runtimes do."""

    name = "QuantizeLinear"
    border = True
    inputs = "x y_scale y_zero_point?"
    attrs = {"axis": 1, "saturate": 1, "output_dtype": None, "block_size": 0}

    def settle(self, node: Node) -> None:
        """A 4-bit zero point lies in an 8-bit array: `output_dtype` says so to `reference`."""
        zero = node.optional(2)
        if zero is not None and zero.dtype.bits == 4 and not node.attrs["output_dtype"]:
            node.attrs["output_dtype"] = str(zero.dtype)

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, zero = types[0], types[2] if len(types) > 2 else None
        if x is None or not x.dtype.is_float:
            raise TypeInferenceError("QuantizeLinear takes floats")
        check_grid(x, types[1:], attrs["axis"], attrs["block_size"])
        dtype = zero.dtype if zero is not None else DType(attrs["output_dtype"] or "uint8")
        return [TensorType(dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        kind = (
            DType(attrs["output_dtype"])
            if attrs["output_dtype"]
            else DType.of(zero)
            if zero is not None
            else DType.UINT8
        )
        z = np.asarray(0 if zero is None else zero, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            q = np.rint(x / _along(scale, attrs, x.shape).astype(x.dtype)) + _along(z, attrs, x.shape)
        return (np.clip(q, kind.lo, kind.hi).astype(kind.numpy),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        if blocks(node):
            raise LoweringError("has a scale for each block of its channels", where=str(node))
        q = params_of(node)
        form = low.form(node.input(0))
        if isinstance(form, Fixed):
            low.set(node.output, Fixed(form.data, q.quantize(form.data), q))
            return
        name = node.input(0).name
        if q.per_channel and not isinstance(form, Real):
            if any(q.zero_point) or any(user for user, _ in node.output.uses() if not _leaves(user)):
                raise LoweringError("activations are quantized per tensor", where=str(node))
            low.set(node.output, Quantized(_by_channel(low, form, q, name)))
            return
        low.set(node.output, Quantized(form.emit(low, q, FREE, name)))


def _leaves(node: Node) -> bool:
    """Whether a node is the DequantizeLinear of a graph output."""
    return node.op == "DequantizeLinear" and node.output.is_output and not node.output.use_count


def _by_channel(low: Lowering, form: Form, target: QuantParams, name: str) -> Value:
    """A form on a grid for each channel: an accumulator as it is, anything else by way of a finer int32 grid."""
    if not isinstance(form, Quantized) or len(set(form.quant.zero_point)) != 1:
        fine = QuantParams((min(target.scale) / 4,), (0,), DType.INT32)
        form = Quantized(form.emit(low, fine, FREE, f"{name}.fine"))
    q, rank = form.quant, form.value.type.rank
    ratio = q.along(rank)[0] / target.along(rank)[0]
    return low.rescale(form.value, ratio, target, FREE, name, q.zero_point[0])


@register
class DequantizeLinear(Op):
    """y = (x - zero_point) * scale, in float32."""

    name = "DequantizeLinear"
    border = True
    inputs = "x x_scale x_zero_point?"
    attrs = {"axis": 1, "block_size": 0}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, scale = types[0], types[1]
        if x is None or scale is None or not x.dtype.is_integer:
            raise TypeInferenceError("DequantizeLinear takes integers")
        check_grid(x, types[1:], attrs["axis"], attrs["block_size"])
        return [TensorType(scale.dtype, x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        z = np.asarray(0 if zero is None else zero, dtype=np.int64)
        centred = x.astype(np.int64) - _along(z, attrs, x.shape)
        return ((centred.astype(scale.dtype) * _along(scale, attrs, x.shape)).astype(scale.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        form = low.form(node.input(0))
        if blocks(node):
            raise LoweringError(
                "has a scale for each block of its channels, which no int32 accumulator can follow", where=str(node),
                hint="give calibration data: its weights get one grid a channel then",
            )  # fmt: skip
        q = params_of(node)
        if isinstance(form, Fixed):
            ints = form.ints if form.ints is not None else form.data
            low.set(node.output, Fixed(q.dequantize(ints), ints, q))
            return
        if isinstance(form, Quantized) and form.quant == q:
            low.set(node.output, form)
            return
        raise LoweringError("does not undo the QuantizeLinear before it (scale or zero point differ)", where=str(node))


def requantize(
    x_i32: Array, multiplier: Array, shift: Array, x_zero_point: int, zero_point: int, lo: int, hi: int
) -> Array:
    """clamp((((x - x_zp) * multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi), int64  [docs/arithmetic.md 2]."""
    product = (x_i32.astype(np.int64) - x_zero_point) * multiplier.astype(np.int64)
    return np.clip(rounding_shift(product, shift.astype(np.int64)) + zero_point, lo, hi)


@register
class Requantize(Op):
    """y = clamp((((x - x_zero_point) * multiplier + 2^(shift-1)) >> shift) + zero_point, lo, hi)   [HAWQ-V3 eq. 6]

    x: int4..int32.  multiplier, shift: int32, broadcast against x from the right.  The difference x - x_zero_point
    fits int32, the product int64.
    """

    name = "qir.Requantize"
    accumulates = True
    inputs = "x multiplier shift"
    operands = {"x": INTEGER, "multiplier": INT32_CONSTANT, "shift": INT32_CONSTANT}
    attrs = {"x_zero_point": 0, "zero_point": 0, "lo": REQUIRED, "hi": REQUIRED, "dtype": REQUIRED}

    def infer(
        self, attrs: Mapping[str, Any], types: Sequence[TensorType | None], consts: Sequence[Array | None]
    ) -> list[TensorType]:
        x, *factors = types[:3]
        assert x is not None
        multiplier, shift = factors
        assert multiplier is not None and shift is not None
        for narrow, wide in ((multiplier, x), (shift, multiplier)):
            if np.broadcast_shapes(narrow.shape, wide.shape) != wide.shape:  # type: ignore[arg-type]
                raise TypeInferenceError(f"{narrow} does not broadcast to {wide}")
        return [TensorType(DType(attrs["dtype"]), x.shape)]

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        x, multiplier, shift = inputs
        y = requantize(x, multiplier, shift, attrs["x_zero_point"], attrs["zero_point"], attrs["lo"], attrs["hi"])
        return (y.astype(DType(attrs["dtype"]).numpy),)

    def function_body(self, body: Body, node: Node) -> None:
        x = body.cast("x", DType.INT64)
        if node.attrs["x_zero_point"]:
            x = body.op("Sub", x, body.int64(node.attrs["x_zero_point"]))
        product = body.op("Mul", x, body.cast("multiplier", DType.INT64))
        rounded = body.rounding_shift(product, body.cast("shift", DType.INT64))
        body.store(rounded, node.attrs, int(body.reach("x", node.attrs["x_zero_point"]) * largest_ratio(node)) + 1)

    def overflows(self, node: Node) -> Iterator[str]:
        x = minus(interval(node.input(0)), node.attrs["x_zero_point"])
        if node.attrs["x_zero_point"] and not fits(x):
            yield f"x - x_zero_point in {x[0]}..{x[1]} does not fit int32"


def largest_ratio(node: Node) -> float:
    """The largest of a qir.Requantize's ratios; that of any ratio where they are no constants."""
    multiplier, shift = node.input(1).data, node.input(2).data
    if multiplier is None or shift is None:
        return 2.0**29
    ratios = np.ldexp(np.abs(multiplier.astype(np.float64)), -shift.astype(int))
    return float(ratios.max(initial=0))


def output_grid(target: QuantParams, lo: int, hi: int) -> dict[str, Any]:
    """The attributes that every requantizing operator shares."""
    return {"zero_point": target.zero_point[0], "lo": lo, "hi": hi, "dtype": str(target.dtype)}


def quant_of(value: Value) -> QuantParams:
    """Quantization of an integer value.  Raises LoweringError where it has none."""
    if value.quant is None:
        raise LoweringError("carries no quantization", where=f"value {value.name!r}")
    return value.quant
