"""A graph executed part by part over all batches: each node runs once a batch, however many stops there are.

What later parts need of earlier ones waits in files, so that memory holds one batch, not the calibration set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qir.errors import DataError
from qir.graph import Graph, Node, Value, ancestors
from qir.running import session
from qir.types import Array


class Stepper:
    """Stops in a graph, in topological order.

    graph: may change between stops in nodes that have not run.  folder: an empty directory for what waits.
    """

    def __init__(self, graph: Graph, folder: Path) -> None:
        self.graph, self.folder = graph, folder
        self.done: set[Node] = set()
        self.waiting: set[str] = {v.name for v in graph.inputs}
        self.count = 0
        self._numbers: dict[str, int] = {}  # value -> the number in its files' names

    def add(self, feeds: Mapping[str, Array]) -> None:
        """A further batch: its inputs go to files.  Before the first stop only.  Raises DataError where one lacks."""
        for name in self.waiting:
            if name not in feeds:
                raise DataError("is not among the data", where=f"input {name!r}", hint=f"given: {', '.join(feeds)}")
            self._write(name, self.count, feeds[name])
        self.count += 1

    def advance(self, wanted: Sequence[str]) -> Iterator[dict[str, Array]]:
        """The values `wanted` for each batch in turn; iterate to the end before the next call."""
        targets = [self.graph.value(name) for name in wanted]
        run = ancestors(targets) - self.done
        done = self.done | run
        live = {v.name for v in _boundary(self.graph, done)}
        need = {v.name for n in run for v in n.inputs if v is not None and v.name in self.waiting}
        need |= {name for name in wanted if name in self.waiting}
        made = {v.name for n in run for v in n.outputs}
        fetch = sorted((live | set(wanted)) & made)
        running = None
        if fetch:
            running = session(part(self.graph, sorted(need), fetch), backend="onnxruntime")
        for i in range(self.count):
            given = {name: self._read(name, i) for name in need}
            found = dict(given)
            if running is not None:
                feeds = {v.name: given[v.name] for v in running.graph.inputs}
                found |= running.run(feeds)
            for name in live & made:
                self._write(name, i, found[name])
            yield {name: found[name] for name in wanted}
        for name in self.waiting - live:
            for i in range(self.count):
                self._path(name, i).unlink()
        self.done, self.waiting = done, live

    def _path(self, name: str, index: int) -> Path:
        return self.folder / f"{self._numbers.setdefault(name, len(self._numbers))}.{index}.npy"

    def _write(self, name: str, index: int, array: Array) -> None:
        np.save(self._path(name, index), array)

    def _read(self, name: str, index: int) -> Array:
        return np.load(self._path(name, index))


def part(graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The nodes between some values and others, as a graph of its own with the same names."""
    new = graph.clone()
    new.set_outputs([new.value(name) for name in outputs])
    own = {v.name for v in new.inputs}
    for name in inputs:
        if name in own:
            continue
        old = new.value(name)
        start = new.add_input(new.fresh(f"{name}.start"), replace(old.type, quant=None))
        new.replace_uses(old, start, only=[n for n, _ in old.uses()])
        new.swap_names(old, start)
    new.prune()
    new.inputs[:] = [v for v in new.inputs if v.use_count]
    return new


def _boundary(graph: Graph, done: set[Node]) -> list[Value]:
    """Values made by `done` (or fed) that other nodes still read."""
    made = [*graph.inputs, *(v for n in graph.nodes if n in done for v in n.outputs)]
    return [v for v in made if any(user not in done for user, _ in v.uses())]
