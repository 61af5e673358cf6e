"""Where the time goes: one row a step, as a table for people and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from .planner.compiled import Timing


@dataclass(frozen=True)
class Row:
    """One step: its operator, the graph nodes that it executes, median seconds, work, bytes, share of the run."""

    op: str
    nodes: tuple[str, ...]
    native: bool
    seconds: float
    macs: int
    bytes: int
    share: float

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates a second."""
        return self.macs / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Rows in execution order."""

    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.rows)

    def by_op(self) -> dict[str, float]:
        """Seconds of each operator, largest first."""
        total: dict[str, float] = {}
        for row in self.rows:
            total[row.op] = total.get(row.op, 0.0) + row.seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def to_json(self) -> str:
        rows: list[dict[str, Any]] = [{**asdict(r), "gmacs": r.gmacs} for r in self.rows]
        return json.dumps({"seconds": self.seconds, "by_op": self.by_op(), "rows": rows}, indent=1)

    def __str__(self) -> str:
        lines = [f"{'step':34} {'ms':>8} {'share':>6} {'MMAC':>9} {'GMAC/s':>7} {'kB':>8}  fused"]
        for row in self.rows:
            name = row.nodes[0] if row.nodes else row.op
            mark = "" if row.native else " (NumPy)"
            lines.append(
                f"{name[:34]:34} {row.seconds * 1e3:8.3f} {row.share:6.1%} {row.macs / 1e6:9.1f} {row.gmacs:7.1f} "
                f"{row.bytes / 1e3:8.0f}  {row.op}{mark} + {max(len(row.nodes) - 1, 0)}"
            )
        ops = ", ".join(f"{op} {s * 1e3:.2f} ms" for op, s in self.by_op().items())
        return "\n".join([*lines, f"total {self.seconds * 1e3:.3f} ms: {ops}"])


def summarize(samples: Sequence[Sequence[Timing]]) -> Profile:
    """Medians over several runs of the same plan."""
    medians = [median(s.seconds for s in column) for column in zip(*samples, strict=True)]
    total = sum(medians) or 1.0
    rows: list[Row] = []
    for timing, seconds in zip(samples[0], medians, strict=True):
        step = timing.step
        moved = sum(v.size * v.dtype.itemsize for v in (*step.reads, *step.writes)) + step.weight_bytes
        native = hasattr(step, "fields")
        rows.append(Row(step.op, tuple(step.nodes), native, seconds, step.macs, moved, seconds / total))
    return Profile(tuple(rows))
