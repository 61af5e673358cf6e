"""Where the time goes: each launch against the two ceilings of the device, and the layers' share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from qir.cost import macs
from qir.graph import Node

from .plan import Plan
from .runner import Runner


@dataclass(frozen=True)
class Row:
    """One launch. seconds: median; macs: multiply-accumulates of the nodes it serves; bytes: operands and result."""

    node: str
    kernel: str
    seconds: float
    macs: int
    bytes: int

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
    """Rows in the order of execution; `str` is a table, `json` for programs."""

    device: str
    batch: int
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.rows)

    def json(self) -> str:
        rows = [{**asdict(r), "tops": r.tops, "gbs": r.gbs} for r in self.rows]
        return json.dumps({"device": self.device, "batch": self.batch, "seconds": self.seconds, "rows": rows}, indent=1)

    def __str__(self) -> str:
        total = self.seconds or 1.0
        lines = [f"{self.device}, batch {self.batch}: {self.seconds * 1e6:.1f} us"]
        lines.append(f"{'node':<40} {'kernel':<48} {'us':>10} {'share':>7} {'TOP/s':>8} {'GB/s':>8}")
        for r in self.rows:
            lines.append(
                f"{r.node[-40:]:<40} {r.kernel[:48]:<48} {r.seconds * 1e6:>10.2f} {r.seconds / total:>7.1%} "
                f"{r.tops:>8.2f} {r.gbs:>8.1f}"
            )
        return "\n".join(lines)


def profile(runner: Runner, repeat: int = 20) -> Profile:
    """Times every launch of a plan by itself (caches warm, no overlap)."""
    plan = runner.plan
    runner.drain()
    seconds = plan.device.time(runner.launches, repeat)
    rows: list[Row] = []
    for launch, time in zip(runner.launches, seconds, strict=True):
        node = launch.head
        linear = launch.kernel.source.startswith("conv") and node.op != "qir.MatMulActivations"
        work = macs(node) * plan.batch if linear else 0
        rows.append(Row(node.name, launch.kernel.expression.removeprefix("qir::"), time, work, _bytes(plan, node)))
    return Profile(plan.device.name, plan.batch, tuple(rows))


def _bytes(plan: Plan, node: Node) -> int:
    """Bytes of a node's operands and results, each touched once."""
    total = 0
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if value.data is not None:
            total += value.data.nbytes
        elif value in plan.placements:
            total += plan.placements[value].storage.size
    return total
