"""Nodes that onnxruntime's optimizer fused, and functions of a few operators, as what they were made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..adapters import Raw, Scope
from .steps import Decomposition, Steps, Writer

ACTIVATIONS = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (), "Elu": ("alpha",), "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "ThresholdedRelu": ("alpha",), "Selu": ("alpha", "gamma"),
}  # fmt: skip
"""Activation -> the attributes that its parameters are."""


def _activated(w: Writer, x: str, kind: Any, parameters: Any, output: str) -> Steps:
    """x through an activation given by its name and parameters."""
    name = kind.decode() if isinstance(kind, bytes) else str(kind)
    given = [float(p) for p in parameters or ()]
    if name == "Clip" and len(given) == 2:
        yield w("Clip", x, w.real(given[0]), w.real(given[1]), output=output)
    elif name == "HardSwish" or (name in ACTIVATIONS and len(given) <= len(ACTIVATIONS[name])):
        attrs = dict(zip(ACTIVATIONS.get(name, ()), given, strict=False))
        yield w(name, x, output=output, **attrs)
    else:
        raise w.refuse(f"activation {name!r} with {len(given)} parameters is not supported")


def fused_conv(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft FusedConv: activation(Conv(x, w, b) + z)."""
    w = Writer(scope, raw)
    own = ("activation", "activation_params")
    attrs = {k: v for k, v in raw.attrs.items() if k not in own}
    yield w("Conv", *raw.inputs[:3], **attrs)
    if raw.input(3):
        yield w("Add", w.last, raw.input(3))
    if raw.attrs.get("activation"):
        yield from _activated(w, w.last, raw.attrs["activation"], raw.attrs.get("activation_params"), w.result)
    else:
        yield w("Identity", w.last, output=w.result)


def fused_gemm(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft FusedGemm: activation(Gemm(a, b, c))."""
    w = Writer(scope, raw)
    attrs = {k: v for k, v in raw.attrs.items() if not k.startswith("activation")}
    yield w("Gemm", *raw.inputs, **attrs)
    given = [raw.attrs[k] for k in ("activation_alpha", "activation_beta", "activation_gamma") if k in raw.attrs]
    kind = raw.attrs.get("activation")
    if kind:
        name = kind.decode() if isinstance(kind, bytes) else str(kind)
        yield from _activated(w, w.last, name, given[: len(ACTIVATIONS.get(name, given))], w.result)
    else:
        yield w("Identity", w.last, output=w.result)


def bias_gelu(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft BiasGelu and FastGelu: gelu(x + b), the latter by tanh."""
    w = Writer(scope, raw)
    x = w.need(0)
    if raw.input(1):
        yield w("Add", x, raw.input(1))
        x = w.last
    yield w("Gelu", x, approximate="tanh" if raw.op == "FastGelu" else "none", output=w.result)


def quick_gelu(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft QuickGelu: x sigmoid(alpha x)."""
    w = Writer(scope, raw)
    yield w("Swish", w.need(0), alpha=float(w.number("alpha", 1.702)), output=w.result)


def scaler(scope: Scope, raw: Raw) -> Steps:
    """ai.onnx.ml Scaler: (x - offset) scale, one number or one a feature (the last axis)."""
    w = Writer(scope, raw)
    yield w("Sub", w.need(0), w.constant(np.asarray(w.number("offset", [0.0]), np.float32)))
    yield w("Mul", w.last, w.constant(np.asarray(w.number("scale", [1.0]), np.float32)), output=w.result)


MICROSOFT: dict[str, Decomposition] = {
    "FusedConv": fused_conv, "FusedGemm": fused_gemm, "BiasGelu": bias_gelu, "FastGelu": bias_gelu,
    "Gelu": bias_gelu, "QuickGelu": quick_gelu,
}  # fmt: skip
LEARNED: dict[str, Decomposition] = {"Scaler": scaler}
