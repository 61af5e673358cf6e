"""Runs a plan on streams: staging through page-locked memory, one recorded launch, results when they are asked for.

Nothing is allocated and the host waits for nothing while a run is enqueued, except that a staging slot still in use is
waited for: `SLOTS` runs from host memory can be under way, and the next one waits for the oldest.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import ref

import numpy as np

from qir.types import Array

from .device.interface import Event, HostMemory, Recording, Tensor
from .pending import Pending
from .planner.placement import Placement, Storage
from .planner.plan import Plan

SLOTS = 2
"""Staging buffers: while one batch computes, the next is on its way."""

RECORDINGS = 4
"""Graphs kept of one runner: its own buffers, and the callers' tensors that came back."""

PATIENCE = 4 * RECORDINGS
"""Runs on callers' tensors that a graph is kept unused. Tensors that come round in turn, more of them than graphs are
kept, are copied: recording for each as its turn comes would cost milliseconds and a wait every run."""

EVENTS = 8
"""Ends of the last runs. One that is recorded again tells an earlier run's end late, never early."""

DIRECT_ALIGNMENT = 16
"""Bytes: what the kernels need of a caller's tensor to work on it in place."""


class Slot:
    """Page-locked memory for the inputs and outputs of one run on the host's side, and the event of its end."""

    def __init__(self, plan: Plan, done: Event) -> None:
        self.done = done
        self.user: ref[Pending] | None = None
        self.memory: dict[str, HostMemory] = {}
        self._views: dict[str, Array] = {}
        for v in plan.graph.inputs:
            self._add(f"in:{v.name}", plan.placements[v], plan)
        for v, p in plan.results.items():
            self._add(f"out:{v.name}", p, plan)

    def _add(self, key: str, p: Placement, plan: Plan) -> None:
        memory = plan.device.pinned(nbytes(p))
        self.memory[key] = memory
        self._views[key] = memory.array.view(p.dtype).reshape(p.shape)

    def view(self, key: str) -> Array:
        """The staging buffer as the tensor that it holds."""
        return self._views[key]

    def settle(self) -> None:
        """Make it free: what it holds goes to whoever still wants it."""
        user = self.user() if self.user else None
        if user is not None:
            user.result()
        elif not self.done.done:
            self.done.wait()
        self.user = None


def nbytes(p: Placement) -> int:
    return int(np.prod(p.shape)) * p.dtype.itemsize


class Runner:
    """A plan with memory of its own.  Runs on several streams are put in order on the device; threads may share it.

    Raises BackendError when the device has no room for the plan's arena.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.device = plan, plan.device
        self.arena = self.device.allocate(plan.arena_size, plan.needs)
        self.launches = plan.build(self.arena.pointer)
        self._addresses = {s: self.arena.pointer + at for s, at in plan.offsets.items()}
        self._recordings: OrderedDict[tuple[int, ...], Recording] = OrderedDict()
        self._used: dict[tuple[int, ...], int] = {}  # when each was launched last, in runs on callers' tensors
        self._clock = 0
        self._own = self.device.record(self.launches)
        self._seen: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._lock = threading.Lock()
        self._slots: list[Slot] = []
        self._turn = 0
        self._last = self.device.event()
        self._events = [self.device.event() for _ in range(EVENTS)]
        self._held: list[object] = [None] * EVENTS
        self.stream: Any = None
        self._movable = self._find_movable()

    def _find_movable(self) -> dict[Storage, None]:
        """Storages that can be a caller's tensor: exactly one input or output, whole, and nothing else."""
        places = [*(self.plan.placements[v] for v in self.plan.graph.inputs), *self.plan.results.values()]
        shared = [p.storage for p in places]
        return {
            p.storage: None
            for p in places
            if p.storage in self._addresses
            and shared.count(p.storage) == 1
            and p.contiguous
            and p.storage.size == nbytes(p)
        }

    def prepare(self) -> None:
        """Allocate what runs from host memory need, so that none of them does."""
        with self._lock:
            while len(self._slots) < SLOTS:
                self._slots.append(Slot(self.plan, self.device.event()))

    def drain(self) -> None:
        """Wait until nothing of this runner is under way."""
        self._last.wait()

    def __del__(self) -> None:
        if hasattr(self, "_last") and not sys.is_finalizing():  # its memory must not go to others while runs use it
            self._last.wait()

    @property
    def busy(self) -> bool:
        return not self._last.done

    def enqueue(
        self, feeds: Mapping[str, Array | Tensor], targets: Mapping[str, Array | Tensor | None], stream: Any
    ) -> Pending:
        """Start a run.

        feeds: by input name.  targets: where each output goes: a caller's array or tensor, or None for a new array.
        """
        staged = any(not isinstance(t, Tensor) for t in (*feeds.values(), *targets.values()))
        if staged:
            self.prepare()
        with self._lock:
            slot: Slot | None = None
            self._turn = (self._turn + 1) % EVENTS
            if staged:
                slot = self._slots[self._turn % SLOTS]
                slot.settle()
            if self.stream is not None and self.stream != stream:
                self._last.hold(stream)
            self.stream = stream
            recording, moved = self._recording(feeds, targets)
            for value in self.plan.graph.inputs:
                place = self.plan.placements[value]
                if place.storage not in moved:
                    self._send(feeds[value.name], place, value.name, slot, stream)
            recording.launch(stream)
            self._hold((feeds, targets), stream)
            pending = Pending((feeds, targets, slot), slot.done if slot else self._events[self._turn])
            for value, place in self.plan.results.items():
                self._fetch(pending, targets[value.name], place, value.name, slot, stream, place.storage in moved)
            self._last.record(stream)
            self._events[self._turn].record(stream)
            if slot is not None:
                slot.done.record(stream)
                slot.user = ref(pending)
        return pending

    def _hold(self, tensors: object, stream: Any) -> None:
        """Keep the caller's tensors for some runs.

        Memory of CuPy's current stream goes to others in the order of that stream; for another one, the run must be
        over before it may go.
        """
        end = self._events[self._turn]
        if self._held[self._turn] is not None and stream != self.device.stream() and not end.done:
            end.wait()
        self._held[self._turn] = tensors

    def _address(self, place: Placement) -> int:
        base = self._addresses.get(place.storage, place.storage.pointer)
        return base + place.offset * place.dtype.itemsize

    def _send(self, feed: Array | Tensor, place: Placement, name: str, slot: Slot | None, stream: Any) -> None:
        size = nbytes(place)
        if isinstance(feed, Tensor):
            self.device.copy(self._address(place), feed.pointer, size, stream)
        elif feed.flags.c_contiguous and self.device.is_pinned(feed):
            self.device.copy(self._address(place), feed.ctypes.data, size, stream)
        else:
            assert slot is not None
            np.copyto(slot.view(f"in:{name}"), feed)
            self.device.copy(self._address(place), slot.memory[f"in:{name}"].pointer, size, stream)

    def _fetch(
        self, pending: Pending, target: Array | Tensor | None, place: Placement, name: str, slot: Slot | None,
        stream: Any, direct: bool,
    ) -> None:  # fmt: skip
        size = nbytes(place)
        if isinstance(target, Tensor):
            if not direct:
                self.device.copy(target.pointer, self._address(place), size, stream)
            pending.give(name, target.owner)
        elif target is not None and target.flags.c_contiguous and self.device.is_pinned(target):
            self.device.copy(target.ctypes.data, self._address(place), size, stream)
            pending.give(name, target)
        else:
            assert slot is not None
            self.device.copy(slot.memory[f"out:{name}"].pointer, self._address(place), size, stream)
            pending.take(name, slot.view(f"out:{name}"), target)

    def _recording(
        self, feeds: Mapping[str, Array | Tensor], targets: Mapping[str, Array | Tensor | None]
    ) -> tuple[Recording, dict[Storage, int]]:
        """The graph to launch, and which storages are the caller's own tensors in it.

        The kernels read and write a caller's tensors directly when the same ones come a second time: a graph is
        recorded for their addresses.  Until then they are copied.
        """
        moved: dict[Storage, int] = {}
        sources = [(feeds[v.name], self.plan.placements[v]) for v in self.plan.graph.inputs]
        for tensor, place in sources:
            if isinstance(tensor, Tensor) and self._fits(tensor, place):
                moved[place.storage] = tensor.pointer
        for value, place in self.plan.results.items():
            target = targets[value.name]
            if not isinstance(target, Tensor) or not self._fits(target, place):
                continue
            if not any(isinstance(t, Tensor) and _overlap(t, target) for t, _ in sources):
                moved[place.storage] = target.pointer
        if not moved:
            return self._own, {}
        key = tuple(moved.get(s, 0) for s in self._movable)
        self._clock += 1
        if key in self._recordings:
            self._recordings.move_to_end(key)
            self._used[key] = self._clock
            return self._recordings[key], moved
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > 4 * RECORDINGS:
                self._seen.popitem(last=False)
            return self._own, {}
        if len(self._recordings) == RECORDINGS:
            oldest = next(iter(self._recordings))
            if self._clock - self._used[oldest] < PATIENCE:
                return self._own, {}
            self._last.wait()  # the graph that goes may still run
            del self._recordings[oldest], self._used[oldest]
        self._recordings[key] = self.device.record(self.plan.build(self.arena.pointer, moved))
        self._used[key] = self._clock
        return self._recordings[key], moved

    def _fits(self, tensor: Tensor, place: Placement) -> bool:
        return place.storage in self._movable and tensor.pointer % DIRECT_ALIGNMENT == 0


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.pointer < b.pointer + b.nbytes and b.pointer < a.pointer + a.nbytes
