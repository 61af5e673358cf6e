"""FoldBatchNorm: batch normalization into the linear layer before it, or after it, or into one of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qir.graph import Graph, Stage, Value
from qir.types import Array

from ..calibration.data_free import BATCH_NORM_TABLE
from ..channel_math import gemm_axes, gemm_scaled, plus, push_in, scale_in, scale_out, transposed_scale_out
from ..manager import Pass
from ..report import PassReport
from ..rewriting.rewriter import rewrite
from ..rewriting.rules import Example, Match, Rule, Within, rule
from ..rewriting.terms import Add, BatchNormalization, Conv, ConvTranspose, Gemm, MatMul, Mul
from ..simplify.conv_rules import conv_example, padding_reason, transposed_example
from ..simplify.gemm_rules import gemm_example


def affine(gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float) -> tuple[Array, Array]:
    """(factor, offset) of a batch normalization: factor = gamma / sqrt(var + eps), offset = beta - factor * mean."""
    factor = gamma / np.sqrt(var + epsilon)
    return factor, beta - factor * mean


def random_norm(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    """Random parameters of a batch normalization."""
    return {
        "gamma": rng.normal(1, 0.5, size=channels).astype(np.float32),
        "beta": rng.normal(size=channels).astype(np.float32),
        "mean": rng.normal(size=channels).astype(np.float32),
        "var": rng.uniform(0.05, 4, size=channels).astype(np.float32),
    }


class NormAfter(Rule):
    """Base of the rules with a linear layer before the norm: leaves (beta, gamma) of the output for later passes."""

    claim = Within(ulps=64)
    shared_weights = True

    @classmethod
    def applied(cls, match: Match, arguments: Mapping[str, Any], result: Value) -> None:
        table = match.graph.tables.setdefault(BATCH_NORM_TABLE, {})
        table[result.name] = (arguments["beta"], arguments["gamma"])


@rule
class NormAfterConv(NormAfter):
    """BN(conv(x, w) + b) = conv(x, w s) + (b - mean) s + beta,  s = gamma / sqrt(var + eps)     [White Paper 10-12]"""

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return BatchNormalization(Conv(x, w, b), gamma, beta, mean, var)

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float
    ) -> Any:
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Conv(x, scale_out(w, s), t if b is None else b * s + t)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = conv_example(rng)
        return Example({**values, **random_norm(rng, len(values["w"]))}, attrs)


@rule
class NormAfterConvTranspose(NormAfter):
    """BN(convT(x, w) + b) = convT(x, w s) + (b - mean) s + beta                                 [White Paper 10-12]"""

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return BatchNormalization(ConvTranspose(x, w, b), gamma, beta, mean, var)

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *,
        epsilon: float, group: int,
    ) -> Any:  # fmt: skip
        s, t = affine(gamma, beta, mean, var, epsilon)
        return ConvTranspose(x, transposed_scale_out(w, s, group), t if b is None else b * s + t)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = transposed_example(rng)
        channels = values["w"].shape[1] * attrs["ConvTranspose"]["group"]
        return Example({**values, **random_norm(rng, channels)}, attrs)


@rule
class NormAfterGemm(NormAfter):
    """BN(alpha x w + beta' b) = alpha x (w s) + (beta' b - mean) s + beta                        [White Paper 10-12]"""

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return BatchNormalization(Gemm(x, w, b, beta=1.0), gamma, beta, mean, var)

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *,
        epsilon: float, transB: int,
    ) -> Any:  # fmt: skip
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Gemm(x, gemm_scaled(w, s, gemm_axes(transB)[1]), t if b is None else b * s + t)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = gemm_example(rng)
        return Example({**values, **random_norm(rng, len(values["c"]))}, attrs)


@rule
class NormAfterMatMul(NormAfter):
    """BN(x w) = gemm(x, w s, beta - mean s) for a matrix x                                      [White Paper 10-12]"""

    @staticmethod
    def lhs(x: Any, w: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return BatchNormalization(MatMul(x, w), gamma, beta, mean, var)

    @staticmethod
    def guard(x: Value, w: Array) -> str | None:
        return None if x.type.rank == 2 and w.ndim == 2 else "the channels are no columns of the product"

    @staticmethod
    def rhs(x: Value, w: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Any:
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Gemm(x, w * s, t)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((3, k), (k, n)))
        return Example({"x": x, "w": w, **random_norm(rng, n)})


@rule
class NormBeforeConv(Rule):
    """conv(BN(x), w) + b = conv(x, w s) + b + sum w t,  t = beta - mean s; where the Conv pads, only for t = 0"""

    claim = Within(ulps=128)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return Conv(BatchNormalization(x, gamma, beta, mean, var), w, b)

    @staticmethod
    def guard(gamma: Array, beta: Array, mean: Array, var: Array, epsilon: float, match: Match) -> str | None:
        return padding_reason(match) if affine(gamma, beta, mean, var, epsilon)[1].any() else None

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *,
        epsilon: float, group: int,
    ) -> Any:  # fmt: skip
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Conv(x, scale_in(w, s, group), plus(b, push_in(w, t, group)))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = conv_example(rng, pads=False)
        return Example({**values, **random_norm(rng, values["x"].shape[1])}, attrs)


@rule
class NormBeforeGemm(Rule):
    """gemm(BN(x), w, b) = gemm(x, s w, b + alpha t w),  t = beta - mean s"""

    claim = Within(ulps=128)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return Gemm(BatchNormalization(x, gamma, beta, mean, var), w, b, transA=0, beta=1.0)

    @staticmethod
    def rhs(
        x: Value, w: Array, b: Array | None, gamma: Array, beta: Array, mean: Array, var: Array, *,
        epsilon: float, transB: int, alpha: float,
    ) -> Any:  # fmt: skip
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Gemm(x, gemm_scaled(w, s, gemm_axes(transB)[0]), plus(b, alpha * (t @ (w.T if transB else w))))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        values, attrs = gemm_example(rng)
        return Example({**values, **random_norm(rng, values["x"].shape[1])}, attrs)


@rule
class NormBeforeMatMul(Rule):
    """BN(x) w = gemm(x, s w, t w) for a matrix x,  t = beta - mean s"""

    claim = Within(ulps=128)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, w: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return MatMul(BatchNormalization(x, gamma, beta, mean, var), w)

    @staticmethod
    def guard(x: Value, w: Array) -> str | None:
        return None if x.type.rank == 2 and w.ndim == 2 else "the channels are no rows of the weights"

    @staticmethod
    def rhs(x: Value, w: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Any:
        s, t = affine(gamma, beta, mean, var, epsilon)
        return Gemm(x, w * s[:, None], t @ w)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, n = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        x, w = (rng.normal(size=s).astype(np.float32) for s in ((3, k), (k, n)))
        return Example({"x": x, "w": w, **random_norm(rng, k)})


@rule
class NormAlone(NormAfter):
    """BN(x) = x s + t: a depthwise 1x1 Conv, or, for a matrix, a product and a sum"""

    claim = Within(ulps=16)

    @staticmethod
    def lhs(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return BatchNormalization(x, gamma, beta, mean, var)

    @staticmethod
    def rhs(x: Value, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float) -> Any:
        s, t = affine(gamma, beta, mean, var, epsilon)
        if x.type.rank == 2:
            return Add(Mul(x, s), t)
        return Conv(x, s.reshape(-1, *[1] * (x.type.rank - 1)), t, group=len(s))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        shape = [(2, 3), (2, 3, 5), (2, 3, 4, 5)][int(rng.integers(0, 3))]
        return Example({"x": rng.normal(size=shape).astype(np.float32), **random_norm(rng, 3)})


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """y = gamma (x - mean) / sqrt(var + eps) + beta leaves the graph                           [White Paper 9-12]

    First into the linear layer before it, then into the one after it (a Conv that pads takes no offset), and what is
    left becomes a layer of its own. beta and gamma of each channel stay behind in `graph.tables["batch_norm"]`
    (output's name -> (beta, gamma)): mean and deviation of that tensor, for absorb_bias, ranges without data and
    analytic bias correction.
    """

    name: ClassVar[str] = "fold_batchnorm"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)
    ensures: ClassVar[Stage] = Stage.FOLDED

    AFTER: ClassVar[tuple[type[Rule], ...]] = (NormAfterConv, NormAfterConvTranspose, NormAfterGemm, NormAfterMatMul)
    BEFORE: ClassVar[tuple[type[Rule], ...]] = (NormBeforeConv, NormBeforeGemm, NormBeforeMatMul)

    def run(self, graph: Graph) -> PassReport:
        """Fold every batch normalization of constant parameters."""
        report = self.report()
        for rules in (self.AFTER, self.BEFORE, (NormAlone,)):
            rewrite(graph, rules, report)
        graph.prune()
        return report
