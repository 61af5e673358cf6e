"""Times of a plan's steps as rows of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..profile import Row
from .compiled import Timing
from .planner.steps import Step


def summarize(samples: Sequence[Sequence[Timing]]) -> tuple[Row, ...]:
    """Medians over several runs of the same plan."""
    rows: list[Row] = []
    for column in zip(*samples, strict=True):
        step, seconds = column[0].step, median(s.seconds for s in column)
        moved = sum(v.size * v.dtype.itemsize for v in (*step.reads, *step.writes)) + step.weight_bytes
        rows.append(Row(step.op, tuple(step.nodes), seconds, step.macs, moved, native=isinstance(step, Step)))
    return tuple(rows)
