"""Nodes of other tools' quantized models, as the standard operators that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..adapters import Raw, Scope
from ..structure import STANDARD
from . import dynamic, packed, qonnx, qoperator

MICROSOFT = "com.microsoft"

Lower = Callable[[Scope, Raw], Iterable[Raw]]
"""Gives the nodes one after another: what is asked of the scope may concern those given before."""


def lowering_of(raw: Raw) -> Lower | None:
    """How a node becomes standard operators; None for what is one, or is unknown."""
    if raw.domain in qonnx.DOMAINS:
        return qonnx.lower_quant
    if raw.domain in STANDARD:
        return qoperator.STANDARD.get(raw.op) or dynamic.STANDARD.get(raw.op)
    if raw.domain == MICROSOFT:
        return qoperator.MICROSOFT.get(raw.op) or dynamic.MICROSOFT.get(raw.op) or packed.MICROSOFT.get(raw.op)
    return None
