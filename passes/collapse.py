"""Whether a quantized network has collapsed: what is told of its tensors and outputs, and the sentences about it.

A network that collapses does so in one place: the first tensor, in the order of execution, below 10 dB, or one whose
values lie within 4 steps of its grid.  Noise only grows after that.  `quality` measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qir.graph import Graph

from .report import PassReport

LEAST_DB = 10.0
"""An output below has collapsed."""

LEAST_STEPS = 4.0
"""A tensor that uses less of its grid holds next to nothing."""


@dataclass(frozen=True)
class TensorQuality:
    """One tensor.  sqnr: dB.  steps: of its grid, that the middle 90 % of its values take up; None where there are too
    few values to tell.  reach: the largest value in sizes of all but one in a thousand."""

    name: str
    op: str
    sqnr: float
    steps: float | None
    reach: float


@dataclass(frozen=True)
class OutputQuality:
    """One output.  agreement: share of equal argmax.  column, column_sqnr: the noisiest column of a matrix."""

    name: str
    sqnr: float
    agreement: float | None = None
    column: int | None = None
    column_sqnr: float | None = None


@dataclass(frozen=True)
class Quality:
    """tensors: in the order of execution.  warnings: sentences about what has collapsed, and what would help."""

    samples: int
    outputs: tuple[OutputQuality, ...]
    tensors: tuple[TensorQuality, ...]
    warnings: tuple[str, ...]

    def line(self) -> str:
        """One line for people."""
        parts = [f"{o.name} {_db(o.sqnr)}{_agreement(o)}" for o in self.outputs[:4]]
        more = f" and {len(self.outputs) - 4} more" if len(self.outputs) > 4 else ""
        return f"on {self.samples} calibration samples: {', '.join(parts)}{more}"

    def report(self) -> PassReport:
        """The same beside the passes' reports."""
        notes = [self.line(), *(f"warning: {w}" for w in self.warnings)]
        return PassReport("quality", notes=notes, data=finite(asdict(self)))


def finite(data: Any) -> Any:
    """Infinities as None, which JSON has."""
    if isinstance(data, dict):
        return {k: finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [finite(v) for v in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _agreement(o: OutputQuality) -> str:
    return "" if o.agreement is None else f" (same argmax {100 * o.agreement:.1f} %)"


def _db(value: float) -> str:
    return "exact" if value == math.inf else f"{value:.1f} dB"


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite where there is no noise, or nothing at all."""
    if noise <= 1e-12 * signal or noise == 0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0 else -math.inf


def warnings(
    outputs: Sequence[OutputQuality], tensors: Sequence[TensorQuality], bounded: set[str], prepared: Graph
) -> Iterator[str]:
    """A sentence for each output, and each tensor, that has collapsed; the first place where it breaks, what helps."""
    narrow = [
        t for t in tensors
        if t.steps is not None and t.steps < LEAST_STEPS and not (t.name in bounded and t.sqnr >= LEAST_DB)
    ]  # fmt: skip
    lost = [o for o in outputs if o.sqnr < LEAST_DB]
    broken = next((t for t in tensors if t in narrow or t.sqnr < LEAST_DB), None)
    for o in lost:
        where = "" if broken is None else f"; it breaks at {_told(broken, prepared)}: {_advice(broken, prepared)}"
        yield f"output {o.name!r} has {_db(o.sqnr)} on the calibration data{where}"
    for t in narrow[:MOST_NAMED]:
        if not (lost and t is broken):
            few = f"lie within {t.steps:.1f} steps of its grid"
            yield f"most values of {_told(t, prepared)} {few}: {_advice(t, prepared)}"
    if len(narrow) > MOST_NAMED:
        yield f"and {len(narrow) - MOST_NAMED} more tensors use next to nothing of their grids"


MOST_NAMED = 5


def _told(t: TensorQuality, prepared: Graph) -> str:
    value = prepared.value(t.name)
    if value.producer is None:
        return f"input {t.name!r} ({_db(t.sqnr)})"
    return f"{t.name!r} (made by {value.producer.op}, {_db(t.sqnr)})"


def _advice(t: TensorQuality, prepared: Graph) -> str:
    """What would help, from what is known of the tensor."""
    if t.reach > OUTLYING:
        return (
            f"its largest value is {t.reach:.0f} times what all but one in a thousand reach; method='percentile', or "
            "clip it in the data"
        )
    if t.steps is not None and t.steps < LEAST_STEPS:
        what = "standardize its features" if prepared.value(t.name).producer is None else "equalize='activations'"
        return f"its channels are in different units; {what}"
    return "`qir diagnose` tries what helps"


OUTLYING = 20.0
"""So far beyond the others, one element decides the grid."""
