"""Reverse-mode rules, part one: the registry, elementwise functions, linear algebra, normalization, reductions.

A rule gets the operator's attributes, its inputs, its outputs, the gradients of its outputs (None: that output does
not matter) and which inputs' gradients are wanted, and returns the inputs' gradients (None where there is none).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qir.ops.reductions import reduced_axes
from qir.ops.unary import erf, sigmoid, softplus
from qir.types import Array

Arrays = Sequence["Array | None"]
Attrs = Mapping[str, Any]
Rule = Callable[[Attrs, Arrays, Sequence[Array], Arrays, Sequence[bool]], "list[Array | None]"]

RULES: dict[str, Rule] = {}
"""Operator -> its rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def some(array: Array | None) -> Array:
    """An input that a rule cannot do without."""
    assert array is not None
    return array


def unbroadcast(d: Array, shape: Sequence[int]) -> Array:
    """The transpose of broadcasting from `shape`: sums over the axes that were repeated."""
    d = d.sum(axis=tuple(range(d.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and d.shape[i] != 1)
    return d.sum(axis=axes, keepdims=True) if axes else d


# -- elementwise ----------------------------------------------------------------------------------
def _gelu(x: Array, y: Array, a: Attrs) -> Array:
    if a["approximate"] == "tanh":
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + erf(x / math.sqrt(2))) + x * density


def _mish(x: Array, y: Array, a: Attrs) -> Array:
    t = np.tanh(softplus(x))
    return t + x * (1 - t * t) * sigmoid(x)


def _swish(x: Array, y: Array, a: Attrs) -> Array:
    s = sigmoid(a["alpha"] * x)
    return s + a["alpha"] * x * s * (1 - s)


def _hard_swish(x: Array, y: Array, a: Attrs) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1) + x / 6 * (np.abs(x) < 3)


def _hard_sigmoid(x: Array, y: Array, a: Attrs) -> Array:
    inner = a["alpha"] * x + a["beta"]
    return a["alpha"] * ((inner > 0) & (inner < 1))


DERIVATIVES: dict[str, Callable[[Array, Array, Attrs], Array]] = {
    "Abs": lambda x, y, a: np.sign(x),
    "Celu": lambda x, y, a: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0) / a["alpha"])),
    "Elu": lambda x, y, a: np.where(x < 0, a["alpha"] * np.exp(np.minimum(x, 0)), 1.0),
    "Erf": lambda x, y, a: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "Exp": lambda x, y, a: y,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": lambda x, y, a: np.where(x < 0, a["alpha"], 1.0),
    "Log": lambda x, y, a: 1 / x,
    "Mish": _mish,
    "Neg": lambda x, y, a: -np.ones_like(x),
    "Reciprocal": lambda x, y, a: -y * y,
    "Relu": lambda x, y, a: (x > 0).astype(x.dtype),
    "Selu": lambda x, y, a: a["gamma"] * np.where(x > 0, 1.0, a["alpha"] * np.exp(np.minimum(x, 0))),
    "Sigmoid": lambda x, y, a: y * (1 - y),
    "Softplus": lambda x, y, a: sigmoid(x),
    "Softsign": lambda x, y, a: 1 / (1 + np.abs(x)) ** 2,
    "Sqrt": lambda x, y, a: 0.5 / y,
    "Swish": _swish,
    "Tanh": lambda x, y, a: 1 - y * y,
    "Cos": lambda x, y, a: -np.sin(x),
    "Sin": lambda x, y, a: np.cos(x),
    "Atan": lambda x, y, a: 1 / (1 + x * x),
    "ThresholdedRelu": lambda x, y, a: (x > a["alpha"]).astype(x.dtype),
}
"""dy/dx of the unary functions, from x, y and the attributes."""


def _unary(derivative: Callable[[Array, Array, Attrs], Array]) -> Rule:
    def backward(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
        x = some(xs[0])
        return [(some(ds[0]) * derivative(x, ys[0], a)).astype(x.dtype, copy=False)]

    return backward


RULES.update({name: _unary(f) for name, f in DERIVATIVES.items()})

BINARY: dict[str, Callable[[Array, Array, Array, Array], tuple[Array, Array]]] = {
    "Add": lambda a, b, y, d: (d, d),
    "Sub": lambda a, b, y, d: (d, -d),
    "Mul": lambda a, b, y, d: (d * b, d * a),
    "Div": lambda a, b, y, d: (d / b, -d * y / b),
    "Pow": lambda a, b, y, d: (d * b * np.power(a, b - 1), d * y * np.log(np.where(a > 0, a, 1))),
    "PRelu": lambda a, b, y, d: (d * np.where(a < 0, b, 1), d * np.minimum(a, 0)),
}
"""Gradients of a broadcasting function of two tensors, before the broadcast is undone."""


def _binary(function: Callable[[Array, Array, Array, Array], tuple[Array, Array]]) -> Rule:
    def backward(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
        both = [some(x) for x in xs]
        found = function(both[0], both[1], ys[0], some(ds[0]))
        return [unbroadcast(np.broadcast_to(d, ys[0].shape), x.shape) for d, x in zip(found, both, strict=True)]

    return backward


RULES.update({name: _binary(f) for name, f in BINARY.items()})


@rule("Sum", "Mean")
def _sum(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    return [unbroadcast(some(ds[0]), some(x).shape) for x in xs]


RULES["Mean"] = lambda a, xs, ys, ds, needed: _sum(a, xs, ys, [some(ds[0]) / len(xs)], needed)


@rule("Max", "Min")
def _extremum(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    hits = [np.broadcast_to(some(x), ys[0].shape) == ys[0] for x in xs]
    share = some(ds[0]) / np.maximum(np.sum(hits, axis=0), 1)
    return [unbroadcast(share * hit, some(x).shape) for x, hit in zip(xs, hits, strict=True)]


@rule("Clip")
def _clip(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, d = some(xs[0]), some(ds[0])
    lo, hi = (xs[i] if i < len(xs) else None for i in (1, 2))
    below = x < lo if lo is not None else np.zeros(x.shape, bool)
    above = x > hi if hi is not None else np.zeros(x.shape, bool)
    ends = [None if end is None else np.sum(d * mask).reshape(end.shape) for end, mask in ((lo, below), (hi, above))]
    return [d * ~(below | above), *ends][: len(xs)]


@rule("Where")
def _where(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    condition, d = some(xs[0]), some(ds[0])
    pair = (d * condition, d * ~condition)
    return [None, *(unbroadcast(np.broadcast_to(g, d.shape), some(x).shape) for g, x in zip(pair, xs[1:], strict=True))]


@rule("Softmax", "MaskedSoftmax")
def _softmax(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    d, y = some(ds[0]), ys[0]
    return [y * (d - (d * y).sum(axis=a["axis"], keepdims=True)), None][: len(xs)]


@rule("LogSoftmax")
def _log_softmax(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    d = some(ds[0])
    return [d - np.exp(ys[0]) * d.sum(axis=a["axis"], keepdims=True)]


# -- linear algebra, normalization ----------------------------------------------------------------
@rule("MatMul")
def _matmul(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    left, right, d = some(xs[0]), some(xs[1]), some(ds[0])
    x = left[None, :] if left.ndim == 1 else left
    w = right[:, None] if right.ndim == 1 else right
    d = d[..., None] if right.ndim == 1 else d
    d = d[..., None, :] if left.ndim == 1 else d
    dx = unbroadcast(d @ np.swapaxes(w, -1, -2), x.shape).reshape(left.shape) if needed[0] else None
    if not needed[1]:
        return [dx, None]
    if w.ndim == 2:  # one product instead of a sum over batches
        return [dx, (x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1])).reshape(right.shape)]
    return [dx, unbroadcast(np.swapaxes(x, -1, -2) @ d, w.shape).reshape(right.shape)]


@rule("Gemm")
def _gemm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, w, d = some(xs[0]), some(xs[1]), some(ds[0])
    x = x.T if a["transA"] else x
    w = w.T if a["transB"] else w
    dx, dw = a["alpha"] * (d @ w.T), a["alpha"] * (x.T @ d)
    found: list[Array | None] = [dx.T if a["transA"] else dx, dw.T if a["transB"] else dw]
    if len(xs) > 2 and xs[2] is not None:
        found.append(unbroadcast(a["beta"] * d, xs[2].shape))
    return found


@rule("BatchNormalization")
def _batch_norm(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    """With fixed statistics: an affine map of each channel."""
    d = some(ds[0])
    along = [1, -1] + [1] * (d.ndim - 2)
    x, gamma, _, mean, var = (some(v) for v in xs)
    inverse = 1 / np.sqrt(var + a["epsilon"])
    others = (0, *range(2, d.ndim))
    centred = x - mean.reshape(along)
    d_beta, d_x_hat = d.sum(others), (d * centred).sum(others)
    d_var = -0.5 * gamma * inverse**3 * d_x_hat
    return [d * (gamma * inverse).reshape(along), d_x_hat * inverse, d_beta, -gamma * inverse * d_beta, d_var]


# -- reductions -----------------------------------------------------------------------------------
def _reduction(a: Attrs, xs: Arrays, y: Array, d: Array) -> tuple[Array, tuple[int, ...], Array, Array]:
    """(x, axes, y and its gradient with the reduced axes kept)."""
    x = some(xs[0])
    axes = tuple(ax % x.ndim for ax in reduced_axes(a, x.ndim, xs[1] if len(xs) > 1 else None))
    kept = [1 if i in axes else n for i, n in enumerate(x.shape)]
    return x, axes, y.reshape(kept), d.reshape(kept)


@rule("ReduceL2")
def _reduce_l2(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, _, y, d = _reduction(a, xs, ys[0], some(ds[0]))
    return [d * x / y, None][: len(xs)]


@rule("ReduceSum", "ReduceMean")
def _reduce_sum(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, _, _, d = _reduction(a, xs, ys[0], some(ds[0]))
    return [np.broadcast_to(d, x.shape).copy()]


@rule("ReduceMean")
def _reduce_mean(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, _, y, d = _reduction(a, xs, ys[0], some(ds[0]))
    return [np.broadcast_to(d * (y.size / max(x.size, 1)), x.shape).copy()]


@rule("ReduceMax", "ReduceMin")
def _reduce_max(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, axes, y, d = _reduction(a, xs, ys[0], some(ds[0]))
    hit = x == y
    return [hit * (d / hit.sum(axis=axes, keepdims=True))]


@rule("ReduceProd")
def _reduce_prod(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, axes, _, d = _reduction(a, xs, ys[0], some(ds[0]))
    rest = [i for i in range(x.ndim) if i not in axes]
    moved = np.transpose(x, [*rest, *axes])
    flat = moved.reshape(*(x.shape[i] for i in rest), -1)
    one = np.ones_like(flat[..., :1])
    before = np.concatenate([one, np.cumprod(flat, -1)[..., :-1]], -1)
    after = np.concatenate([np.cumprod(flat[..., ::-1], -1)[..., ::-1][..., 1:], one], -1)
    others = (before * after).reshape(moved.shape)  # the product of the others: no division, so zeros do no harm
    return [np.transpose(others, np.argsort([*rest, *axes])) * d]


# -- straight through a quantizer -----------------------------------------------------------------
def _along(scale: Array, x: Array, a: Attrs) -> Array:
    if scale.size == 1:
        return scale.reshape(())
    shape = [1] * x.ndim
    shape[int(a.get("axis", 1))] = -1
    return scale.reshape(shape)


@rule("QuantizeLinear")
def _quantize(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    """Straight-through: rounding counts as the identity, saturation cuts the gradient  [White Paper 4.1]."""
    x, y = some(xs[0]), ys[0]
    scale = _along(some(xs[1]), x, a)
    lo, hi = (np.iinfo(y.dtype).min, np.iinfo(y.dtype).max) if y.dtype.kind in "iu" else (y.min(), y.max())
    zero = _along(xs[2], x, a).astype(np.int64) if len(xs) > 2 and xs[2] is not None else 0
    free = np.rint(x / scale) + zero
    return [some(ds[0]) / scale * ((free >= lo) & (free <= hi)), *[None] * (len(xs) - 1)]


@rule("DequantizeLinear")
def _dequantize(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    return [some(ds[0]) * _along(some(xs[1]), some(xs[0]), a), *[None] * (len(xs) - 1)]
