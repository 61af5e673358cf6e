"""The backend `cuda` of `runtime.Session`: plans by sizes, constants shared between them, runs on any stream."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import BackendError, DataError
from qir.graph import Graph, Stage
from qir.shapes import fixed
from qir.sizes import Sizes, sizes_of
from qir.types import Array

from ..backend import Backend, fed_sizes
from ..compile.cache import MOST_PLANS, PlanCache
from ..interchange import host_array, on_gpu
from ..profile import Profile
from .compiler import compile_plan
from .device.interface import Device, Tensor
from .pending import Pending
from .planner.constants import Constants
from .planner.plan import Plan
from .profile import profile
from .runner import Runner
from .tuning import TuningTable, switched_on
from .tuning import tune as tune_plan


class Cuda(Backend):
    """Executes an integer graph.

    device: a `CupyDevice` (default: GPU 0), or an `EmulatedDevice` where there is none.
    plans: how many plans, each with its CUDA graph and its arena, are kept; the one used longest ago goes first.
    lanes: how many runs of one batch size may be on the device at once, each with an arena of its own.
    tune: whether layer shapes that no table knows are timed when a batch size comes first, which takes seconds;
        default: on a GPU, unless QIR_CUDA_TUNE=0.  What was measured is kept in the user's cache folder, or in the
        folder given instead of True.
    Raises BackendError for a graph that is not integer, no CuPy, no GPU, or one older than sm_75.
    """

    name = "cuda"
    takes_device_tensors = True

    def __init__(
        self, graph: Graph, device: Device | None = None, *, plans: int = MOST_PLANS, lanes: int = 1,
        tune: bool | str | Path | None = None,
    ) -> None:  # fmt: skip
        if graph.stage is not Stage.INTEGER:
            raise BackendError(
                f"the CUDA runtime executes integer graphs, this one is {graph.stage.name}",
                hint="run qir.quantize first",
            )
        if device is None:
            from .device.cupy_device import CupyDevice

            device = CupyDevice()
        self.graph = graph
        self.device: Device = device
        self._tune = device.tunes and switched_on() if tune is None else bool(tune)
        self.packed = Constants(device)
        self.table = TuningTable(device.name, Path(tune) if isinstance(tune, (str, Path)) else None)
        self._lanes = lanes
        self._runners: PlanCache[tuple[tuple[tuple[str, int], ...], tuple[str, ...]], list[Runner]] = PlanCache(plans)
        self._lock = threading.RLock()

    # -- running ------------------------------------------------------------------------------
    def run(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        stream: object = None,
        out: Mapping[str, Any] | None = None,
        where: str | None = None,
    ) -> dict[str, Any]:
        """Results by name; feeds are checked by Session.  Options as in `run_async`.

        Waits for results that go to the host, and for nothing else: those in device memory follow on the stream.
        """
        return self._enqueue(feeds, outputs, stream, out, where).enqueued()

    def run_async(
        self,
        feeds: Mapping[str, Any],
        outputs: Sequence[str] | None = None,
        *,
        stream: object = None,
        out: Mapping[str, Any] | None = None,
        where: str | None = None,
    ) -> Pending:
        """Start a run on a stream and return at once; `.result()` waits for it.

        feeds: NumPy arrays, CuPy arrays, or anything that speaks DLPack or `__cuda_array_interface__`.
        stream: a stream of CuPy or PyTorch, or a handle as an integer (default: CuPy's current one).
        out: arrays to write to, by output name, on the host or the device, row-major.
        where: "host" or "device", for outputs that `out` does not name; default: the device if an input is there.
        Raises DataError for tensors that do not fit, BackendError when the device is out of memory.
        """
        return self._enqueue(feeds, outputs, stream, out, where)

    def adopt(self, tensor: object, stream: object = None) -> Tensor:
        """A caller's device tensor as the kernels take it.  Raises DataError for one that lives elsewhere."""
        return self.device.adopt(tensor, self.device.stream(stream))

    def _enqueue(
        self, feeds: Mapping[str, Any], outputs: Sequence[str] | None, stream: object, out: Mapping[str, Any] | None,
        where: str | None,
    ) -> Pending:  # fmt: skip
        if where not in (None, "host", "device"):
            raise DataError(f'where is "host" or "device", not {where!r}')
        names = [v.name for v in self.graph.outputs] if outputs is None else list(outputs)
        on = self.device.stream(stream)
        ready: dict[str, Array | Tensor] = {}
        for name, feed in feeds.items():
            ready[name] = self.device.adopt(feed, on) if not isinstance(feed, Tensor) and on_gpu(feed) else feed
            if isinstance(ready[name], Tensor) and not ready[name].contiguous:  # type: ignore[union-attr]
                raise DataError("a device tensor with gaps or another order of axes", where=f"input {name!r}",
                                hint="make it contiguous")  # fmt: skip
        sizes = fed_sizes(self.graph, ready)
        device = where == "device" or (where is None and any(isinstance(f, Tensor) for f in ready.values()))
        with self._lock:
            runner = self.runner(sizes, names, on)
        return runner.enqueue(ready, self._targets(runner.plan, out or {}, device, on), on)

    def _targets(
        self, plan: Plan, out: Mapping[str, Any], device: bool, stream: Any
    ) -> dict[str, Array | Tensor | None]:
        targets: dict[str, Array | Tensor | None] = {}
        for name in out:
            if name not in {v.name for v in plan.results}:
                raise DataError("is no output of this run", where=f"out {name!r}")
        for value, place in plan.results.items():
            given = out.get(value.name)
            if given is None:
                empty = self.device.empty(place.shape, place.dtype, stream) if device else None
                targets[value.name] = None if empty is None else self.device.adopt(empty, stream)
                continue
            target = self.device.adopt(given, stream) if on_gpu(given) else host_array(given)
            if tuple(target.shape) != place.shape or target.dtype != place.dtype:
                raise DataError(
                    f"{place.dtype}{list(place.shape)} expected, {target.dtype}{list(target.shape)} given",
                    where=f"out {value.name!r}",
                )
            if isinstance(target, Tensor) and not target.contiguous:
                raise DataError("a device tensor with gaps or another order of axes", where=f"out {value.name!r}")
            if isinstance(target, np.ndarray) and not target.flags.writeable:
                raise DataError("cannot be written", where=f"out {value.name!r}")
            targets[value.name] = target
        return targets

    # -- plans --------------------------------------------------------------------------------
    def prepare(self, batch: int | Sizes, outputs: Sequence[str] | None = None) -> None:
        """Compile, allocate and record for a batch size (or sizes of all symbols) now, so that the first run does none
        of it."""
        names = [v.name for v in self.graph.outputs] if outputs is None else list(outputs)
        with self._lock:
            self.runner(batch, names, self.device.stream()).prepare()

    def profile(self, feeds: Mapping[str, Any], *, repeat: int = 20) -> Profile:
        """Time, operations and bytes of every launch at the sizes of the feeds: the median of `repeat` runs."""
        with self._lock:
            names = [v.name for v in self.graph.outputs]
            return profile(self.runner(fed_sizes(self.graph, feeds), names, self.device.stream()), repeat)

    def runner(self, at: int | Sizes, outputs: Sequence[str], stream: Any) -> Runner:
        """What runs a batch size (or sizes of all symbols) and a choice of outputs, compiled once; the stream's own
        lane if there is one."""
        sizes = sizes_of(self.graph.symbols, at)
        key = (tuple(sizes.items()), tuple(outputs))
        new = key not in self._runners
        lanes = self._runners.of(key, lambda: [Runner(self._compile(sizes, outputs))])
        own = lanes[:1] if new else [lane for lane in lanes if lane.stream == stream]
        if own:
            return own[0]
        if len(lanes) == self._lanes:
            return next((lane for lane in lanes if not lane.busy), lanes[0])
        lanes.append(Runner(lanes[0].plan))
        return lanes[-1]

    def _compile(self, sizes: Sizes, outputs: Sequence[str]) -> Plan:
        graph = fixed(self.graph, sizes, outputs)
        values = [graph.value(n) for n in outputs]
        # what only candidates need, such as weights packed for other tiles, goes with `trial`
        trial = Constants(self.device)
        if self._tune:
            tune_plan(lambda chooser: compile_plan(graph, self.device, sizes, values, trial, chooser), self.table)
        return compile_plan(graph, self.device, sizes, values, self.packed, self.table.choose)


__all__ = ["Cuda", "Pending"]
