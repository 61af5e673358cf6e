"""How passes run graphs without knowing an executor: they ask for a session, whoever stands above them provides it.

Calibration, rounding, sensitivity and diagnosis need values of graphs; what computes those is not their business.
`qir/__init__.py`, which stands above all packages, names `qir.runtime.Session`; `using` hands in another runner:

    with running.using(my_runner):
        ranges = passes.calibrate(graph, batches)
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Protocol

from .graph import Graph
from .types import Array


class RunningGraph(Protocol):
    """A graph ready to run."""

    graph: Graph

    def run(self, feeds: Mapping[str, Any], *, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The values called `outputs` (the graph's outputs by default).  Raises DataError on feeds that do not fit."""
        ...


class GraphRunner(Protocol):
    """Makes a graph ready to run; backend: one of the runner's, which `options` are for."""

    def __call__(self, graph: Graph, backend: str | None = None, **options: Any) -> RunningGraph: ...


_handed_in: ContextVar[GraphRunner | None] = ContextVar("runner", default=None)


def default_runner() -> GraphRunner:
    """The one that the package's top names in `RUNNER`, imported when it is first asked for."""
    module, _, name = str(import_module(__name__.partition(".")[0]).RUNNER).partition(":")
    return getattr(import_module(module), name)


@contextmanager
def using(runner: GraphRunner) -> Generator[None, None, None]:
    """Inside, passes run graphs with this runner (in this thread or task)."""
    token = _handed_in.set(runner)
    try:
        yield
    finally:
        _handed_in.reset(token)


def session(graph: Graph, backend: str | None = None, **options: Any) -> RunningGraph:
    """A graph ready to run.  Raises BackendError where the backend is not there or cannot run it."""
    runner = _handed_in.get() or default_runner()
    return runner(graph, backend, **options)
