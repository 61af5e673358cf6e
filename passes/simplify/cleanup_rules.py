"""Data movement that moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.rules import Example, Match, Rule, rule
from ..rewriting.terms import Cast, Dropout, Flatten, Identity, Reshape, Transpose


def random_tensor(rng: np.random.Generator, shape: Sequence[int]) -> Any:
    """Standard normal, float32."""
    return rng.normal(size=tuple(shape)).astype(np.float32)


class CleanupRule(Rule):
    """Base: exact, and not worth a near miss."""

    near = False
    shared_weights = True


@rule
class DropIdentity(CleanupRule):
    """identity(x) = x"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Identity(x)

    @staticmethod
    def rhs(x: Value) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": random_tensor(rng, (2, 3))})


@rule
class DropDropout(CleanupRule):
    """dropout(x) = x outside training"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Dropout(x)

    @staticmethod
    def lhs_ratio(x: Any, ratio: Any) -> Any:
        return Dropout(x, ratio)

    @staticmethod
    def lhs_mode(x: Any, ratio: Any, mode: Any) -> Any:
        return Dropout(x, ratio, mode)

    @staticmethod
    def guard(mode: Array | None) -> str | None:
        return "it is in training mode" if mode is not None and mode.any() else None

    @staticmethod
    def rhs(x: Value, ratio: Value | None, mode: Array | None) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        x = random_tensor(rng, (2, 3))
        return Example({"x": x, "ratio": np.asarray(0.3, np.float32), "mode": np.asarray(False)}, batch=())


@rule
class DropReshape(CleanupRule):
    """reshape(x, shape of x) = x"""

    @staticmethod
    def lhs(x: Any, shape: Any) -> Any:
        return Reshape(x, shape)

    @staticmethod
    def guard(x: Value, match: Match) -> str | None:
        return None if x.type == match.root.output.type else "the shape changes"

    @staticmethod
    def rhs(x: Value, shape: Array) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": random_tensor(rng, (2, 3, 4)), "shape": np.asarray([-1, 3, 4])})


@rule
class DropFlatten(CleanupRule):
    """flatten(x) = x for a matrix x"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Flatten(x, axis=1)

    @staticmethod
    def guard(x: Value) -> str | None:
        return None if x.type.rank == 2 else "x is no matrix"

    @staticmethod
    def rhs(x: Value) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": random_tensor(rng, (2, 3))})


@rule
class DropCast(CleanupRule):
    """cast(x) = x to x's own dtype"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Cast(x)

    @staticmethod
    def guard(x: Value, match: Match) -> str | None:
        return None if x.type == match.root.output.type else "the dtype changes"

    @staticmethod
    def rhs(x: Value) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": random_tensor(rng, (2, 3))}, {"Cast": {"to": "float32"}})


@rule
class ReshapeTwice(CleanupRule):
    """reshape(reshape(x, a), b) = reshape(flatten(x), b) = reshape(x, b), where b copies no size from its input"""

    @staticmethod
    def lhs(x: Any, a: Any, b: Any) -> Any:
        return Reshape(Reshape(x, a), b)

    @staticmethod
    def lhs_flatten(x: Any, b: Any) -> Any:
        return Reshape(Flatten(x), b)

    @staticmethod
    def guard(x: Value, b: Array, match: Match) -> str | None:
        sizes = x.shape, match.root.output.shape
        same_batch = bool(sizes[0] and sizes[1]) and sizes[0][0] == sizes[1][0] and not b[1:].__contains__(0)
        return None if 0 not in b or same_batch else "a size is copied from the tensor between"

    @staticmethod
    def rhs(x: Value, a: Array | None, b: Array) -> Any:
        return Reshape(x, b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        b = [[-1, 4, 3], [0, 12], [0, 2, -1]][int(rng.integers(0, 3))]
        return Example({"x": random_tensor(rng, (2, 3, 4)), "a": np.asarray([0, 6, 2]), "b": np.asarray(b)})


@rule
class TransposeTwice(CleanupRule):
    """transpose(transpose(x, p), q) = transpose(x, p[q])"""

    shared_nodes = True

    @staticmethod
    def lhs(x: Any) -> Any:
        return Transpose(Transpose(x))

    @staticmethod
    def rhs(x: Value, *, match: Match) -> Any:
        q, p = (order(n.attrs["perm"], x.type.rank) for n in match.nodes)
        both = [p[i] for i in q]
        return x if both == sorted(both) else Transpose(x, perm=both)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(
            {"x": random_tensor(rng, (2, 3, 4, 5))}, {"Transpose": {"perm": [int(p) for p in rng.permutation(4)]}}, ()
        )


@rule
class DropTranspose(CleanupRule):
    """transpose(x, identity) = x"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Transpose(x)

    @staticmethod
    def guard(x: Value, perm: list[int] | None) -> str | None:
        p = order(perm, x.type.rank)
        return None if p == sorted(p) else "it moves axes"

    @staticmethod
    def rhs(x: Value) -> Any:
        return x

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({"x": random_tensor(rng, (2, 3, 4))}, {"Transpose": {"perm": [0, 1, 2]}})


def order(perm: Sequence[int] | None, rank: int) -> list[int]:
    """A Transpose's permutation; absent means reversed."""
    return list(reversed(range(rank))) if perm is None else [int(p) for p in perm]


CLEANUP_RULES: tuple[type[Rule], ...] = (
    DropIdentity, DropDropout, DropReshape, DropFlatten, DropCast, ReshapeTwice, DropTranspose, TransposeTwice,
)  # fmt: skip
