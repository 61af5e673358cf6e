"""QONNX `Quant` nodes (Brevitas, QKeras exports) as QuantizeLinear/DequantizeLinear pairs.

    Quant(x, scale, zero_point, bit_width) = (clip(round(x / scale + zero_point), lo, hi) - zero_point) * scale
with lo, hi the limits of `bit_width` bits, signed or not, less one at the bottom where narrow.
[QONNX: representing arbitrary-precision quantized neural networks, Pappalardo et al. 2022, eq. 1-4]
"""

from __future__ import annotations

import numpy as np

from ...errors import UnsupportedError
from ...types import Array, DType
from ..adapters import Raw, Scope

DOMAINS = frozenset({"onnx.brevitas", "qonnx.custom_op.general", "qonnx", "finn.custom_op.general"})

ROUNDINGS = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil, "ROUND_TO_ZERO": np.trunc}


def limits(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Least and greatest integer of the grid; narrow drops one (signed: the least, unsigned: the greatest)."""
    if signed:
        return -(1 << (bits - 1)) + int(narrow), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1 - int(narrow)


def lower_quant(scope: Scope, raw: Raw) -> list[Raw]:
    """The standard operators that a Quant or BipolarQuant node stands for.

    A quantized constant becomes DequantizeLinear(integers), in 4 bits where they fit.  An activation is clipped to
    the ends of its grid, in reals, and goes through an 8- or 16-bit QuantizeLinear/DequantizeLinear pair: the ends
    divide back to whole numbers, so no other grid point is reached.
    Raises UnsupportedError: scale, zero point or bit width not constant, more than 16 bits, a rounding other than
    half-to-even on an activation, other QONNX operators.
    """
    if raw.op not in ("Quant", "BipolarQuant"):
        raise UnsupportedError(f"QONNX operator {raw.op} is not supported", where=str(raw))
    bipolar = raw.op == "BipolarQuant"
    x = raw.inputs[0] or ""
    scale = _constant(scope, raw, 1)
    if bipolar:
        bits, signed, lo, hi, zero = 2, True, -1, 1, np.zeros_like(scale)
    else:
        zero = _constant(scope, raw, 2)
        width = _constant(scope, raw, 3)
        bits, signed = int(width.reshape(-1)[0]), bool(raw.attrs.get("signed", 1))
        if width.size != 1 or not 1 <= bits <= 16 or bits != float(width.reshape(-1)[0]):
            raise UnsupportedError(f"bit width {width.tolist()} is not one of 1 to 16", where=str(raw))
        lo, hi = limits(bits, signed, bool(raw.attrs.get("narrow", 0)))
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise UnsupportedError("scale is not positive and finite", where=str(raw))
    if (zero != np.rint(zero)).any():
        raise UnsupportedError("zero point is not an integer", where=str(raw))
    data = scope.data(x)
    kind = _dtype(bits, signed, constant=data is not None)
    rank = scope.type(x).rank
    axis, scale, zero = _per_axis(raw, scale, zero, rank)
    params = [
        scope.constant(f"{raw.name}.scale", scale.astype(np.float32)),
        scope.constant(f"{raw.name}.zero_point", zero.astype(kind.numpy)),
    ]
    attrs = {} if axis is None else {"axis": axis}
    if data is not None:
        shape = [-1 if i == axis else 1 for i in range(rank)]
        s, z = (v.reshape(shape) if axis is not None else v for v in (scale, zero))
        mode = str(raw.attrs.get("rounding_mode", "ROUND")).upper()
        if mode not in ROUNDINGS:
            raise UnsupportedError(f"rounding mode {mode}", where=str(raw))
        reals = data.astype(np.float32) / s.astype(np.float32)
        ints = np.where(reals >= 0, 1, -1) if bipolar else np.clip(ROUNDINGS[mode](reals + z), lo, hi)
        weights = scope.constant(f"{x}.ints", ints.astype(kind.numpy))
        if kind.bits == 4:
            scope.set_dtype(weights, kind)
            scope.set_dtype(params[1], kind)
        return [Raw("DequantizeLinear", raw.name, attrs, [weights, *params], raw.outputs)]
    if bipolar or str(raw.attrs.get("rounding_mode", "ROUND")).upper() != "ROUND":
        raise UnsupportedError("an activation that is not rounded half to even", where=str(raw))
    if axis is not None:
        raise UnsupportedError("an activation with a scale for each channel", where=str(raw))
    ends = [np.asarray((end - zero[()]) * scale[()], dtype=np.float32) for end in (lo, hi)]
    clipped, ints_name = scope.fresh(f"{raw.name}.clip"), scope.fresh(f"{raw.name}.q")
    bounds = [scope.constant(f"{raw.name}.{n}", e) for n, e in zip(("min", "max"), ends, strict=True)]
    return [
        Raw("Clip", f"{raw.name}.clip", {}, [x, *bounds], [clipped]),
        Raw("QuantizeLinear", f"{raw.name}.q", {}, [clipped, *params], [ints_name]),
        Raw("DequantizeLinear", raw.name, {}, [ints_name, *params], raw.outputs),
    ]


def _dtype(bits: int, signed: bool, *, constant: bool) -> DType:
    size = 4 if constant and bits <= 4 else 8 if bits <= 8 else 16
    return DType(f"{'' if signed else 'u'}int{size}")


def _constant(scope: Scope, raw: Raw, index: int) -> Array:
    data = scope.data(raw.input(index))
    if data is None:
        raise UnsupportedError(f"input {index} is not a constant", where=str(raw))
    return np.asarray(data, dtype=np.float32)


def _per_axis(raw: Raw, scale: Array, zero: Array, rank: int) -> tuple[int | None, Array, Array]:
    """(axis, scale, zero point) as scalars, or vectors along one axis, from tensors that broadcast against x."""
    if scale.size == 1 and zero.size == 1:
        return None, scale.reshape(()), zero.reshape(())
    shape = np.broadcast_shapes(scale.shape, zero.shape)
    shape = (1,) * (rank - len(shape)) + shape
    wide = [i for i, d in enumerate(shape) if d != 1]
    if len(wide) != 1:
        raise UnsupportedError(f"scale of shape {scale.shape} is neither per tensor nor per channel", where=str(raw))
    flat = [np.broadcast_to(v, shape).reshape(-1) for v in (scale, zero)]
    return wide[0], flat[0], flat[1]
