"""Hooks for PassManager: dump the text before and after each pass, compare the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qir.errors import GraphError
from qir.graph import Graph
from qir.running import session
from qir.types import Array

from .manager import AfterHook, Pass
from .report import PassReport


def dump_text(folder: str | Path) -> AfterHook:
    """Writes `<number>.<pass>.txt`, the graph's text after each pass, and `0.input.txt`, into `folder`."""
    target = Path(folder)
    count = 0

    def hook(step: Pass, before: Graph, after: Graph, report: PassReport) -> None:
        nonlocal count
        target.mkdir(parents=True, exist_ok=True)
        if count == 0:
            (target / "0.input.txt").write_text(str(before), encoding="utf-8")
        count += 1
        (target / f"{count}.{step.name}.txt").write_text(str(after), encoding="utf-8")

    return hook


def compare_numerically(
    feeds: Mapping[str, Array], *, tolerance: float = 1e-3, backend: str = "onnxruntime"
) -> AfterHook:
    """Runs the graphs before and after each pass on `feeds` and notes the largest relative difference of each output.

    Raises GraphError where max|after - before| > tolerance * max|before| for an output of the same name.
    """

    def hook(step: Pass, before: Graph, after: Graph, report: PassReport) -> None:
        a, b = session(before, backend).run(dict(feeds)), session(after, backend).run(dict(feeds))
        for name in a.keys() & b.keys():
            x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
            if x.shape != y.shape:
                raise GraphError(f"output {name!r} became {y.shape}, was {x.shape}", where=f"pass {step.name}")
            difference = float(np.abs(x - y).max(initial=0) / max(np.abs(x).max(initial=0), 1e-30))
            report.note(f"output {name!r} differs by {difference:.2e} of its largest value")
            if difference > tolerance:
                raise GraphError(f"output {name!r} changed by {difference:.2e}", where=f"pass {step.name}")

    return hook
