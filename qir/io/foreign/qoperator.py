"""onnxruntime's QOperator models: QLinear... nodes compute on integers with the grids of their operands as inputs.

Each is DequantizeLinear of its operands, the float operator, and QuantizeLinear of its result: what the same tool
writes in its QDQ format.          [onnx operators QLinearConv, QLinearMatMul; onnxruntime contrib operators]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ..adapters import Raw, Scope, softmax_1

Lower = Callable[[Scope, Raw], Iterator[Raw]]


def real(scope: Scope, raw: Raw, index: int, axis: int | None = None) -> Raw:
    """DequantizeLinear of operand `index`, whose scale and zero point are the inputs behind it.

    axis: that of a vector of scales; None where there can only be one.  Raises UnsupportedError.
    """
    x, scale, zero = (raw.input(index + i) for i in range(3))
    if x is None or scale is None:
        raise UnsupportedError(f"operand {index} has no scale", where=str(raw))
    data = scope.data(scale)
    attrs: dict[str, Any] = {}
    if data is not None and data.size > 1:
        if axis is None:
            raise UnsupportedError(f"operand {x!r} has {data.size} scales", where=str(raw))
        attrs["axis"] = axis
        if data.ndim != 1:
            scale = scope.constant(f"{raw.name}.scale", data.reshape(-1))
            zeros = scope.data(zero)
            zero = zero if zeros is None else scope.constant(f"{raw.name}.zero_point", zeros.reshape(-1))
    return Raw("DequantizeLinear", f"{raw.name}.dq{index}", attrs, [x, scale, zero], [scope.fresh(f"{raw.name}.real")])


def bias(scope: Scope, raw: Raw, index: int, a: Raw, b: Raw, factor: float = 1.0) -> Raw | None:
    """DequantizeLinear of an int32 bias, on the grid of the accumulator: the product of two operands' scales."""
    name = raw.input(index)
    if name is None:
        return None
    scales = [scope.data(op.input(1)) for op in (a, b)]
    if scales[0] is None or scales[1] is None:
        raise UnsupportedError("scales that are no constants", where=str(raw))
    product = (np.float32(factor) * scales[0].reshape(-1) * scales[1].reshape(-1)).astype(np.float32)
    scale = scope.constant(f"{raw.name}.bias_scale", product if product.size > 1 else product.reshape(()))
    attrs = {"axis": 0} if product.size > 1 else {}
    return Raw("DequantizeLinear", f"{raw.name}.bias", attrs, [name, scale], [scope.fresh(f"{raw.name}.bias_real")])


def rounded(scope: Scope, raw: Raw, made: str | None, index: int, like: int) -> Raw:
    """QuantizeLinear of the result, with the scale at `index` and the zero point behind it (0 of input `like`'s dtype).

    made: the float tensor.
    """
    zero = raw.input(index + 1)
    if zero is None:
        kind = scope.type(raw.input(like) or "").dtype
        zero = scope.constant(f"{raw.name}.zero_point", np.zeros((), kind.numpy))
    return Raw("QuantizeLinear", f"{raw.name}.q", {}, [made, raw.input(index), zero], raw.outputs[:1])


def out(node: Raw) -> str | None:
    """The one output's name."""
    return node.outputs[0]


def qlinear_conv(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias (int32)"""
    x, w = real(scope, raw, 0), real(scope, raw, 3, axis=0)
    b = bias(scope, raw, 8, x, w)
    yield from (n for n in (x, w, b) if n is not None)
    last = bool(raw.attrs.pop("channels_last", 0))
    given = [out(n) for n in (x, w, b) if n is not None]
    yield from around(scope, raw, "Conv", given, dict(raw.attrs), last, y=6)


def around(
    scope: Scope, raw: Raw, op: str, given: list[str | None], attrs: dict[str, Any], last: bool, y: int
) -> Iterator[Raw]:
    """The float operator on `given` and the rounding of its result; between Transposes where channels come last."""
    rank = scope.type(raw.inputs[0] or "").rank
    made = scope.fresh(f"{raw.name}.float")
    if last:
        first = scope.fresh(f"{raw.name}.channels_first")
        perm = [0, rank - 1, *range(1, rank - 1)]
        yield Raw("Transpose", f"{raw.name}.in", {"perm": perm}, given[:1], [first])
        given = [first, *given[1:]]
    yield Raw(op, raw.name, attrs, given, [made])
    if last:
        back = scope.fresh(f"{raw.name}.channels_last")
        yield Raw("Transpose", f"{raw.name}.out", {"perm": [0, *range(2, rank), 1]}, [made], [back])
        made = back
    yield rounded(scope, raw, made, y, like=0)


def qlinear_matmul(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point"""
    a, b = real(scope, raw, 0), real(scope, raw, 3, axis=scope.type(raw.inputs[3] or "").rank - 1)
    made = scope.fresh(f"{raw.name}.float")
    yield from (a, b, Raw("MatMul", raw.name, {}, [out(a), out(b)], [made]), rounded(scope, raw, made, 6, like=0))


def qgemm(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """a, a_scale, a_zero_point, b, b_scale, b_zero_point, c (int32), y_scale, y_zero_point; without them y is float"""
    axis = 0 if raw.attrs.get("transB", 0) else 1
    a, b = real(scope, raw, 0), real(scope, raw, 3, axis=axis)
    c = bias(scope, raw, 6, a, b, float(raw.attrs.get("alpha", 1.0)))
    nodes = [n for n in (a, b, c) if n is not None]
    yield from nodes
    quantized = raw.input(7) is not None
    made = scope.fresh(f"{raw.name}.float") if quantized else raw.outputs[0]
    yield Raw("Gemm", raw.name, dict(raw.attrs), [out(n) for n in nodes], [made])
    if quantized:
        yield rounded(scope, raw, made, 7, like=0)


def of_two(op: str) -> Lower:
    """a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point"""

    def lower(scope: Scope, raw: Raw) -> Iterator[Raw]:
        a, b = real(scope, raw, 0), real(scope, raw, 3)
        made = scope.fresh(f"{raw.name}.float")
        yield from (a, b, Raw(op, raw.name, {}, [out(a), out(b)], [made]), rounded(scope, raw, made, 6, like=0))

    return lower


def of_one(op: str) -> Lower:
    """x, x_scale, x_zero_point, y_scale, y_zero_point"""

    def lower(scope: Scope, raw: Raw) -> Iterator[Raw]:
        x = real(scope, raw, 0)
        yield x
        last = bool(raw.attrs.pop("channels_last", 0))
        yield from around(scope, raw, op, [out(x)], dict(raw.attrs), last, y=3)

    return lower


def qlinear_reduce_mean(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """x, x_scale, x_zero_point, y_scale, y_zero_point; the axes are an attribute"""
    x, made = real(scope, raw, 0), scope.fresh(f"{raw.name}.float")
    axes = raw.attrs.get("axes")
    given = [out(x)] if axes is None else [out(x), scope.constant(f"{raw.name}.axes", np.asarray(axes, np.int64))]
    yield x
    yield Raw("ReduceMean", raw.name, {"keepdims": raw.attrs.get("keepdims", 1)}, given, [made])
    yield rounded(scope, raw, made, 3, like=0)


def qlinear_softmax(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """x, x_scale, x_zero_point, y_scale, y_zero_point; attribute `opset`: below 13 the tensor is flattened at `axis`"""
    x, made = real(scope, raw, 0), scope.fresh(f"{raw.name}.float")
    yield x
    old = int(raw.attrs.get("opset", 13)) < 13
    soft = Raw("Softmax", raw.name, {"axis": raw.attrs.get("axis", 1 if old else -1)}, [out(x)], [made])
    yield from softmax_1(scope, soft) if old else [soft]
    yield rounded(scope, raw, made, 3, like=0)


def qlinear_concat(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """y_scale, y_zero_point, then x, x_scale, x_zero_point of each operand"""
    parts = [real(scope, raw, i) for i in range(2, len(raw.inputs), 3)]
    made = scope.fresh(f"{raw.name}.float")
    for i, part in enumerate(parts):
        part.name = f"{raw.name}.dq{i}"
    yield from parts
    yield Raw("Concat", raw.name, {"axis": raw.attrs["axis"]}, [out(p) for p in parts], [made])
    yield rounded(scope, raw, made, 0, like=2)


def qlinear_where(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """condition, x, x_scale, x_zero_point, y, y_scale, y_zero_point, z_scale, z_zero_point"""
    x, y, made = real(scope, raw, 1), real(scope, raw, 4), scope.fresh(f"{raw.name}.float")
    yield from (x, y, Raw("Where", raw.name, {}, [raw.inputs[0], out(x), out(y)], [made]))
    yield rounded(scope, raw, made, 7, like=1)


def renamed(scope: Scope, raw: Raw) -> Iterator[Raw]:
    """com.microsoft's own QuantizeLinear and DequantizeLinear mean what the standard's do since opset 21."""
    yield Raw(raw.op, raw.name, dict(raw.attrs), list(raw.inputs), list(raw.outputs))


STANDARD: dict[str, Lower] = {"QLinearConv": qlinear_conv, "QLinearMatMul": qlinear_matmul}

MICROSOFT: dict[str, Lower] = {
    **STANDARD,
    "QuantizeLinear": renamed,
    "DequantizeLinear": renamed,
    "QGemm": qgemm,
    "QLinearAdd": of_two("Add"),
    "QLinearMul": of_two("Mul"),
    "QLinearGlobalAveragePool": of_one("GlobalAveragePool"),
    "QLinearAveragePool": of_one("AveragePool"),
    "QLinearLeakyRelu": of_one("LeakyRelu"),
    "QLinearSigmoid": of_one("Sigmoid"),
    "QLinearReduceMean": qlinear_reduce_mean,
    "QLinearSoftmax": qlinear_softmax,
    "QLinearConcat": qlinear_concat,
    "QLinearWhere": qlinear_where,
}
