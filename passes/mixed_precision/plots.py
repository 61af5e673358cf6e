"""Pictures of a mixed-precision search (needs matplotlib: `pip install qir[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from qir.errors import BackendError, QuantizationError
from qir.files import aside

from .assign_bits import Assignment
from .search import SearchResult


def _figure(width: float, height: float) -> Any:
    """A figure that needs no display.  Raises BackendError where matplotlib is not installed."""
    try:
        figure = import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
        import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    except ImportError as error:
        raise BackendError("plots need matplotlib, which cannot be imported", hint="pip install qir[plot]") from error
    return figure


def _save(figure: Any, path: str | Path) -> None:
    """Raises QuantizationError where matplotlib cannot write such a file."""
    try:
        with aside(path) as part:
            figure.savefig(part, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
    except ValueError as error:
        raise QuantizationError(f"no plot: {error}", where=str(path), hint="end the name in .png or .svg") from None


def plot_layers(found: SearchResult, path: str | Path, cost: str = "bops") -> None:
    """Bits (bars), what 4 bits would disturb, and the share of the saving that 4 bits would bring  [HAWQ-V3 fig. 5]."""
    names = list(found.assignment.bits)
    figure = _figure(max(6.0, 0.3 * len(names)), 4)
    axes = figure.subplots()
    place = range(len(names))
    axes.bar(place, [found.assignment.bits[n][0] for n in names], color="tab:blue", alpha=0.6, label="weight bits")
    inputs = [found.assignment.bits[n][1] for n in names]
    axes.plot(place, inputs, color="tab:blue", linestyle="", marker="_", markersize=8, label="input bits")
    axes.set_ylabel("bits")
    axes.set_xticks(list(place), names, rotation=90, fontsize=6)
    gains: list[float] = []
    omegas: list[float] = []
    for name in names:
        choices = sorted(found.problem.layers[name], key=lambda c: c.costs[cost])
        gains.append(choices[-1].costs[cost] - choices[0].costs[cost])
        omegas.append(max(c.perturbation for c in choices) - min(c.perturbation for c in choices))
    right = axes.twinx()
    for values, label, color in (
        (gains, f"{cost} saved by the least bits", "black"),
        (omegas, "sensitivity", "tab:orange"),
    ):
        total = sum(values) or 1.0
        right.plot(place, [100 * v / total for v in values], color=color, marker=".", label=label)
    right.set_ylabel("share of the sum, %")
    figure.legend(loc="outside upper center", ncols=4, fontsize=7)
    _save(figure, path)


def plot_pareto(curve: Sequence[Assignment], cost: str, path: str | Path) -> None:
    """Perturbation over one cost."""
    figure = _figure(5, 4)
    axes = figure.subplots()
    axes.plot([a.costs[cost] for a in curve], [a.perturbation for a in curve], marker="o")
    axes.set_xlabel(cost)
    axes.set_ylabel("perturbation")
    axes.set_yscale("log")
    _save(figure, path)
