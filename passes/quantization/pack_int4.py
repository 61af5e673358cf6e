"""PackInt4: weights that need four bits get them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from qir.graph import Graph, Stage, Value
from qir.ops import op_of
from qir.types import Array, DType

from ..manager import Pass
from ..report import PassReport


@dataclass(frozen=True)
class PackInt4(Pass):
    """8-bit weight constants that all fit four bits become INT4 or UINT4  [HAWQ-V3 III-F; docs/arithmetic.md 8].

    In the saved file ONNX INT4/UINT4 tensors hold two values a byte, low nibble first.  No value changes, so no bit of
    any result does.  Recipes with 4-bit weights make such constants themselves; this pass is for models that others
    quantized to few bits and stored in 8 (QONNX and QDQ files).

    least: weights of fewer elements stay as they are.
    """

    name: ClassVar[str] = "pack_int4"
    requires: ClassVar[Stage] = Stage.INTEGER
    ensures: ClassVar[Stage | None] = None

    least: int = 1

    def run(self, graph: Graph) -> PassReport:
        report = self.report()
        packed: dict[Value, Value] = {}
        for node in graph.nodes:
            index = op_of(node.op).weights
            if index is None:
                continue
            w = node.input(index)
            if w.data is None or w.dtype not in (DType.INT8, DType.UINT8) or w.data.size < max(self.least, 1):
                continue
            zeros = () if w.quant is None else w.quant.zero_point
            kind = four_bits(np.append(w.data.astype(np.int64), zeros))
            if kind is None:
                reason = f"weights {w.name!r} span {w.data.min()}..{w.data.max()}, zero points {sorted(set(zeros))}"
                report.missed("pack", node.name, reason)
                continue
            if w not in packed:
                quant = None if w.quant is None else replace(w.quant, dtype=kind)
                packed[w] = graph.add_constant(w.name, w.data.astype(kind.numpy), kind, quant)
            graph.set_input(node, index, packed[w])
            report.rewrote(f"pack to {kind}", node.name)
        for old, new in packed.items():
            if old.use_count == 0:
                name = old.name
                graph.remove_constant(old)
                graph.rename(new, name)
        return report


def four_bits(data: Array) -> DType | None:
    """The 4-bit dtype that holds all values, None where none does; signed where both do."""
    for kind in (DType.INT4, DType.UINT4):
        if data.min() >= kind.lo and data.max() <= kind.hi:
            return kind
    return None
