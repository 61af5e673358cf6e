"""Standard and other operators that are sums of simpler ones: the nodes that they stand for."""

from __future__ import annotations

from ..adapters import Raw
from ..structure import STANDARD
from . import attention, contractions, fused, indexing, recurrent
from .steps import Decomposition

STANDARDS = {**attention.STANDARD, **contractions.STANDARD, **indexing.STANDARD, **recurrent.STANDARD}
DOMAINS: dict[str, dict[str, Decomposition]] = {
    **{
        domain: {**attention.STANDARD, **contractions.STANDARD, **indexing.STANDARD, **recurrent.STANDARD}
        for domain in STANDARD
    },
    "com.microsoft": {**attention.MICROSOFT, **contractions.MICROSOFT, **fused.MICROSOFT},
    "ai.onnx.ml": fused.LEARNED,
}


def decomposition_of(raw: Raw) -> Decomposition | None:
    """How a node becomes simpler standard ones; None where it stays what it is."""
    return DOMAINS.get(raw.domain, {}).get(raw.op)
