"""Constant factors and offsets into the linear layers next to them.

scale_out: y * s   -> rows of w and b scaled         add_out: y + c    -> b + c
scale_in:  f(x * s) -> columns of w scaled           add_in:  f(x + c) -> b + sum w c, where nothing is padded
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from .rules import Example, Match, Rule, Within, rule
from .terms import Add, Conv, ConvTranspose, Div, Gemm, MatMul, Mul, Sub


def along(c: Array, rank: int, axis: int, size: int) -> Array | None:
    """A constant that broadcasts against a tensor of `rank` axes as a vector along `axis`; None where it varies
    along another axis too."""
    if c.ndim > rank:
        return None
    full = c.reshape((1,) * (rank - c.ndim) + c.shape)
    if any(d != 1 for i, d in enumerate(full.shape) if i != axis % rank) or full.size not in (1, size):
        return None
    return np.broadcast_to(full.reshape(-1), (size,))


def scale_in(w: Array, s: Array, group: int) -> Array:
    """Conv weights (M, C/group, *k) with input channels scaled by s (C,)."""
    m, cg = w.shape[:2]
    return (w.reshape(group, m // group, cg, -1) * s.reshape(group, 1, cg, 1)).reshape(w.shape)


def push_in(w: Array, c: Array, group: int) -> Array:
    """sum_{c,k} w[m,c,k] c[c]: what a constant offset of the input channels adds to a Conv's output, (M,)."""
    m, cg = w.shape[:2]
    sums = w.reshape(group, m // group, cg, -1).sum(axis=3)
    return (sums * c.reshape(group, 1, cg)).sum(axis=2).reshape(m)


def scale_out(w: Array, s: Array) -> Array:
    """Conv weights (M, C/group, *k) with output channels scaled by s (M,)."""
    return w * s.reshape(-1, *[1] * (w.ndim - 1))


def transposed_scale_out(w: Array, s: Array, group: int) -> Array:
    """ConvTranspose weights (C, M/group, *k) with output channels scaled by s (M,)."""
    c, mg = w.shape[:2]
    return (w.reshape(group, c // group, mg, -1) * s.reshape(group, 1, mg, 1)).reshape(w.shape)


def gemm_axes(trans_b: int) -> tuple[int, int]:
    """(input axis, output axis) of Gemm's B."""
    return (1, 0) if trans_b else (0, 1)


def gemm_scaled(w: Array, s: Array, axis: int) -> Array:
    """B of a Gemm scaled along an axis."""
    return w * (s[:, None] if axis == 0 else s[None, :])


def plus(b: Array | None, c: Array) -> Array:
    """A bias that may be absent, plus c."""
    return c if b is None else b + c


def unpadded(attrs: Any) -> bool:
    """Whether a Conv pads nothing."""
    return attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(attrs.get("pads") or [0])


def padding_reason(match: Match) -> str | None:
    """The sentence for an offset before a Conv that pads with zeros."""
    if unpadded(match.node("Conv").attrs):
        return None
    return "the Conv pads with zeros, which the offset before it does not reach"


def conv_example(rng: np.random.Generator, *, pads: bool = True, channel: str = "out") -> tuple[dict[str, Any], Any]:
    """Random (values x, w, b, c; attrs) of a Conv, grouped or not, with c along its output or input channels."""
    group = int(rng.choice([1, 2, 4]))
    c_in, c_out = 4, int(rng.choice([4, 8]))
    k, p = int(rng.choice([1, 3])), int(rng.integers(0, 2)) if pads else 0
    values: dict[str, Any] = {
        "x": rng.normal(size=(2, c_in, 7, 6)).astype(np.float32),
        "w": rng.normal(size=(c_out, c_in // group, k, k)).astype(np.float32),
        "b": rng.normal(size=c_out).astype(np.float32) if rng.random() < 0.7 else None,
        "c": rng.normal(size=(1, c_out if channel == "out" else c_in, 1, 1)).astype(np.float32),
    }
    if rng.random() < 0.3:
        values["c"] = np.float32(rng.normal())
    return values, {"Conv": {"group": group, "pads": [p, p, p, p], "strides": [int(rng.integers(1, 3))] * 2}}


def gemm_example(rng: np.random.Generator, *, channel: str = "out") -> tuple[dict[str, Any], Any]:
    """Random (values x, w, b, c; attrs) of a Gemm."""
    k, n, trans = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.integers(0, 2))
    values: dict[str, Any] = {
        "x": rng.normal(size=(3, k)).astype(np.float32),
        "w": rng.normal(size=(n, k) if trans else (k, n)).astype(np.float32),
        "b": rng.normal(size=n).astype(np.float32) if rng.random() < 0.7 else None,
        "c": rng.normal(size=n if channel == "out" else k).astype(np.float32),
    }
    return values, {"Gemm": {"transB": trans, "alpha": float(rng.choice([1.0, 0.5])), "beta": 1.0}}


@rule
class MulAfterConv(Rule):
    """(conv(x, w) + b) * c = conv(x, w * c) + b * c, c along the output channels"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(Conv(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[0]) is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array) -> Any:
        s = along(c, w.ndim, 1, w.shape[0])
        assert s is not None
        return Conv(x, scale_out(w, s), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng))


@rule
class AddAfterConv(Rule):
    """conv(x, w) + b + c = conv(x, w) + (b + c), c along the output channels"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(Conv(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[0]) is not None else "the offset varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array) -> Any:
        offset = along(c, w.ndim, 1, w.shape[0])
        assert offset is not None
        return Conv(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng))


@rule
class MulBeforeConv(Rule):
    """conv(x * c, w) + b = conv(x, w * c) + b, c along the input channels; zero padding stays zero"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Conv(Mul(x, c), w, b)

    @staticmethod
    def guard(x: Value, w: Array, c: Array, group: int) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[1] * group) is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, group: int) -> Any:
        s = along(c, w.ndim, 1, w.shape[1] * group)
        assert s is not None
        return Conv(x, scale_in(w, s, group), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng, channel="in"))


@rule
class AddBeforeConv(Rule):
    """conv(x + c, w) + b = conv(x, w) + (b + sum w c), c along the input channels, where the Conv pads nothing"""

    claim = Within(ulps=64)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Conv(Add(x, c), w, b)

    @staticmethod
    def guard(w: Array, c: Array, group: int, match: Match) -> str | None:
        if along(c, w.ndim, 1, w.shape[1] * group) is None:
            return "the offset varies within a channel"
        return padding_reason(match)

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, group: int) -> Any:
        offset = along(c, w.ndim, 1, w.shape[1] * group)
        assert offset is not None
        return Conv(x, w, plus(b, push_in(w, offset, group)))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng, pads=False, channel="in"))


def transposed_example(rng: np.random.Generator, channel: str = "out") -> tuple[dict[str, Any], Any]:
    """Random (values x, w, b, c; attrs) of a ConvTranspose."""
    group = int(rng.choice([1, 2]))
    c_in, mg, k = 4, int(rng.integers(1, 4)), int(rng.integers(2, 4))
    values: dict[str, Any] = {
        "x": rng.normal(size=(2, c_in, 5, 4)).astype(np.float32),
        "w": rng.normal(size=(c_in, mg, k, k)).astype(np.float32),
        "b": rng.normal(size=mg * group).astype(np.float32) if rng.random() < 0.7 else None,
        "c": rng.normal(size=(mg * group if channel == "out" else c_in, 1, 1)).astype(np.float32),
    }
    return values, {"ConvTranspose": {"group": group, "strides": [2, 2]}}


@rule
class MulAfterConvTranspose(Rule):
    """(convT(x, w) + b) * c = convT(x, w * c) + b * c, c along the output channels"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(ConvTranspose(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, group: int) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[1] * group) is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, group: int) -> Any:
        s = along(c, w.ndim, 1, w.shape[1] * group)
        assert s is not None
        return ConvTranspose(x, transposed_scale_out(w, s, group), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng))


@rule
class AddAfterConvTranspose(Rule):
    """convT(x, w) + b + c = convT(x, w) + (b + c), c along the output channels"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(ConvTranspose(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, group: int) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[1] * group) is not None else "the offset varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, group: int) -> Any:
        offset = along(c, w.ndim, 1, w.shape[1] * group)
        assert offset is not None
        return ConvTranspose(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng))


@rule
class MulBeforeConvTranspose(Rule):
    """convT(x * c, w) + b = convT(x, w * c) + b, c along the input channels"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return ConvTranspose(Mul(x, c), w, b)

    @staticmethod
    def guard(w: Array, c: Array) -> str | None:
        return None if along(c, w.ndim, 1, w.shape[0]) is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array) -> Any:
        s = along(c, w.ndim, 1, w.shape[0])
        assert s is not None
        return ConvTranspose(x, scale_out(w, s), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng, "in"))


@rule
class MatMulAddToGemm(Rule):
    """x w + b = gemm(x, w, b) for a matrix x"""

    claim = Within(ulps=16)
    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, w: Any, b: Any) -> Any:
        return Add(MatMul(x, w), b)

    @staticmethod
    def guard(x: Value, w: Array, b: Array) -> str | None:
        if x.type.rank != 2 or w.ndim != 2:
            return "Gemm takes matrices only"
        return None if along(b, 2, 1, w.shape[1]) is not None else "the offset is no vector along the outputs"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array) -> Any:
        bias = along(b, 2, 1, w.shape[1])
        return Gemm(x, w, b if b.ndim == 1 and b.size == w.shape[1] else bias)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        shape = [(n,), (1, n), (1,)][int(rng.integers(0, 3))]
        x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((3, k), (k, n), shape))
        return Example({"x": x, "w": w, "b": b})


@rule
class MulAfterGemm(Rule):
    """(alpha x w + beta b) * c = alpha x (w c) + beta (b c)"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(Gemm(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | None:
        n = w.shape[gemm_axes(transB)[1]]
        return None if along(c, 2, 1, n) is not None else "the factor varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, transB: int) -> Any:
        axis = gemm_axes(transB)[1]
        s = along(c, 2, 1, w.shape[axis])
        assert s is not None
        return Gemm(x, gemm_scaled(w, s, axis), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng))


@rule
class AddAfterGemm(Rule):
    """alpha x w + b + c = alpha x w + (b + c), beta = 1"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(Gemm(x, w, b, beta=1.0), c)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | None:
        n = w.shape[gemm_axes(transB)[1]]
        return None if along(c, 2, 1, n) is not None else "the offset varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, transB: int) -> Any:
        offset = along(c, 2, 1, w.shape[gemm_axes(transB)[1]])
        assert offset is not None
        return Gemm(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng))


@rule
class MulBeforeGemm(Rule):
    """gemm(x * c, w, b) = gemm(x, c w, b), c along the inputs"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Gemm(Mul(x, c), w, b, transA=0)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | None:
        k = w.shape[gemm_axes(transB)[0]]
        return None if along(c, 2, 1, k) is not None else "the factor varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Value | None, c: Array, *, transB: int) -> Any:
        axis = gemm_axes(transB)[0]
        s = along(c, 2, 1, w.shape[axis])
        assert s is not None
        return Gemm(x, gemm_scaled(w, s, axis), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng, channel="in"))


@rule
class AddBeforeGemm(Rule):
    """gemm(x + c, w, b) = gemm(x, w, b + alpha c w), beta = 1"""

    claim = Within(ulps=64)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Gemm(Add(x, c), w, b, transA=0, beta=1.0)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | None:
        k = w.shape[gemm_axes(transB)[0]]
        return None if along(c, 2, 1, k) is not None else "the offset varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, *, transB: int, alpha: float) -> Any:
        k = w.shape[gemm_axes(transB)[0]]
        offset = along(c, 2, 1, k)
        assert offset is not None
        return Gemm(x, w, plus(b, alpha * (offset @ (w.T if transB else w))))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng, channel="in"))


@rule
class MulAfterMatMul(Rule):
    """(x w) * c = x (w c), c along the outputs"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, c: Any) -> Any:
        return Mul(MatMul(x, w), c)

    @staticmethod
    def guard(x: Value, w: Array, c: Array) -> str | None:
        if w.ndim != 2:
            return "the weights are no matrix"
        fits = along(c, x.type.rank, -1, w.shape[1]) is not None
        return None if fits else "the factor varies along another axis than the outputs"

    @staticmethod
    def rhs(x: Value, w: Array, c: Array) -> Any:
        s = along(c, x.type.rank, -1, w.shape[1])
        assert s is not None
        return MatMul(x, w * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        c = rng.normal(size=(n,) if rng.random() < 0.6 else ()).astype(np.float32)
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, k), (k, n)))
        return Example({"x": x, "w": w, "c": c})


@rule
class MulBeforeMatMul(Rule):
    """(x * c) w = x (c w), c along the inputs"""

    claim = Within(ulps=32)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, c: Any) -> Any:
        return MatMul(Mul(x, c), w)

    @staticmethod
    def guard(x: Value, w: Array, c: Array) -> str | None:
        if w.ndim != 2:
            return "the weights are no matrix"
        fits = along(c, x.type.rank, -1, w.shape[0]) is not None
        return None if fits else "the factor varies along another axis than the inputs"

    @staticmethod
    def rhs(x: Value, w: Array, c: Array) -> Any:
        s = along(c, x.type.rank, -1, w.shape[0])
        assert s is not None
        return MatMul(x, w * s[:, None])

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        x, w, c = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, k), (k, n), (k,)))
        return Example({"x": x, "w": w, "c": c})


@rule
class SubToAdd(Rule):
    """x - c = x + (-c)"""

    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, c: Any) -> Any:
        return Sub(x, c)

    @staticmethod
    def guard(x: Value, c: Array) -> str | None:
        return None if x.dtype.is_float and not x.is_constant else "not a float tensor and a constant"

    @staticmethod
    def rhs(x: Value, c: Array) -> Any:
        return Add(x, -c)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({k: rng.normal(size=s).astype(np.float32) for k, s in (("x", (2, 3, 4)), ("c", (3, 1)))})


@rule
class DivToMul(Rule):
    """x / c = x * (1 / c)"""

    claim = Within(ulps=2)
    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, c: Any) -> Any:
        return Div(x, c)

    @staticmethod
    def guard(x: Value, c: Array) -> str | None:
        if not x.dtype.is_float or x.is_constant:
            return "not a float tensor and a constant"
        return None if (np.abs(c) > 1e-30).all() else "the divisor is zero somewhere"

    @staticmethod
    def rhs(x: Value, c: Array) -> Any:
        return Mul(x, 1.0 / c)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x = rng.normal(size=(2, 3, 4)).astype(np.float32)
        return Example({"x": x, "c": (rng.uniform(0.1, 9, size=(3, 1)) * rng.choice([-1, 1])).astype(np.float32)})


@rule
class MulMul(Rule):
    """(x a) b = x (a b)"""

    claim = Within(ulps=4)
    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, a: Any, b: Any) -> Any:
        return Mul(Mul(x, a), b)

    @staticmethod
    def rhs(x: Value, a: Array, b: Array) -> Any:
        return Mul(x, a * b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (3, 1), (4,)))
        return Example({"x": x, "a": a, "b": b})


@rule
class AddAdd(Rule):
    """(x + a) + b = x + (a + b)"""

    claim = Within(ulps=8)
    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, a: Any, b: Any) -> Any:
        return Add(Add(x, a), b)

    @staticmethod
    def rhs(x: Value, a: Array, b: Array) -> Any:
        return Add(x, a + b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x, a, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (3, 1), (4,)))
        return Example({"x": x, "a": a, "b": b})


AFFINE_RULES: tuple[type[Rule], ...] = (
    SubToAdd, DivToMul, MulMul, AddAdd, MatMulAddToGemm, MulAfterConv, AddAfterConv, MulBeforeConv, AddBeforeConv,
    MulAfterConvTranspose, AddAfterConvTranspose, MulBeforeConvTranspose, MulAfterGemm, AddAfterGemm, MulBeforeGemm,
    AddBeforeGemm, MulAfterMatMul, MulBeforeMatMul,
)  # fmt: skip
