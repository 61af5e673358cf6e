"""The CPU backend: compiles a graph for the sizes that it meets, and runs the plans."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qir.errors import BackendError
from qir.graph import Graph, Value
from qir.sizes import BATCH, Sizes, sizes_of
from qir.types import Array

from ..backend import Backend, fed_sizes
from ..compile.cache import PlanCache
from ..profile import Profile
from .compiled import Compiled, Timing
from .profile import summarize

log = logging.getLogger(__name__)


def has_numba() -> bool:
    try:
        import numba  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return False
    return True


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Cpu(Backend):
    """Executes integer graphs with the reference's bits; graphs of other stages run on the reference operators.

    threads: 0 means all cores of the process.  native: False leaves out the compiled kernels (NumPy only), which is
    also what happens where numba is missing.  progress: called with a message when kernels are compiled for the
    first time on a machine.
    """

    name = "cpu"

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int = 0,
        native: bool | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.graph = graph
        self.native = has_numba() if native is None else native
        if self.native and not has_numba():
            raise BackendError("the compiled kernels need numba", hint="pip install qir[cpu]")
        self.threads = threads or cores()
        self._lock = threading.Lock()
        self._packed: dict[str, Any] = {}
        self._plans: PlanCache[tuple[tuple[tuple[str, int], ...], frozenset[str]], Compiled] = PlanCache()
        self._pool = self._make_pool(progress)

    def _make_pool(self, progress: Callable[[str], None] | None) -> Any:
        if not self.native:
            log.warning("numba is not installed: running on NumPy, many times slower")
            return _NoThreads()
        started = time.perf_counter()
        from .threads.thread_pool import ThreadPool
        from .threads.warmup import warm_up

        warm_up(progress or log.info)
        log.debug("kernels ready after %.2f s", time.perf_counter() - started)
        return ThreadPool(self.threads)

    # -- plans --------------------------------------------------------------------------------
    def plan(self, at: int | Sizes = 1, keep: Sequence[Value] = ()) -> Compiled:
        """The compiled plan for a batch size or for sizes of all symbols, with `keep` held in memory to the end."""
        sizes = sizes_of(self.graph.symbols, at)
        key = (tuple(sizes.items()), frozenset(v.name for v in keep))
        return self._plans.of(
            key, lambda: Compiled(self.graph, sizes, keep, self._pool, self._packed, self.native)
        )  # fmt: skip

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Arrays by name.  `outputs` may name intermediates: fusion then stops where one must exist."""
        wanted = list(self.graph.outputs) if outputs is None else [self.graph.value(n) for n in outputs]
        results: dict[Value, Array] = {}
        for value in wanted:
            if value.data is not None:
                results[value] = value.data
            elif value.producer is None:
                results[value] = feeds[value.name]
        own = set(self.graph.outputs)
        keep = [v for v in dict.fromkeys(wanted) if v not in results and v not in own]
        with self._lock:
            if any(v not in results for v in wanted):
                made = self.plan(fed_sizes(self.graph, feeds), keep).run(feeds)
                results.update({v: made[v.name] for v in wanted if v not in results})
        return {v.name: results[v] for v in wanted}

    def profile(self, feeds: Mapping[str, Array], *, repeat: int = 5) -> Profile:
        """Time, MACs and bytes of each step: the median of `repeat` runs, one step at a time."""
        with self._lock:
            sizes = fed_sizes(self.graph, feeds)
            plan = self.plan(sizes)
            plan.run(feeds)
            samples: list[list[Timing]] = []
            for _ in range(repeat):
                timings: list[Timing] = []
                plan.run(feeds, timings)
                samples.append(timings)
        return Profile(summarize(samples), f"cpu, {self.threads} threads", sizes.get(BATCH, 1))

    @property
    def memory_bytes(self) -> int:
        """Bytes held by plans and packed weights (the graph's own constants not counted)."""
        weights = sum(p.bytes for p in self._packed.values())
        return weights + sum(p.memory_bytes for p in self._plans.values())


class _NoThreads:
    threads = 1

    def run(self, plan: Any, first: int, last: int) -> None:
        raise AssertionError("a plan without native steps")
