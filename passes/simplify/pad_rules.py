"""Padding that the window operator after it can do itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from qir.graph import Value
from qir.ops import op_of
from qir.ops.padding import pad_widths
from qir.ops.windows import resolve_pads
from qir.types import Array

from ..rewriting.rules import Example, Findings, FromGuard, Match, Rule, Within, rule
from ..rewriting.terms import AveragePool, Conv, MaxPool, Pad
from .cleanup_rules import random_tensor


def spatial_pads(pads: Array, axes: Array | None, rank: int) -> list[int] | None:
    """Begin and end padding of the spatial axes of a Pad, None where it pads batch or channels, or crops."""
    widths = pad_widths(rank, pads, axes)
    if any(a or b for a, b in widths[:2]) or any(a < 0 or b < 0 for a, b in widths):
        return None
    return [a for a, _ in widths[2:]] + [b for _, b in widths[2:]]


def pads_or_reason(x: Value, pads: Array, axes: Array | None, mode: str) -> list[int] | str:
    """What a Pad adds around the spatial axes, or why it cannot go into a window operator."""
    if mode != "constant":
        return f"the padding is {mode}"
    extra = spatial_pads(pads, axes, x.type.rank)
    return "it pads batch or channels, or crops" if extra is None else extra


def merged(match: Match, op: str, kernel: Sequence[int], extra: Sequence[int]) -> list[int]:
    """The window operator's own pads (auto_pad resolved) plus those of the Pad before it."""
    node = match.node(op)
    spatial = [int(d) for d in node.input(0).shape[2:]]
    attrs = {**node.attrs, "ceil_mode": 0}
    return [a + b for a, b in zip(resolve_pads(spatial, kernel, attrs)[0], extra, strict=True)]


def pad_example(rng: np.random.Generator, value: float = 0.0) -> dict[str, Any]:
    """x, pads, value of a Pad of two spatial axes."""
    widths = [int(p) for p in rng.integers(0, 2, size=4)]
    return {
        "x": random_tensor(rng, (2, 4, 6, 7)),
        "pads": np.asarray([0, 0, *widths[:2], 0, 0, *widths[2:]]),
        "value": np.asarray(value, np.float32),
        "axes": None,
    }


@rule
class PadIntoConv(Rule):
    """conv(pad(x, p, 0), w) = conv(x, w; pads + p)"""

    claim = Within(ulps=16)
    shared_weights = True

    @staticmethod
    def lhs(x: Any, pads: Any, value: Any, axes: Any, w: Any, b: Any) -> Any:
        return Conv(Pad(x, pads, value, axes), w, b)

    @staticmethod
    def guard(
        x: Value, pads: Array, value: Array | None, axes: Array | None, mode: str, match: Match
    ) -> str | Findings:
        if value is not None and value.any():
            return f"the padding is {float(value):g}, not zero"
        if any(isinstance(d, str) for d in match.node("Conv").input(0).shape[2:]):
            return "a spatial size is symbolic"
        extra = pads_or_reason(x, pads, axes, mode)
        return extra if isinstance(extra, str) else {"extra": extra}

    @staticmethod
    def rhs(
        x: Value,
        pads: Array,
        value: Array | None,
        axes: Array | None,
        w: Value,
        b: Value | None,
        extra: Annotated[list[int], FromGuard],
        *,
        match: Match,
    ) -> Any:
        kernel = [int(d) for d in w.shape[2:]]
        return Conv(x, w, b, auto_pad="NOTSET", pads=merged(match, "Conv", kernel, extra))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        k, auto = int(rng.integers(1, 4)), str(rng.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
        values = {**pad_example(rng), "w": random_tensor(rng, (5, 4, k, k)), "b": random_tensor(rng, (5,))}
        return Example(values, {"Conv": {"auto_pad": auto, "strides": [2, 1]}})


@rule
class PadIntoAveragePool(Rule):
    """averagepool(pad(x, p, 0)) = averagepool(x; pads + p, the border counted)"""

    claim = Within(ulps=8)

    @staticmethod
    def lhs(x: Any, pads: Any, value: Any, axes: Any) -> Any:
        return AveragePool(Pad(x, pads, value, axes))

    @staticmethod
    def guard(
        x: Value, pads: Array, value: Array | None, axes: Array | None, mode: str, match: Match
    ) -> str | Findings:
        pool = match.node("AveragePool").attrs
        if value is not None and value.any():
            return f"the padding is {float(value):g}, not zero"
        own = pool["auto_pad"] not in ("NOTSET", "VALID") or any(pool["pads"] or [])
        if own and not pool["count_include_pad"]:
            return "the pool pads too, and does not count its border"
        if pool["ceil_mode"]:
            return "the pool rounds its size up"
        extra = pads_or_reason(x, pads, axes, mode)
        if isinstance(extra, str):
            return extra
        if not fits_kernel(extra, pool["kernel_shape"]):
            return "the padding is as wide as the window"
        return {"extra": extra}

    @staticmethod
    def rhs(
        x: Value,
        pads: Array,
        value: Array | None,
        axes: Array | None,
        extra: Annotated[list[int], FromGuard],
        *,
        match: Match,
        kernel_shape: list[int],
    ) -> Any:
        both = merged(match, "AveragePool", kernel_shape, extra)
        return AveragePool(x, auto_pad="NOTSET", pads=both, count_include_pad=1)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        attrs = {"kernel_shape": [2, 3], "strides": [2, 1], "count_include_pad": int(rng.integers(0, 2))}
        return Example(pad_example(rng), {"AveragePool": attrs})


def fits_kernel(pads: Sequence[int], kernel: Sequence[int]) -> bool:
    """Whether no window lies in the padding alone."""
    return all(p < k for p, k in zip(pads, [*kernel, *kernel], strict=True))


@rule
class PadIntoMaxPool(Rule):
    """maxpool(pad(x, p, v)) = maxpool(x; pads + p) for v = -inf, or v = 0 where x is never negative"""

    @staticmethod
    def lhs(x: Any, pads: Any, value: Any, axes: Any) -> Any:
        return MaxPool(Pad(x, pads, value, axes))

    @staticmethod
    def guard(
        x: Value, pads: Array, value: Array | None, axes: Array | None, mode: str, match: Match
    ) -> str | Findings:
        pool = match.node("MaxPool").attrs
        fill = 0.0 if value is None else float(value)
        if fill > -3e38 and not (fill == 0.0 and never_negative(x)):
            return f"the padding is {fill:g}, which may be the largest in its window"
        if pool["ceil_mode"]:
            return "the pool rounds its size up"
        extra = pads_or_reason(x, pads, axes, mode)
        if isinstance(extra, str):
            return extra
        if not fits_kernel(extra, pool["kernel_shape"]):
            return "the padding is as wide as the window"
        return {"extra": extra}

    @staticmethod
    def rhs(
        x: Value,
        pads: Array,
        value: Array | None,
        axes: Array | None,
        extra: Annotated[list[int], FromGuard],
        *,
        match: Match,
        kernel_shape: list[int],
    ) -> Any:
        return MaxPool(x, auto_pad="NOTSET", pads=merged(match, "MaxPool", kernel_shape, extra))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example(pad_example(rng, -math.inf), {"MaxPool": {"kernel_shape": [2, 3], "strides": [2, 1]}})


def never_negative(x: Value) -> bool:
    """Whether x's producer gives no negative number."""
    node = x.producer
    return node is not None and op_of(node.op).never_negative(node)


PAD_RULES: tuple[type[Rule], ...] = (PadIntoConv, PadIntoAveragePool, PadIntoMaxPool)
