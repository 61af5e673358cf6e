"""L2 normalization back into one operator; what scales a row before it cancels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.rules import Example, Findings, FromGuard, Match, Rule, Within, rule
from ..rewriting.terms import (  # fmt: skip
    Clip,
    Div,
    Expand,
    LpNormalization,
    Max,
    Mul,
    Pow,
    Reciprocal,
    ReduceL2,
    ReduceSum,
    RMSNormalization,
    Shape,
    Sqrt,
    Transpose,
)

CLAIM = Within(ulps=4096)
"""The variance of a short row may be a difference of equal numbers."""


def last_axes(x: Value, *named: Array) -> str | Findings:
    """The normalized axes, their number and the permutation that brings them last, or why there are none such."""
    rank = x.type.rank
    sets = [sorted({int(a) % rank for a in np.reshape(axes, -1)}) for axes in named]
    if any(s != sets[0] for s in sets) or not sets[0]:
        return "the mean and the variance are not along the same axes"
    sizes = [x.shape[a] for a in sets[0]]
    if any(isinstance(d, str) for d in sizes):
        return f"the size of a row, {sizes}, is not fixed"
    perm = [*(a for a in range(rank) if a not in sets[0]), *sets[0]]
    return {"perm": perm, "tail": [int(d) for d in sizes if isinstance(d, int)]}


def on_last(x: Value, perm: Sequence[int], normalize: Callable[[Any], Any]) -> Any:
    """normalize(x) along the axes that `perm` brings last."""
    if list(perm) == list(range(len(perm))):
        return normalize(x)
    return Transpose(normalize(Transpose(x, perm=list(perm))), perm=np.argsort(perm).tolist())


LEAST = 1e-30
"""Below this a floor under an L2 norm is none."""


@rule
class FuseL2Normalization(Rule):
    """x / max(||x||, floor) = rmsnorm(x; 1 / sqrt(n), epsilon = floor^2 / n), along the last axis"""

    claim = CLAIM
    near = False
    shared_weights = True

    @staticmethod
    def lhs(x: Any, axes: Any) -> Any:
        return Div(x, ReduceL2(x, axes, keepdims=1))

    @staticmethod
    def lhs_clip(x: Any, axes: Any, floor: Any) -> Any:
        return Div(x, Clip(ReduceL2(x, axes, keepdims=1), floor, None))

    @staticmethod
    def lhs_expand(x: Any, axes: Any, floor: Any, shape: Any) -> Any:
        return Div(x, Expand(Clip(ReduceL2(x, axes, keepdims=1), floor, None), shape))

    @staticmethod
    def lhs_expand_as(x: Any, axes: Any, floor: Any) -> Any:
        return Div(x, Expand(Clip(ReduceL2(x, axes, keepdims=1), floor, None), Shape(x)))

    @staticmethod
    def lhs_max(x: Any, axes: Any, floor: Any) -> Any:
        return Div(x, Max(ReduceL2(x, axes, keepdims=1), floor))

    @staticmethod
    def lhs_sum(x: Any, axes: Any) -> Any:
        return Div(x, Sqrt(ReduceSum(Mul(x, x), axes, keepdims=1)))

    @staticmethod
    def lhs_pow(x: Any, axes: Any) -> Any:
        return Div(x, Sqrt(ReduceSum(Pow(x, 2.0), axes, keepdims=1)))

    @staticmethod
    def lhs_pow_clip(x: Any, axes: Any, floor: Any) -> Any:
        return Div(x, Clip(Sqrt(ReduceSum(Pow(x, 2.0), axes, keepdims=1)), floor, None))

    @staticmethod
    def lhs_sum_max(x: Any, axes: Any, floor: Any) -> Any:
        return Div(x, Max(Sqrt(ReduceSum(Mul(x, x), axes, keepdims=1)), floor))

    @staticmethod
    def guard(x: Value, axes: Array, floor: float | None, match: Match) -> str | Findings:
        if floor is not None and not 0 <= floor < 1e-3:
            return f"the floor {floor} under the norm is no small number"
        if match.root.output.type != x.type:
            return "the quotient broadcasts x"
        return last_axes(x, axes)

    @staticmethod
    def rhs(
        x: Value, axes: Array, shape: Array | None, floor: float | None, perm: Annotated[Any, FromGuard],
        tail: Annotated[Any, FromGuard],
    ) -> Any:  # fmt: skip
        n = math.prod(tail)
        scale, epsilon = np.full(tail, 1 / math.sqrt(n)), max((floor or 0.0) ** 2 / n, LEAST)
        return on_last(
            x, perm, lambda v: RMSNormalization(v, scale, axis=-len(tail), epsilon=epsilon, stash_type=1)
        )  # fmt: skip

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        shape = (2, int(rng.integers(1, 5)), int(rng.integers(2, 9)))
        axes = np.asarray([[-1], [2], [1]][int(rng.integers(0, 3))], np.int64)
        x = rng.normal(size=shape).astype(np.float32)
        return Example(
            {"x": x, "axes": axes, "floor": np.float32(1e-12), "shape": np.asarray(shape, np.int64)}, batch=()
        )


@rule
class LpToRMSNormalization(Rule):
    """x / ||x|| = rmsnorm(x; 1 / sqrt(n))"""

    claim = CLAIM
    near = False

    @staticmethod
    def lhs(x: Any) -> Any:
        return LpNormalization(x, p=2)

    @staticmethod
    def guard(x: Value, axis: int) -> str | Findings:
        return last_axes(x, np.asarray([axis]))

    @staticmethod
    def rhs(x: Value, perm: Annotated[Any, FromGuard], tail: Annotated[Any, FromGuard]) -> Any:
        scale = np.full(tail, 1 / math.sqrt(math.prod(tail)))
        return on_last(x, perm, lambda v: RMSNormalization(v, scale, axis=-1, epsilon=LEAST, stash_type=1))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        axis = int(rng.integers(-1, 3))
        x = rng.normal(size=(2, 3, 5)).astype(np.float32)
        return Example({"x": x}, {"LpNormalization": {"axis": axis, "p": 2}}, batch=())


@rule
class L2OfQuotient(Rule):
    """l2(x / max(c, floor)) = l2(x), floor > 0, c one number a row (the count of a masked mean)"""

    claim = CLAIM
    near = False
    shared_weights = True
    shared_nodes = True

    @staticmethod
    def lhs(x: Any, c: Any, floor: Any, g: Any) -> Any:
        return RMSNormalization(Div(x, Clip(c, floor, None)), g)

    @staticmethod
    def lhs_max(x: Any, c: Any, floor: Any, g: Any) -> Any:
        return RMSNormalization(Div(x, Max(c, floor)), g)

    @staticmethod
    def lhs_inverse(x: Any, c: Any, floor: Any, g: Any) -> Any:
        return RMSNormalization(Mul(x, Reciprocal(Clip(c, floor, None))), g)

    @staticmethod
    def guard(x: Value, c: Value, floor: float, match: Match, epsilon: float) -> str | None:
        node = match.root
        count = x.type.rank - node.attrs["axis"] % x.type.rank
        if epsilon > 1e-12 or x.type != node.output.type:
            return "epsilon would be scaled too"
        if any(d != 1 for d in c.shape[-count:]):
            return "the divisor varies along the row"
        return None if floor > 0 else "the divisor is not known to be positive"

    @staticmethod
    def rhs(x: Value, c: Value, floor: float, g: Value) -> Any:
        return RMSNormalization(x, g)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        n = int(rng.integers(2, 9))
        x = rng.normal(size=(2, 3, n)).astype(np.float32)
        c = rng.integers(0, 9, size=(2, 3, 1)).astype(np.float32)
        attrs = {"axis": -1, "epsilon": LEAST, "stash_type": 1}
        values = {"x": x, "c": c, "g": np.ones(n, np.float32), "floor": np.float32(0.5)}
        return Example(values, {"RMSNormalization": attrs}, ("x", "c"))


L2_RULES: tuple[type[Rule], ...] = (FuseL2Normalization, LpToRMSNormalization, L2OfQuotient)
