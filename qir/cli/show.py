"""What the commands print: plain aligned text on stdout, progress on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qir.errors import escaped

T = TypeVar("T")


class Escaping(logging.Formatter):
    """Log lines that cannot steer a terminal, whatever names a model has."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record), lines=True)


_diverted = [False]


def to_stderr(diverted: bool = True) -> None:
    """From now on `say` speaks on stderr: a result goes to stdout."""
    _diverted[0] = diverted


def say(text: str = "") -> None:
    """Lines on stdout, at once: a pipe's reader sees them when it happens.  Control characters are shown, not sent."""
    out = sys.stderr if _diverted[0] else sys.stdout
    out.write(escaped(text, lines=True) + "\n")
    out.flush()


def say_json(data: Any) -> None:
    """JSON on stdout; infinities (an SQNR of equal tensors) as null, which every reader takes."""
    say(json.dumps(_finite(data), indent=1, ensure_ascii=True))


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if abs(data) < float("inf") else None
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    return [_finite(v) for v in data] if isinstance(data, list | tuple) else data


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str], right: str = "") -> str:
    """Aligned columns; `right` has a letter r for each column that is set flush right ("lrr")."""
    cells = [[escaped(str(c)) for c in row] for row in [heads, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    aligned = (right + "l" * len(heads))[: len(heads)]
    lines = [
        "  ".join(c.rjust(w) if a == "r" else c.ljust(w) for c, w, a in zip(row, widths, aligned, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def count(number: float) -> str:
    """Large counts for people: 1.82 G."""
    for unit in ("", " k", " M", " G"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.2f}{unit}"
        number /= 1000
    return f"{number:.2f} T"


def decibels(value: float) -> str:
    return "exact" if value == float("inf") else f"{value:.1f}"


@contextmanager
def bar(text: str) -> Generator[Callable[[int, int], None], None, None]:
    """A bar on stderr for work that counts itself: call with (done, total).  Nothing where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Shown(Generic[T]):
    """An iterable that shows a bar on stderr each time it is walked; nothing where stderr is no terminal."""

    def __init__(self, items: Iterable[T], text: str, total: int | None = None) -> None:
        self.items, self.text = items, text
        self.total = len(items) if total is None and hasattr(items, "__len__") else total  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("length unknown")
        return self.total

    def __iter__(self) -> Iterator[T]:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
            yield from progress.track(self.items, total=self.total, description=self.text)
