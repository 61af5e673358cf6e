"""Side by side timing: contenders take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from qir.errors import DataError
from qir.graph import Graph, Value
from qir.sizes import dim_at, sizes_of
from qir.types import Array

from ..session import Session


@dataclass(frozen=True)
class BenchRow:
    """One contender: median and best seconds of a run, and how many times faster the first contender is."""

    name: str
    batch: int
    median: float
    best: float
    ratio: float

    @property
    def per_sample(self) -> float:
        """Milliseconds for one sample."""
        return self.median * 1e3 / self.batch


def alternate(
    contenders: Mapping[str, Callable[[], object]], *, seconds: float = 3.0, rounds: int = 0, rest: float = 0.05
) -> dict[str, list[float]]:
    """Wall seconds of each call; each round calls every contender once, after one round to warm up.

    seconds: stop after this long (at least 5 rounds); rounds: exactly so many instead. rest: seconds of sleep, and one
    call that is not counted, before each that is: runtimes let their threads spin after a call, which would hold the
    cores that the next contender needs, and a cold cache is no contender's fault.
    """
    for run in contenders.values():
        run()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    done = 0
    while done < rounds if rounds else (done < 5 or time.perf_counter() - started < seconds):
        for name, run in contenders.items():
            time.sleep(rest)
            run()
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
        done += 1
    return samples


def rank(samples: Mapping[str, Sequence[float]], batch: int) -> list[BenchRow]:
    """Rows in the given order.  ratio: the median over rounds of contender / first."""
    first = next(iter(samples.values()))
    return [
        BenchRow(name, batch, median(s), min(s), median(b / a for a, b in zip(first, s, strict=True)))
        for name, s in samples.items()
    ]  # fmt: skip


def random_feeds(graph: Graph, batch: int, seed: int = 0) -> dict[str, Array]:
    """Arrays that fit the graph's inputs: normal floats, integers over the dtype's whole range, indices that exist.

    Open sizes but the batch are TYPICAL.
    """
    sizes = sizes_of(graph.symbols, batch)
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in graph.inputs:
        shape = tuple(dim_at(d, sizes) for d in value.shape)
        kind = value.dtype
        if kind.is_float:
            feeds[value.name] = rng.standard_normal(shape).astype(kind.numpy)
        elif kind.bits == 64:
            feeds[value.name] = rng.integers(0, _indices(value), shape, dtype=kind.numpy.name)
        elif kind.is_integer:
            feeds[value.name] = rng.integers(kind.lo, kind.hi, shape, endpoint=True, dtype=kind.numpy.name)
        else:
            raise DataError(f"no random values of {kind}", where=f"input {value.name!r}")
    return feeds


def _indices(value: Value) -> int:
    """How many indices there are for a tensor that is looked up with; two for others (masks)."""
    looked_up = [n.input(0).shape[n.attrs["axis"]] for n, i in value.uses() if n.op == "Gather" and i == 1]
    return min((d for d in looked_up if isinstance(d, int)), default=2)


def bench(
    graph: Graph,
    *,
    backend: str = "cpu",
    against: Sequence[str] = (),
    batch: int = 1,
    seconds: float = 3.0,
    threads: int = 0,
) -> list[BenchRow]:
    """The graph on `backend`, then on each backend of `against`, taking turns on the same random feeds.

    threads: for backends that take the option (0: their default).
    Raises BackendError as Session does; DataError for inputs without random values.
    """
    feeds = random_feeds(graph, batch)
    contenders: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys((backend, *against)):
        options = {"threads": threads} if threads and name in ("cpu", "onnxruntime") else {}
        session = Session(graph, backend=name, **options)
        contenders[name] = lambda session=session: session.run(feeds)
    return rank(alternate(contenders, seconds=seconds), batch)
