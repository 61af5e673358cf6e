"""Constant factors and offsets into the products of matrices next to them."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from qir.graph import Stage, Value
from qir.types import Array

from ..channel_math import along, gemm_axes, gemm_scaled, plus
from ..rewriting.rules import Affine, Example, Findings, FromGuard, Match, Rule, Within, rule
from ..rewriting.terms import Add, Gemm, MatMul, Mul


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
class MatMulAddToGemm(Affine):
    """x w + b = gemm(x, w, b) for a matrix x"""

    claim = Within(ulps=16)
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
class MulAfterGemm(Affine):
    """(alpha x w + beta b) * c = alpha x (w c) + beta (b c)"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(Gemm(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | Findings:
        n = w.shape[gemm_axes(transB)[1]]
        s = along(c, 2, 1, n)
        return {"s": s} if s is not None else "the factor varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, s: Annotated[Array, FromGuard], *, transB: int) -> Any:
        axis = gemm_axes(transB)[1]
        return Gemm(x, gemm_scaled(w, s, axis), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng))


@rule
class AddAfterGemm(Affine):
    """alpha x w + b + c = alpha x w + (b + c), beta = 1"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(Gemm(x, w, b, beta=1.0), c)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | Findings:
        n = w.shape[gemm_axes(transB)[1]]
        offset = along(c, 2, 1, n)
        return {"offset": offset} if offset is not None else "the offset varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, offset: Annotated[Array, FromGuard], *, transB: int) -> Any:
        return Gemm(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng))


@rule
class OffsetOutOfGemm(Rule):
    """gemm(x, w, c) = gemm(x, w) + beta c, where c is no vector along the outputs, or these are no channels of w"""

    claim = Within(ulps=16)
    shared_weights = True
    near = False

    @staticmethod
    def lhs(x: Any, w: Any, c: Any) -> Any:
        return Gemm(x, w, c)

    @staticmethod
    def guard(w: Value, c: Value, match: Match) -> str | None:
        if match.graph.stage is Stage.QDQ:
            return "it is quantized already"
        if c.data is None or not w.is_constant:
            return None
        n = int(match.root.output.shape[1])
        return None if along(c.data, 2, 1, n) is None else "the offset is a vector along the outputs"

    @staticmethod
    def rhs(x: Value, w: Value, c: Value, *, beta: float) -> Any:
        return Add(Gemm(x, w, beta=1.0), c if beta == 1.0 else Mul(c, beta))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = gemm_example(rng)
        n = len(values["c"])
        shape = [(3, n), (3, 1), (n,), (1, n)][int(rng.integers(0, 4))]
        attrs["Gemm"]["beta"] = float(rng.choice([1.0, 0.5]))
        del values["b"]
        return Example({**values, "c": rng.normal(size=shape).astype(np.float32)}, attrs, batch=())


@rule
class MulBeforeGemm(Affine):
    """gemm(x * c, w, b) = gemm(x, c w, b), c along the inputs"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Gemm(Mul(x, c), w, b, transA=0)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | Findings:
        k = w.shape[gemm_axes(transB)[0]]
        s = along(c, 2, 1, k)
        return {"s": s} if s is not None else "the factor varies along the batch"

    @staticmethod
    def rhs(x: Value, w: Array, b: Value | None, c: Array, s: Annotated[Array, FromGuard], *, transB: int) -> Any:
        axis = gemm_axes(transB)[0]
        return Gemm(x, gemm_scaled(w, s, axis), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng, channel="in"))


@rule
class AddBeforeGemm(Affine):
    """gemm(x + c, w, b) = gemm(x, w, b + alpha c w), beta = 1"""

    claim = Within(ulps=64)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Gemm(Add(x, c), w, b, transA=0, beta=1.0)

    @staticmethod
    def guard(w: Array, c: Array, transB: int) -> str | Findings:
        k = w.shape[gemm_axes(transB)[0]]
        offset = along(c, 2, 1, k)
        return {"offset": offset} if offset is not None else "the offset varies along the batch"

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, c: Array, offset: Annotated[Array, FromGuard], *, transB: int, alpha: float
    ) -> Any:
        return Gemm(x, w, plus(b, alpha * (offset @ (w.T if transB else w))))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*gemm_example(rng, channel="in"))


@rule
class MulAfterMatMul(Affine):
    """(x w) * c = x (w c), c along the outputs"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, c: Any) -> Any:
        return Mul(MatMul(x, w), c)

    @staticmethod
    def guard(x: Value, w: Array, c: Array) -> str | Findings:
        if w.ndim != 2:
            return "the weights are no matrix"
        s = along(c, x.type.rank, -1, w.shape[1])
        return {"s": s} if s is not None else "the factor varies along another axis than the outputs"

    @staticmethod
    def rhs(x: Value, w: Array, c: Array, s: Annotated[Array, FromGuard]) -> Any:
        return MatMul(x, w * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        c = rng.normal(size=(n,) if rng.random() < 0.6 else ()).astype(np.float32)
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, k), (k, n)))
        return Example({"x": x, "w": w, "c": c})


@rule
class MulBeforeMatMul(Affine):
    """(x * c) w = x (c w), c along the inputs"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, c: Any) -> Any:
        return MatMul(Mul(x, c), w)

    @staticmethod
    def guard(x: Value, w: Array, c: Array) -> str | Findings:
        if w.ndim != 2:
            return "the weights are no matrix"
        s = along(c, x.type.rank, -1, w.shape[0])
        return {"s": s} if s is not None else "the factor varies along another axis than the inputs"

    @staticmethod
    def rhs(x: Value, w: Array, c: Array, s: Annotated[Array, FromGuard]) -> Any:
        return MatMul(x, w * s[:, None])

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        x, w, c = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, k), (k, n), (k,)))
        return Example({"x": x, "w": w, "c": c})


GEMM_RULES: tuple[type[Rule], ...] = (
    MatMulAddToGemm, OffsetOutOfGemm, MulAfterGemm, AddAfterGemm, MulBeforeGemm, AddBeforeGemm, MulAfterMatMul,
    MulBeforeMatMul,
)  # fmt: skip
