"""Layer and RMS normalization spelled out in elementary operators, back into one operator each.

What of them were left as squares, means and roots would be quantized one by one, which ruins them: the mean of squares
spans the square of the input's range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..rewriting.rules import Example, Findings, FromGuard, Match, Rule, Within, rule
from ..rewriting.terms import (  # fmt: skip
    Add,
    Div,
    LayerNormalization,
    Mul,
    Pow,
    Reciprocal,
    ReduceMean,
    RMSNormalization,
    Sqrt,
    Sub,
)
from .l2_rules import CLAIM, L2_RULES, last_axes, on_last


def squares(x: Any) -> Iterator[Any]:
    """x^2, as exporters write it."""
    yield Pow(x, 2.0)
    yield Mul(x, x)


def quotients(x: Any, variance: Any) -> Iterator[Any]:
    """x / sqrt(variance), as exporters write it."""
    yield Div(x, Sqrt(variance))
    yield Mul(x, Reciprocal(Sqrt(variance)))
    yield Mul(x, Div(1.0, Sqrt(variance)))
    yield Mul(x, Pow(variance, -0.5))
    yield Div(x, Pow(variance, 0.5))
    yield Mul(x, Sqrt(Reciprocal(variance)))


SQUARES, QUOTIENTS = 2, 6
"""How many spellings there are of each."""


def spelled(count: int, make: Callable[[int], Callable[..., Any]]) -> Callable[[type[Rule]], type[Rule]]:
    """Class decorator: left-hand sides lhs_0, lhs_1 ... from `make(i)`."""

    def decorate(cls: type[Rule]) -> type[Rule]:
        for i in range(count):
            setattr(cls, f"lhs_{i}", staticmethod(make(i)))
        return cls

    return decorate


def nth(terms: Iterator[Any], index: int) -> Any:
    return list(terms)[index]


def _centred(i: int) -> Callable[..., Any]:
    def lhs(x: Any, axes: Any, again: Any, epsilon: Any) -> Any:
        d = Sub(x, ReduceMean(x, axes, keepdims=1))
        variance = Add(ReduceMean(nth(squares(d), i % SQUARES), again, keepdims=1), epsilon)
        return nth(quotients(d, variance), i // SQUARES)

    return lhs


def _uncentred(i: int) -> Callable[..., Any]:
    def lhs(x: Any, axes: Any, epsilon: Any) -> Any:
        mean = ReduceMean(nth(squares(x), i % SQUARES), axes, keepdims=1)
        return nth(quotients(x, Add(mean, epsilon)), i // SQUARES)

    return lhs


def _scaled_inverse(i: int) -> Callable[..., Any]:
    """Keras: x t + (beta - mean t), t = gamma / sqrt(variance + epsilon)."""

    def lhs(x: Any, axes: Any, again: Any, epsilon: Any, gamma: Any, beta: Any) -> Any:
        mean = ReduceMean(x, axes, keepdims=1)
        variance = Add(ReduceMean(nth(squares(Sub(x, mean)), i % SQUARES), again, keepdims=1), epsilon)
        t = Mul(Reciprocal(Sqrt(variance)), gamma)
        return Add(Mul(x, t), Sub(beta, Mul(mean, t)))

    return lhs


def rows_example(rng: np.random.Generator, *extra: str) -> Example:
    """x with an axis or two to normalize."""
    shape = (2, int(rng.integers(1, 5)), int(rng.integers(2, 9)))
    axes = [np.asarray(a, np.int64) for a in ([-1], [2], [1, 2], [1])][int(rng.integers(0, 4))]
    values: dict[str, Any] = {
        "x": rng.normal(size=shape).astype(np.float32), "axes": axes, "again": axes,
        "epsilon": np.float32(rng.choice([1e-12, 1e-5, 1e-2])),
    }  # fmt: skip
    return Example({k: v for k, v in values.items() if k in ("x", "axes", *extra)}, batch=("x",))


@rule
@spelled(SQUARES * QUOTIENTS, _centred)
class FuseLayerNormalization(Rule):
    """(x - mean) / sqrt(mean of (x - mean)^2 + epsilon) = layernorm(x)"""

    claim = CLAIM
    near = False
    shared_weights = True

    @staticmethod
    def guard(x: Value, axes: Array, again: Array) -> str | Findings:
        return last_axes(x, axes, again)

    @staticmethod
    def rhs(
        x: Value, axes: Array, again: Array, epsilon: float, perm: Annotated[Any, FromGuard],
        tail: Annotated[Any, FromGuard],
    ) -> Any:  # fmt: skip
        ones, zeros = np.ones(tail), np.zeros(tail)
        return on_last(
            x, perm, lambda v: LayerNormalization(v, ones, zeros, axis=-len(tail), epsilon=epsilon, stash_type=1)
        )

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return rows_example(rng, "again", "epsilon")


@rule
@spelled(SQUARES, _scaled_inverse)
class FuseKerasLayerNormalization(Rule):
    """x t + (beta - mean t) = layernorm(x; gamma, beta), t = gamma / sqrt(variance + epsilon)"""

    claim = CLAIM
    near = False
    shared_weights = True

    @staticmethod
    def guard(x: Value, axes: Array, again: Array, gamma: Array, beta: Array) -> str | Findings:
        found = last_axes(x, axes, again)
        if isinstance(found, str):
            return found
        tail = found["tail"]
        if found["perm"] != list(range(x.type.rank)) or not all(fits(v, tail) for v in (gamma, beta)):
            return "gamma or beta does not lie along the last axes"
        return found

    @staticmethod
    def rhs(
        x: Value, axes: Array, again: Array, epsilon: float, gamma: Array, beta: Array,
        tail: Annotated[Any, FromGuard],
    ) -> Any:  # fmt: skip
        return LayerNormalization(
            x, along_tail(gamma, tail), along_tail(beta, tail), axis=-len(tail), epsilon=epsilon, stash_type=1
        )

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        n = int(rng.integers(2, 9))
        values = rows_example(rng, "again", "epsilon").values
        x = rng.normal(size=(2, 3, n)).astype(np.float32)
        pair = {k: rng.normal(size=n).astype(np.float32) for k in ("gamma", "beta")}
        last = np.asarray([-1], np.int64)
        return Example({**values, "x": x, "axes": last, "again": last, **pair}, batch=("x",))


@rule
@spelled(SQUARES * QUOTIENTS, _uncentred)
class FuseRMSNormalization(Rule):
    """x / sqrt(mean of x^2 + epsilon) = rmsnorm(x)"""

    claim = CLAIM
    near = False
    shared_weights = True

    @staticmethod
    def guard(x: Value, axes: Array) -> str | Findings:
        return last_axes(x, axes)

    @staticmethod
    def rhs(
        x: Value, axes: Array, epsilon: float, perm: Annotated[Any, FromGuard], tail: Annotated[Any, FromGuard]
    ) -> Any:
        ones = np.ones(tail)
        return on_last(
            x, perm, lambda v: RMSNormalization(v, ones, axis=-len(tail), epsilon=epsilon, stash_type=1)
        )  # fmt: skip

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return rows_example(rng, "epsilon")


def fits(constant: Array, tail: Sequence[int]) -> bool:
    """Whether a constant lies along the last axes only, and makes nothing larger."""
    own = constant.shape
    lead = own[: max(len(own) - len(tail), 0)]
    rest = own[len(lead) :]
    return all(d == 1 for d in lead) and all(d in (1, t) for d, t in zip(rest[::-1], tail[::-1], strict=False))


def along_tail(constant: Array, tail: Sequence[int]) -> Array:
    """The constant, of the normalized sizes."""
    own = constant.shape[max(constant.ndim - len(tail), 0) :]
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(own), tuple(tail)))


def parameters(scale: Array, constant: Array, match: Match) -> str | Findings:
    """The sizes that a normalization's scale has, where another constant lies along them too."""
    node = next(n for n in match.nodes if n.op in ("LayerNormalization", "RMSNormalization"))
    shape = node.input(0).shape[node.attrs["axis"] % node.input(0).type.rank :]
    tail = [int(d) for d in shape if isinstance(d, int)]
    if len(tail) != len(shape) or not fits(constant, tail):
        return "the constant does not lie along the normalized axes"
    return {"tail": tail}


def affine_example(rng: np.random.Generator, op: str, *names: str) -> Example:
    n = int(rng.integers(2, 9))
    values = {k: rng.normal(size=[(n,), (1,), (1, 1, n)][int(rng.integers(0, 3))]) for k in ("c",)}
    values |= {k: rng.normal(size=n) for k in names}
    x = rng.normal(size=(2, 3, n))
    attrs: dict[str, Any] = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
    return Example({"x": x.astype(np.float32), **{k: v.astype(np.float32) for k, v in values.items()}}, {op: attrs})


@rule
class MulAfterLayerNormalization(Rule):
    """layernorm(x; g, b) c = layernorm(x; g c, b c)"""

    claim = Within(ulps=64)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, g: Any, b: Any, c: Any) -> Any:
        return Mul(LayerNormalization(x, g, b), c)

    @staticmethod
    def guard(g: Array, c: Array, match: Match) -> str | Findings:
        return parameters(g, c, match)

    @staticmethod
    def rhs(x: Value, g: Array, b: Array | None, c: Array, tail: Annotated[Any, FromGuard]) -> Any:
        factor = along_tail(c, tail)
        bias = np.zeros(tail) if b is None else along_tail(b, tail) * factor
        return LayerNormalization(x, along_tail(g, tail) * factor, bias)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return affine_example(rng, "LayerNormalization", "g", "b")


@rule
class AddAfterLayerNormalization(Rule):
    """layernorm(x; g, b) + c = layernorm(x; g, b + c)"""

    claim = Within(ulps=256)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, g: Any, b: Any, c: Any) -> Any:
        return Add(LayerNormalization(x, g, b), c)

    @staticmethod
    def guard(g: Array, c: Array, match: Match) -> str | Findings:
        return parameters(g, c, match)

    @staticmethod
    def rhs(x: Value, g: Array, b: Array | None, c: Array, tail: Annotated[Any, FromGuard]) -> Any:
        bias = along_tail(c, tail) + (0 if b is None else along_tail(b, tail))
        return LayerNormalization(x, along_tail(g, tail), bias)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return affine_example(rng, "LayerNormalization", "g", "b")


@rule
class MulAfterRMSNormalization(Rule):
    """rmsnorm(x; g) c = rmsnorm(x; g c)"""

    claim = Within(ulps=64)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, g: Any, c: Any) -> Any:
        return Mul(RMSNormalization(x, g), c)

    @staticmethod
    def guard(g: Array, c: Array, match: Match) -> str | Findings:
        return parameters(g, c, match)

    @staticmethod
    def rhs(x: Value, g: Array, c: Array, tail: Annotated[Any, FromGuard]) -> Any:
        return RMSNormalization(x, along_tail(g, tail) * along_tail(c, tail))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return affine_example(rng, "RMSNormalization", "g")


NORMALIZATION_RULES: tuple[type[Rule], ...] = (
    FuseLayerNormalization, FuseKerasLayerNormalization, FuseRMSNormalization, MulAfterLayerNormalization,
    AddAfterLayerNormalization, MulAfterRMSNormalization, *L2_RULES,
)  # fmt: skip
