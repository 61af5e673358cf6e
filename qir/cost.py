"""What a network costs: multiply-accumulates, bit operations, parameters, bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .graph import Graph, Node, Value
from .ops import op_of
from .ops.base import elements


@dataclass(frozen=True)
class LayerCost:
    """One linear layer, for a batch of one (a fixed batch counts in full).

    macs:   multiply-accumulates.
    weight_bits, activation_bits: operand widths; 32 where the operand is float32.
    bops:   macs * weight_bits * activation_bits                                     [HAWQ-V3 section 4, BOPS]
    """

    node: str
    op: str
    output: str
    macs: int
    weights: int
    weight_bits: int
    activation_bits: int

    @property
    def bops(self) -> int:
        return self.macs * self.weight_bits * self.activation_bits


def width(value: Value) -> int:
    """Bits an operand is multiplied with: its own, or those in front of its DequantizeLinear."""
    producer = value.producer
    if producer is not None and producer.op == "DequantizeLinear":
        return producer.input(0).dtype.bits
    return value.dtype.bits


def source(value: Value) -> Value:
    """The constant behind a DequantizeLinear, or the value itself."""
    producer = value.producer
    return producer.input(0) if producer is not None and producer.op == "DequantizeLinear" else value


def macs(node: Node) -> int:
    """Multiply-accumulates of one linear node at batch one; 0 for any other operator."""
    return op_of(node.op).macs(node)


def layer_costs(graph: Graph) -> list[LayerCost]:
    """Every linear layer of a graph of any stage, in execution order."""
    result: list[LayerCost] = []
    for node in graph.nodes:
        if op_of(node.op).linear:
            x, w = node.input(0), node.input(1)
            weights = elements(w) if source(w).is_constant else 0
            result.append(
                LayerCost(node.name, node.op, node.output.name, macs(node), weights, width(w), width(x))
            )  # fmt: skip
    return result


def bytes_of(values: Iterable[Value]) -> int:
    """Bytes of constants as a file packs them (4-bit elements two to a byte)."""
    return sum(-(-elements(v) * v.dtype.bits // 8) for v in values)


def constants_by_dtype(graph: Graph) -> dict[str, tuple[int, int]]:
    """dtype -> (elements, bytes) of all constants, largest first."""
    groups: dict[str, list[Value]] = {}
    for value in graph.constants:
        groups.setdefault(str(value.dtype), []).append(value)
    table = {k: (sum(elements(v) for v in vs), bytes_of(vs)) for k, vs in groups.items()}
    return dict(sorted(table.items(), key=lambda item: -item[1][1]))
