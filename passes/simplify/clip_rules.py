"""Minima, maxima and limits: Relu and Clip in all their spellings."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.graph import Value

from ..rewriting.rules import Example, Rule, rule
from ..rewriting.terms import Clip, Max, Min, Relu
from .activation_rules import OfX, signal

LARGE = 3e38
"""Exporters write "no limit" as the largest float32."""


@rule
class MinMaxToClip(OfX):
    """min(max(x, lo), hi) = clip(x, lo, hi), lo <= hi"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, lo: Any, hi: Any) -> Any:
        return Min(Max(x, lo), hi)

    @staticmethod
    def lhs_max_last(x: Any, lo: Any, hi: Any) -> Any:
        return Max(Min(x, hi), lo)

    @staticmethod
    def guard(x: Value, lo: float, hi: float) -> str | None:
        return None if lo <= hi and not x.is_constant else "the limits cross"

    @staticmethod
    def rhs(x: Value, lo: float, hi: float) -> Any:
        return Clip(x, np.float64(lo), np.float64(hi))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        lo, hi = sorted(rng.normal(scale=2, size=2).astype(np.float32))
        return Example({**signal(rng).values, "lo": lo, "hi": np.full((1,), hi)})


@rule
class MaxToRelu(OfX):
    """max(x, 0) = relu(x)"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any) -> Any:
        return Max(x, 0.0)

    @staticmethod
    def lhs_clip(x: Any) -> Any:
        return Clip(x, 0.0, None)

    @staticmethod
    def guard(x: Value) -> str | None:
        return None if x.dtype.is_float else "x is no float"

    @staticmethod
    def rhs(x: Value) -> Any:
        return Relu(x)


@rule
class UnlimitedClip(OfX):
    """clip(x, 0, 3.4e38) = relu(x)"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, hi: Any) -> Any:
        return Clip(x, 0.0, hi)

    @staticmethod
    def guard(x: Value, hi: float) -> str | None:
        return None if hi >= LARGE and x.dtype.is_float else "there is an upper limit"

    @staticmethod
    def rhs(x: Value, hi: float) -> Any:
        return Relu(x)

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        return Example({**signal(rng).values, "hi": np.finfo(np.float32).max})


@rule
class ClipOfRelu(OfX):
    """min(relu(x), hi) = clip(relu(x), lo, hi) = clip(x, max(lo, 0), hi)"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, lo: Any, hi: Any) -> Any:
        return Clip(Relu(x), lo, hi)

    @staticmethod
    def lhs_min(x: Any, hi: Any) -> Any:
        return Min(Relu(x), hi)

    @staticmethod
    def guard(lo: float | None, hi: float) -> str | None:
        return None if hi >= max(lo or 0.0, 0.0) else "the limits cross"

    @staticmethod
    def rhs(x: Value, lo: float | None, hi: float) -> Any:
        return Clip(x, np.float64(max(lo or 0.0, 0.0)), np.float64(hi))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        hi = np.float32(rng.uniform(0.5, 6))
        return Example({**signal(rng).values, "lo": np.float32(rng.uniform(-1, 0.5)), "hi": hi})


@rule
class ReluOfClip(OfX):
    """relu(clip(x, lo, hi)) = clip(x, max(lo, 0), hi), hi >= 0"""

    shared_weights = True

    @staticmethod
    def lhs(x: Any, lo: Any, hi: Any) -> Any:
        return Relu(Clip(x, lo, hi))

    @staticmethod
    def guard(hi: float) -> str | None:
        return None if hi >= 0 else "the upper limit is negative"

    @staticmethod
    def rhs(x: Value, lo: float | None, hi: float) -> Any:
        return Clip(x, np.float64(max(lo or 0.0, 0.0)), np.float64(hi))

    @staticmethod
    def example(rng: np.random.Generator) -> Example:
        lo, hi = np.float32(rng.normal()), np.float32(rng.uniform(0.8, 6))
        return Example({**signal(rng).values, "lo": min(lo, hi), "hi": hi})


@rule
class ReluTwice(OfX):
    """relu(relu(x)) = relu(x)"""

    @staticmethod
    def lhs(x: Any) -> Any:
        return Relu(Relu(x))

    @staticmethod
    def rhs(x: Value) -> Any:
        return Relu(x)


CLIP_RULES: tuple[type[Rule], ...] = (MinMaxToClip, MaxToRelu, UnlimitedClip, ClipOfRelu, ReluOfClip, ReluTwice)
