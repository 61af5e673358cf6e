"""Ranges: what calibration found, as an artefact of its own that is saved, edited and shared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qir.errors import ParseError, QuantizationError
from qir.files import from_json, read_text, write_text

FORMAT = "qir.ranges/1"

Interval = tuple[float, float]


@dataclass(frozen=True)
class TensorRange:
    """`seen`: the extremes observed.  `chosen`: bits -> the interval that a grid of so many bits should cover."""

    seen: Interval
    chosen: Mapping[int, Interval] = field(default_factory=dict[int, Interval])

    def at(self, bits: int) -> Interval:
        """The interval for a grid of `bits`: its own, or the extremes for wide grids, or the nearest one known."""
        if bits in self.chosen:
            return self.chosen[bits]
        if bits > 8 or not self.chosen:
            return self.seen
        return self.chosen[min(self.chosen, key=lambda b: abs(b - bits))]


class Ranges(Mapping[str, Interval]):
    """Tensor name -> (lo, hi) for 8 bits; `at(name, bits)` for other widths, `seen(name)` for the extremes.

    JSON: {"format", "method", "samples", "tensors": {name: {"seen": [lo, hi], "8": [lo, hi], ...}}}.
    """

    def __init__(self, tensors: Mapping[str, TensorRange], method: str = "minmax", samples: int = 0) -> None:
        self.tensors, self.method, self.samples = dict(tensors), method, samples
        for name, tensor in self.tensors.items():
            for lo, hi in (tensor.seen, *tensor.chosen.values()):
                if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
                    raise QuantizationError(f"range [{lo}, {hi}] is not an interval", where=f"tensor {name!r}")

    @staticmethod
    def of(intervals: Mapping[str, Interval], method: str = "given") -> Ranges:
        """Ranges from plain intervals."""
        return Ranges({k: TensorRange((float(lo), float(hi))) for k, (lo, hi) in intervals.items()}, method)

    def __getitem__(self, name: str) -> Interval:
        return self.tensors[name].at(8)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def at(self, name: str, bits: int) -> Interval:
        """The interval for a grid of `bits`.  Raises KeyError where the tensor was not observed."""
        return self.tensors[name].at(bits)

    def seen(self, name: str) -> Interval:
        """The extremes observed."""
        return self.tensors[name].seen

    def updated(self, intervals: Mapping[str, Interval]) -> Ranges:
        """A copy in which these tensors have these intervals, at every width."""
        fixed = {k: TensorRange((float(lo), float(hi))) for k, (lo, hi) in intervals.items()}
        return Ranges({**self.tensors, **fixed}, self.method, self.samples)

    def to_json(self) -> str:
        tensors: dict[str, Any] = {
            name: {"seen": list(t.seen), **{str(b): list(v) for b, v in sorted(t.chosen.items())}}
            for name, t in self.tensors.items()
        }
        head = {"format": FORMAT, "method": self.method, "samples": self.samples}
        return json.dumps({**head, "tensors": tensors}, indent=1)

    def save(self, path: str | Path) -> None:
        """Write the JSON file."""
        write_text(path, self.to_json() + "\n")

    @staticmethod
    def load(path: str | Path) -> Ranges:
        """Read a JSON file.  Raises ParseError when it is missing or not what `save` writes."""
        return Ranges.from_json(read_text(path), where=str(path))

    @staticmethod
    def from_json(text: str, where: str = "ranges") -> Ranges:
        """Parse what `to_json` wrote.  Raises ParseError."""
        return from_json(text, _ranges, "ranges file", where, "write one with Ranges.save")


def _ranges(raw: Any) -> Ranges:
    if raw["format"] != FORMAT:
        raise ParseError(f"format {raw['format']!r}, not {FORMAT!r}")
    tensors = {str(name): _tensor(entry) for name, entry in raw["tensors"].items()}
    return Ranges(tensors, str(raw["method"]), int(raw["samples"]))


def _tensor(entry: Mapping[str, Any]) -> TensorRange:
    pairs = {key: (float(v[0]), float(v[1])) for key, v in entry.items()}
    return TensorRange(pairs["seen"], {int(key): v for key, v in pairs.items() if key != "seen"})
