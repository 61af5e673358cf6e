"""Where the time goes: each layer against the two ceilings of the device, and latency tables for mixed precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from qir.cost import macs
from qir.graph import Graph, Node, Value
from qir.types import DType

from .device import Launch
from .fusion import LINEAR, Group
from .runner import Runner

Bits = tuple[int, int]
"""(weight bits, activation bits)."""

MERGED = ("finish_splits",)
"""Kernels that come after those that do a layer's multiply-accumulates."""


@dataclass(frozen=True)
class Row:
    """A layer: a node with what is fused behind it, and its launches.

    seconds: median; macs: multiply-accumulates; bytes: operands and result, each once; roofline: the least time that
    the device's ceilings allow for them, as a share of `seconds`.
    """

    node: str
    kernels: tuple[str, ...]
    seconds: float
    macs: int
    bytes: int
    roofline: float

    @property
    def tops(self) -> float:
        """Achieved 10^12 operations (two a MAC) a second."""
        return 2 * self.macs / self.seconds / 1e12 if self.seconds else 0.0

    @property
    def gbs(self) -> float:
        """Achieved 10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Rows in the order of execution; `str` is a table, `to_json` for programs.

    ceilings: (10^12 8-bit operations, 10^9 bytes) a second of the device.
    """

    device: str
    batch: int
    ceilings: tuple[float, float]
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        """Sum of the layers, one after the other; a run may take less."""
        return sum(r.seconds for r in self.rows)

    def to_json(self) -> str:
        rows = [{**asdict(r), "tops": r.tops, "gbs": r.gbs} for r in self.rows]
        head = {"device": self.device, "batch": self.batch, "ceilings": self.ceilings, "seconds": self.seconds}
        return json.dumps({**head, "rows": rows}, indent=1)

    def __str__(self) -> str:
        total = self.seconds or 1.0
        lines = [
            f"{self.device}, batch {self.batch}: {self.seconds * 1e6:.1f} us in {len(self.rows)} layers; "
            f"ceilings {self.ceilings[0]:.0f} TOP/s, {self.ceilings[1]:.0f} GB/s",
            f"{'layer':<36} {'kernels':<44} {'us':>10} {'share':>6} {'TOP/s':>8} {'GB/s':>8} {'roof':>6}",
        ]
        for r in self.rows:
            lines.append(
                f"{r.node[-36:]:<36} {' + '.join(r.kernels)[:44]:<44} {r.seconds * 1e6:>10.2f} "
                f"{r.seconds / total:>6.1%} {r.tops:>8.2f} {r.gbs:>8.1f} {r.roofline:>6.1%}"
            )
        return "\n".join(lines)


def profile(runner: Runner, repeat: int = 20) -> Profile:
    """Times every launch of a plan by itself (caches warm, no overlap), and adds them up by layer."""
    plan = runner.plan
    runner.drain()
    launches: dict[Node, list[tuple[Launch, float]]] = {}
    for launch, seconds in zip(runner.launches, plan.device.time(runner.launches, repeat), strict=True):
        launches.setdefault(launch.head, []).append((launch, seconds))
    tops, gbs = plan.device.ceilings()
    rows: list[Row] = []
    for head, timed in launches.items():
        kernels = tuple(launch.kernel.expression.removeprefix("qir::") for launch, _ in timed)
        work = macs(head) * plan.batch if head.op in LINEAR or head.op == "qir.MatMulActivations" else 0
        moved = _bytes(runner, plan.groups[head])
        spent = sum(seconds for _, seconds in timed)
        least = max(2 * work / (tops * 1e12), moved / (gbs * 1e9))
        rows.append(Row(head.name, kernels, spent, work, moved, least / spent if spent else 0.0))
    return Profile(plan.device.name, plan.batch, (tops, gbs), tuple(rows))


def _bytes(runner: Runner, group: Group) -> int:
    """Bytes of what a group reads and of its results, each touched once; packed weights count as they are packed."""
    total = 0
    results = (*group.nodes[-1].outputs, *(group.second.outputs if group.second else ()))
    for value in dict.fromkeys((*group.inputs, *results)):
        if value.data is not None:
            bits = value.dtype.bits if value.dtype.is_integer else 8 * value.data.itemsize
            total += value.data.size * bits // 8
        elif value in runner.plan.placements:
            place = runner.plan.placements[value]
            total += int(np.prod(place.shape)) * place.dtype.itemsize
    return total


def with_weights_of(graph: Graph, bits: int) -> Graph:
    """A copy whose linear layers have weights of 4 or 8 bits, clipped: times do not depend on values, bits do."""
    copy = graph.clone()
    for node in copy.nodes:
        if node.op in LINEAR and node.attrs["weight_zero_point"] == 0:
            w = node.input(1)
            dtype = DType.INT4 if bits == 4 else DType.INT8
            if w.data is not None and w.dtype.bits != bits:
                data = np.clip(w.data.astype(np.int32), dtype.lo, dtype.hi).astype(np.int8)
                copy.set_input(node, 1, copy.add_constant(w.name, data, dtype))
    return copy


def latency_table(
    graph: Graph, measure: Callable[[Graph], Profile], layers: Graph | None = None
) -> dict[str, dict[Bits, float]]:
    """Seconds of each linear layer at (4, 4), (4, 8) and (8, 8) bits, as the mixed-precision search takes them.

    graph: integer, any bits.  measure: profiles an integer graph.  layers: the float graph that is searched, whose
    node names become the keys; default: the names of the tensors that the layers yield.  (4, 4) is given the time of
    (4, 8): activations of 4 bits take a byte each.  Where tensor cores multiply 4 bits (sm_75 to sm_89) a layer behind
    4-bit activations can take less; profile a graph that has them to see how much.
    """
    wanted = {n.output.name: n.name for n in layers.nodes} if layers is not None else {}
    table: dict[str, dict[Bits, float]] = {}
    for bits in (4, 8):
        variant = with_weights_of(graph, bits)
        tensors = {n.name: layer_of(n.output) for n in variant.nodes if n.op in LINEAR}
        for row in measure(variant).rows:
            if row.node in tensors:
                tensor = tensors[row.node]
                entry = table.setdefault(wanted.get(tensor, tensor), {})
                entry[bits, 8] = row.seconds
                if bits == 4:
                    entry[4, 4] = row.seconds
    return table


def layer_of(accumulator: Value) -> str:
    """The float tensor that a layer's accumulator stands for."""
    return accumulator.name.removesuffix(".acc").removesuffix(".q")
