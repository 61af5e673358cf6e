"""Constant factors and offsets into the convolutions next to them.

y * s -> rows of w and b scaled        f(x * s) -> columns of w scaled
y + c -> b + c                         f(x + c) -> b + sum w c, where nothing is padded
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from qir.graph import Value
from qir.types import Array

from ..channel_math import along, plus, push_in, scale_in, scale_out, transposed_scale_out, unpadded
from ..rewriting.rules import Affine, Example, Findings, FromGuard, Match, Rule, Within, rule
from ..rewriting.terms import Add, Conv, ConvTranspose, Mul


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


@rule
class MulAfterConv(Affine):
    """(conv(x, w) + b) * c = conv(x, w * c) + b * c, c along the output channels"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(Conv(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array) -> str | Findings:
        s = along(c, w.ndim, 1, w.shape[0])
        return {"s": s} if s is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, s: Annotated[Array, FromGuard]) -> Any:
        return Conv(x, scale_out(w, s), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng))


@rule
class AddAfterConv(Affine):
    """conv(x, w) + b + c = conv(x, w) + (b + c), c along the output channels"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(Conv(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array) -> str | Findings:
        offset = along(c, w.ndim, 1, w.shape[0])
        return {"offset": offset} if offset is not None else "the offset varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, offset: Annotated[Array, FromGuard]) -> Any:
        return Conv(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng))


@rule
class MulBeforeConv(Affine):
    """conv(x * c, w) + b = conv(x, w * c) + b, c along the input channels; zero padding stays zero"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Conv(Mul(x, c), w, b)

    @staticmethod
    def guard(x: Value, w: Array, c: Array, group: int) -> str | Findings:
        s = along(c, w.ndim, 1, w.shape[1] * group)
        return {"s": s} if s is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, s: Annotated[Array, FromGuard], *, group: int) -> Any:
        return Conv(x, scale_in(w, s, group), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*conv_example(rng, channel="in"))


@rule
class AddBeforeConv(Affine):
    """conv(x + c, w) + b = conv(x, w) + (b + sum w c), c along the input channels, where the Conv pads nothing"""

    claim = Within(ulps=64)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Conv(Add(x, c), w, b)

    @staticmethod
    def guard(w: Array, c: Array, group: int, match: Match) -> str | Findings:
        offset = along(c, w.ndim, 1, w.shape[1] * group)
        if offset is None:
            return "the offset varies within a channel"
        return padding_reason(match) or {"offset": offset}

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, offset: Annotated[Array, FromGuard], *, group: int) -> Any:
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
class MulAfterConvTranspose(Affine):
    """(convT(x, w) + b) * c = convT(x, w * c) + b * c, c along the output channels"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Mul(ConvTranspose(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, group: int) -> str | Findings:
        s = along(c, w.ndim, 1, w.shape[1] * group)
        return {"s": s} if s is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, s: Annotated[Array, FromGuard], *, group: int) -> Any:
        return ConvTranspose(x, transposed_scale_out(w, s, group), None if b is None else b * s)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng))


@rule
class AddAfterConvTranspose(Affine):
    """convT(x, w) + b + c = convT(x, w) + (b + c), c along the output channels"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return Add(ConvTranspose(x, w, b), c)

    @staticmethod
    def guard(w: Array, c: Array, group: int) -> str | Findings:
        offset = along(c, w.ndim, 1, w.shape[1] * group)
        return {"offset": offset} if offset is not None else "the offset varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, offset: Annotated[Array, FromGuard], *, group: int) -> Any:
        return ConvTranspose(x, w, plus(b, offset))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng))


@rule
class MulBeforeConvTranspose(Affine):
    """convT(x * c, w) + b = convT(x, w * c) + b, c along the input channels"""

    claim = Within(ulps=32)

    @staticmethod
    def lhs(x: Any, w: Any, b: Any, c: Any) -> Any:
        return ConvTranspose(Mul(x, c), w, b)

    @staticmethod
    def guard(w: Array, c: Array) -> str | Findings:
        s = along(c, w.ndim, 1, w.shape[0])
        return {"s": s} if s is not None else "the factor varies within a channel"

    @staticmethod
    def rhs(x: Value, w: Array, b: Array | None, c: Array, s: Annotated[Array, FromGuard]) -> Any:
        return ConvTranspose(x, scale_out(w, s), b)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(*transposed_example(rng, "in"))


CONV_RULES: tuple[type[Rule], ...] = (
    MulAfterConv, AddAfterConv, MulBeforeConv, AddBeforeConv, MulAfterConvTranspose, AddAfterConvTranspose,
    MulBeforeConvTranspose,
)  # fmt: skip
