"""Dynamically quantized models: activations get their grid anew for each input, weights have given integers.

    DynamicQuantizeLinear(x) -> q, s, z;   MatMulInteger(q, W, z, z_w) -> Cast -> Mul(s s_w)      (so for ConvInteger)
There is no such grid in an integer-only graph: it has to be calibrated.  The float graph behind it is got by reading q
as x itself, s as 1 and z as 0: the product is x (W - z_w), times s_w behind it.  Weights keep their integers as
DequantizeLinear constants.  [onnx operators DynamicQuantizeLinear, MatMulInteger; onnxruntime contrib operators]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ..adapters import Raw, Scope

Lower = Callable[[Scope, Raw], Iterator[Raw]]


def dynamic_quantize_linear(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """q = x, scale 1, zero point 0 (float32, as q is none of uint8 now)."""
    yield Raw("Identity", raw.name, {}, raw.inputs[:1], raw.outputs[:1])
    for name, value in zip(raw.outputs[1:], (1.0, 0.0), strict=False):
        if name:
            one = scope.constant(f"{raw.name}.given", np.asarray(value, np.float32))
            yield Raw("Identity", f"{raw.name}.{name}", {}, [one], [name])


def weights(scope: Scope, raw: Raw, index: int, zero: str | None, scale: Any = 1.0, axis: int | None = None) -> Raw:
    """DequantizeLinear of integer weights (input `index`), their zero point in `zero`.  Raises UnsupportedError."""
    name = raw.inputs[index] or ""
    if scope.data(name) is None:
        raise UnsupportedError("the product of two dynamically quantized tensors is not supported", where=str(raw))
    factor = np.asarray(scale, np.float32)
    zeros = scope.data(zero)
    attrs: dict[str, Any] = {}
    if zeros is not None and (zeros.size > 1 or factor.size > 1):
        axis = scope.type(name).rank - 1 if axis is None else axis
        attrs["axis"] = axis
        size = scope.type(name).shape[axis]
        assert isinstance(size, int)
        factor = np.broadcast_to(factor.reshape(-1), (size,))
        zeros = np.broadcast_to(zeros.reshape(-1), (size,))
        zero = scope.constant(f"{raw.name}.w_zero_point", zeros)
    elif factor.size > 1:
        attrs["axis"] = scope.type(name).rank - 1 if axis is None else axis
        factor = factor.reshape(-1)
    else:
        factor = factor.reshape(())
        if zeros is not None:
            zero = scope.constant(f"{raw.name}.w_zero_point", zeros.reshape(()))
    step = scope.constant(f"{raw.name}.w_scale", factor)
    return Raw("DequantizeLinear", f"{raw.name}.w", attrs, [name, step, zero], [scope.fresh(f"{raw.name}.w_real")])


def operand(scope: Scope, raw: Raw, zero: str | None, scale: str | None = None) -> Raw:
    """Input 0 as reals: as it is where DynamicQuantizeLinear made it, else through a DequantizeLinear."""
    name = raw.inputs[0] or ""
    made = scope.fresh(f"{raw.name}.x_real")
    if scope.type(name).dtype.is_float:
        return Raw("Identity", f"{raw.name}.x", {}, [name], [made])
    step = scale or scope.constant(f"{raw.name}.x_scale", np.asarray(1.0, np.float32))
    return Raw("DequantizeLinear", f"{raw.name}.x", {}, [name, step, zero], [made])


def product_of_integers(op: str, axis: int | None) -> Lower:
    """x, w, x_zero_point, w_zero_point -> int32: here a float, which the Cast behind it leaves as it is."""

    def lower(scope: Scope, raw: Raw) -> Iterator[Raw]:
        x, w = operand(scope, raw, raw.input(2)), weights(scope, raw, 1, raw.input(3), axis=axis)
        yield from (x, w, Raw(op, raw.name, dict(raw.attrs), [x.outputs[0], w.outputs[0]], raw.outputs[:1]))

    return lower


def dynamic_quantize_matmul(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """a (float), b, b_scale, b_zero_point, bias -> float"""
    yield from _matmul(scope, raw, raw.inputs[0], 1, scope.data(raw.input(2)), raw.input(3), raw.input(4))


def matmul_integer_to_float(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias -> float"""
    x = operand(scope, raw, raw.input(4), raw.input(2))
    yield x
    yield from _matmul(scope, raw, x.outputs[0], 1, scope.data(raw.input(3)), raw.input(5), raw.input(6))


def _matmul(
    scope: Scope, raw: Raw, x: str | None, index: int, scale: Any, zero: str | None, bias: str | None
) -> Iterator[Raw]:
    if scale is None:
        raise UnsupportedError("weights whose scale is no constant", where=str(raw))
    w = weights(scope, raw, index, zero, scale)
    made = scope.fresh(f"{raw.name}.product") if bias else raw.outputs[0]
    yield from (w, Raw("MatMul", raw.name, {}, [x, w.outputs[0]], [made]))
    if bias:
        yield Raw("Add", f"{raw.name}.bias", {}, [made, bias], raw.outputs[:1])


STANDARD: dict[str, Lower] = {
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": product_of_integers("MatMul", None),
    "ConvInteger": product_of_integers("Conv", 0),
}

MICROSOFT: dict[str, Lower] = {
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "MatMulIntegerToFloat": matmul_integer_to_float,
}
