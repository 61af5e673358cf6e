"""AdaRound: learn for each weight whether it is rounded down or up.                         [White Paper eq. 29-35]

    minimize over V   |f(W x + b) - f(W~ x_q + b)|^2 + lambda sum 1 - |2 h(V) - 1|^beta            [eq. 34, 35]
    W~ = s clamp(floor(W / s) + h(V), -n, n),   h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)           [eq. 33]

f is the activation after the layer.  beta falls from 20 to 2, so that h moves freely first and is 0 or 1 in the end.
The gradients are written out here: the problem is one matrix product.  Arrays may be NumPy's or CuPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qir.graph import Node
from qir.types import Array

from .error_feedback import Floats, Grid

GAMMA, ZETA = -0.1, 1.1
"""Ends of the stretched sigmoid."""

Activation = Callable[[Any, Any], tuple[Any, Any]]
"""(array module, x) -> (f(x), f'(x))."""


@dataclass(frozen=True)
class AdaRoundOptions:
    """iterations and columns a step of gradient descent (Adam); weight: lambda; rows: columns kept for a layer."""

    iterations: int = 1000
    batch: int = 256
    rate: float = 1e-2
    weight: float = 0.01
    warmup: float = 0.2
    beta: tuple[float, float] = (20.0, 2.0)
    rows: int = 4096
    seed: int = 0


@dataclass
class Samples:
    """Columns (G, P, K) of both inputs, about `rows` of them over all batches."""

    rows: int
    float_parts: list[Array] = field(default_factory=list[Array])
    quantized_parts: list[Array] = field(default_factory=list[Array])

    def add(self, x: Array, x_q: Array, batches: int, rng: np.random.Generator) -> None:
        """A share of one batch's columns."""
        share = -(-self.rows // batches)
        pick = rng.permutation(x.shape[1])[:share]
        self.float_parts.append(x[:, pick].astype(np.float32))
        self.quantized_parts.append(x_q[:, pick].astype(np.float32))

    def arrays(self) -> tuple[Array, Array]:
        """All of them."""
        return np.concatenate(self.float_parts, axis=1), np.concatenate(self.quantized_parts, axis=1)


@dataclass(frozen=True)
class Learned:
    """q: (G, M, K) integers.  error, nearest: mean squared error after f, of q and of rounding to nearest."""

    q: Floats
    error: float
    nearest: float


def identity(xp: Any, x: Any) -> tuple[Any, Any]:
    """No activation."""
    return x, xp.ones_like(x)


def clipped(lo: float, hi: float) -> Activation:
    """Relu, Relu6 and other limits."""

    def f(xp: Any, x: Any) -> tuple[Any, Any]:
        return xp.clip(x, lo, hi), ((x > lo) & (x < hi)).astype(x.dtype)

    return f


def activation_after(node: Node) -> Activation:
    """The Relu or Clip that alone reads a layer's output, else none."""
    uses = node.output.uses()
    user = uses[0][0] if len(uses) == 1 and not node.output.is_output else None
    if user is not None and user.op == "Relu":
        return clipped(0.0, np.inf)
    if user is not None and user.op == "Clip":
        ends = [user.optional(i) for i in (1, 2)]
        if all(v is None or (v.is_constant and v.array().size == 1) for v in ends):
            lo, hi = (None if v is None else float(v.array().reshape(())) for v in ends)
            return clipped(-np.inf if lo is None else lo, np.inf if hi is None else hi)
    return identity


def adaround(
    w: Array, grid: Grid, samples: Samples, bias: Array, f: Activation, options: AdaRoundOptions, xp: Any = np
) -> Learned:
    """Learn the rounding of w (G, M, K) on `grid`; bias (G, M).  Never worse than nearest on the samples."""
    x, x_q = (xp.asarray(a) for a in samples.arrays())
    weights = xp.asarray(w, dtype=xp.float32)
    scale = xp.asarray(grid.scale, dtype=xp.float32)[..., None]
    b = xp.asarray(bias, dtype=xp.float32)[:, None, :]
    target, _ = f(xp, xp.matmul(x, xp.swapaxes(weights, 1, 2)) + b)
    del x
    floor = xp.floor(weights / scale)
    start = xp.clip(weights / scale - floor, 0.01, 0.99)
    v = -xp.log((ZETA - GAMMA) / (start - GAMMA) - 1)
    m, s = xp.zeros_like(v), xp.zeros_like(v)
    rng = np.random.default_rng(options.seed)
    count, size = x_q.shape[1], min(options.batch, x_q.shape[1])
    warm = int(options.warmup * options.iterations)
    for i in range(options.iterations):
        pick = xp.asarray(rng.integers(0, count, size))
        part = x_q[:, pick]
        sig = 1 / (1 + xp.exp(-v))
        stretched = sig * (ZETA - GAMMA) + GAMMA
        h = xp.clip(stretched, 0, 1)
        open_ = (stretched > 0) & (stretched < 1)
        code = floor + h
        inside = (code >= -grid.top) & (code <= grid.top)
        soft = xp.clip(code, -grid.top, grid.top) * scale
        y, slope = f(xp, xp.matmul(part, xp.swapaxes(soft, 1, 2)) + b)
        d = 2 * (y - target[:, pick]) * slope / size
        grad = xp.matmul(xp.swapaxes(d, 1, 2), part) * scale * inside
        if i >= warm:
            t = (i - warm) / max(options.iterations - warm, 1)
            beta = options.beta[1] + (options.beta[0] - options.beta[1]) * max(0.0, 1 - t)
            far = 2 * h - 1
            grad = grad - options.weight * beta * 2 * xp.sign(far) * xp.abs(far) ** (beta - 1)
        grad = grad * open_ * (ZETA - GAMMA) * sig * (1 - sig)
        m = 0.9 * m + 0.1 * grad
        s = 0.999 * s + 0.001 * grad * grad
        step = options.rate * (m / (1 - 0.9 ** (i + 1))) / (xp.sqrt(s / (1 - 0.999 ** (i + 1))) + 1e-8)
        v = v - step
    h = xp.clip(1 / (1 + xp.exp(-v)) * (ZETA - GAMMA) + GAMMA, 0, 1)
    learned = xp.clip(floor + (h >= 0.5), -grid.top, grid.top)
    plain = xp.clip(xp.rint(weights / scale), -grid.top, grid.top)
    errors = [_error(xp, q * scale, x_q, target, b, f) for q in (learned, plain)]
    better = errors[0] <= errors[1]
    q = xp.where(better[..., None], learned, plain)
    back: Any = xp.asnumpy if hasattr(xp, "asnumpy") else np.asarray
    best = xp.where(better, errors[0], errors[1])
    return Learned(back(q).astype(np.float64), float(best.sum()), float(errors[1].sum()))


def _error(xp: Any, w: Any, x_q: Any, target: Any, b: Any, f: Activation) -> Any:
    """Mean squared error of each row, (G, M)."""
    y, _ = f(xp, xp.matmul(x_q, xp.swapaxes(w, 1, 2)) + b)
    return ((y - target) ** 2).mean(axis=1)
