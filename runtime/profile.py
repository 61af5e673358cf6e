"""Where the time goes: one row a step of a plan, as a table for people and JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A step of a plan: a node of the graph with what is fused into it.

    op: what the step is; nodes: names of the graph's nodes that it executes, the one that gives it its name first.
    seconds: median; macs: multiply-accumulates; bytes: operands and result, each once.
    native: whether a compiled kernel does it; kernels: their names, where a step takes several; roofline: the least
    time that the device's ceilings allow, as a share of `seconds`, where they are known.
    """

    op: str
    nodes: tuple[str, ...]
    seconds: float
    macs: int
    bytes: int
    native: bool = True
    kernels: tuple[str, ...] = ()
    roofline: float | None = None

    @property
    def name(self) -> str:
        return self.nodes[0] if self.nodes else self.op

    @property
    def gmacs(self) -> float:
        """10^9 multiply-accumulates a second."""
        return self.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gbs(self) -> float:
        """10^9 bytes a second."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """Rows in the order of execution.

    ceilings: (10^12 8-bit operations, 10^9 bytes) a second of the device, where they are known; an operation is half a
    multiply-accumulate.
    """

    rows: tuple[Row, ...]
    device: str
    batch: int
    ceilings: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Sum of the rows, one after the other; a run may take less."""
        return sum(r.seconds for r in self.rows)

    def share(self, row: Row) -> float:
        """A row's part of the whole time."""
        return row.seconds / (self.seconds or 1.0)

    def by_op(self) -> dict[str, float]:
        """Seconds of each operator, largest first."""
        total: dict[str, float] = {}
        for row in self.rows:
            total[row.op] = total.get(row.op, 0.0) + row.seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    def to_json(self) -> str:
        rows: list[dict[str, Any]] = [
            {**asdict(r), "share": self.share(r), "gmacs": r.gmacs, "gbs": r.gbs} for r in self.rows
        ]
        head = {"device": self.device, "batch": self.batch, "ceilings": self.ceilings, "seconds": self.seconds}
        return json.dumps({**head, "by_op": self.by_op(), "rows": rows}, indent=1)

    def __str__(self) -> str:
        roof = "  roof" if self.ceilings else ""
        lines = [f"{'step':34} {'ms':>9} {'share':>6} {'MMAC':>9} {'GMAC/s':>8} {'kB':>8} {'GB/s':>7}{roof}  what"]
        for row in self.rows:
            what = " + ".join(row.kernels) or f"{row.op} + {max(len(row.nodes) - 1, 0)}"
            what += "" if row.native else " (NumPy)"
            roof = f" {row.roofline:5.1%}" if row.roofline is not None else ""
            lines.append(
                f"{row.name[-34:]:34} {row.seconds * 1e3:9.4f} {self.share(row):6.1%} {row.macs / 1e6:9.1f} "
                f"{row.gmacs:8.1f} {row.bytes / 1e3:8.0f} {row.gbs:7.1f}{roof}  {what}"
            )
        ops = ", ".join(f"{op} {s * 1e3:.2f} ms" for op, s in self.by_op().items())
        lines.append(f"total {self.seconds * 1e3:.3f} ms on {self.device}, batch {self.batch}: {ops}")
        if self.ceilings:
            lines.append(f"ceilings {self.ceilings[0]:.0f} TOP/s, {self.ceilings[1]:.0f} GB/s")
        return "\n".join(lines)
