"""A plan made executable: arena, program arrays, scratch; one for each choice of sizes and set of kept values."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.graph import Graph, Value
from qir.shapes import fixed
from qir.sizes import Sizes
from qir.types import Array

from ..compile.tensors import Buffer, View, assign_offsets
from .kernels.record import AT_PANEL, COUNTER_BYTES, GATE_BYTES
from .planner.builder import Builder
from .planner.encoder import encode_plan
from .planner.steps import SLOT_SHIFT, AnyStep, Number, PythonStep, Ref, Step

SLACK = 256


@dataclass(frozen=True)
class Timing:
    """Seconds that one step took."""

    step: AnyStep
    seconds: float


class Compiled:
    """Steps of one graph at given sizes of its symbols, ready to run.  Not reentrant: the session's lock guards it."""

    def __init__(
        self, graph: Graph, sizes: Sizes, keep: Iterable[Value], pool: Any, packed: dict[str, Any], native: bool
    ) -> None:
        self.graph, self.sizes, self.pool = fixed(graph, sizes, [v.name for v in keep]), sizes, pool
        graph, kept = self.graph, [self.graph.value(v.name) for v in keep]
        threads = pool.threads if native else 1
        builder = Builder(graph, sizes, kept, threads, packed, native)
        if native:
            from .operators.emitters import EMITTERS

            builder.build(EMITTERS)
        else:
            builder.build({})
        self.steps = builder.steps
        self.views = {v: builder.views[v] for v in (*graph.outputs, *kept) if v in builder.views}
        self.settled = [v for v in (*graph.outputs, *kept) if v.data is not None]
        self._place()
        self._encode()
        self._make_scratch(threads)

    # -- memory -------------------------------------------------------------------------------
    def _place(self) -> None:
        buffers: dict[Buffer, None] = {}
        for index, step in enumerate(self.steps):
            for view in (*step.reads, *step.writes):
                view.buffer.touch(index)
                buffers[view.buffer] = None
        for view in self.views.values():
            view.buffer.touch(len(self.steps))
            buffers[view.buffer] = None
        self.spaces = sorted({b.space for b in buffers if ":" in b.space})
        self.arena_bytes = assign_offsets(b for b in buffers if b.space == "arena")
        # aligned by hand: NumPy promises 16 bytes only
        self._arena_memory = np.zeros(self.arena_bytes + SLACK + 64, np.uint8)
        start = -self._arena_memory.ctypes.data % 64
        self.arena = self._arena_memory[start : start + self.arena_bytes + SLACK]
        self.slots = {"arena": 0, "constant": 1, **{s: i + 2 for i, s in enumerate(self.spaces)}}
        self.pointers = np.zeros(2 + len(self.spaces), np.int64)
        self.pointers[0] = self.arena.ctypes.data

    def _number(self, value: Number) -> int:
        if not isinstance(value, Ref):
            return int(value)
        buffer, slot = value.buffer, self.slots[value.buffer.space]
        if buffer.data is not None:
            self._constants.append(buffer.data)
            return slot << SLOT_SHIFT | (buffer.data.ctypes.data + value.offset)
        return slot << SLOT_SHIFT | (buffer.offset + value.offset)

    def _encode(self) -> None:
        """Numbers of the steps, and the runs of native steps and single Python steps, in order."""
        self._constants: list[Array] = []
        self.program, self.records = encode_plan(self.steps, self._number)
        self.segments: list[tuple[int, int]] = []
        for index, step in enumerate(self.steps):
            joins = self.segments and isinstance(step, Step) and isinstance(self.steps[index - 1], Step)
            if joins:
                self.segments[-1] = (self.segments[-1][0], index + 1)
            else:
                self.segments.append((index, index + 1))

    def _make_scratch(self, threads: int) -> None:
        """What threads write: registers, patches and panels of each, and counters behind the gate, which all share."""
        native = [s for s in self.steps if isinstance(s, Step)]
        self.panel_bytes = -(-max((s.panel_bytes for s in native), default=0) // 64) * 64
        patch = max((s.patch_bytes for s in native), default=0)
        self.scratch_bytes = -(-(AT_PANEL + self.panel_bytes + patch + SLACK) // 4096) * 4096 if native else 64
        self._scratch = np.zeros(self.scratch_bytes * threads + 64, np.uint8)
        base = self._scratch.ctypes.data
        self.scratch = [base + -base % 64 + i * self.scratch_bytes for i in range(threads)]
        self._counters = np.zeros(len(self.steps) * COUNTER_BYTES + GATE_BYTES + 64, np.uint8)
        start = -self._counters.ctypes.data % 64
        self.gate = self._counters.ctypes.data + start
        self._segment = self._counters[start + 8 : start + 24].view(np.int64)
        self._counts = self._counters[start + GATE_BYTES :]
        self.counters = self.gate + GATE_BYTES

    @property
    def memory_bytes(self) -> int:
        """Arena, scratch and program; weights are counted by the session."""
        return self._arena_memory.nbytes + self._scratch.nbytes + self.program.nbytes + self.records.nbytes

    def set_segment(self, first: int, last: int) -> None:
        """The steps [first, last) come next; the gate must be shut."""
        self._segment[:] = first, last

    # -- running ------------------------------------------------------------------------------
    def _memory(self, view: View, held: Mapping[str, Array]) -> Array:
        space = view.buffer.space
        if space == "arena":
            return self.arena[view.buffer.offset :]
        if space == "constant":
            assert view.buffer.data is not None
            return view.buffer.data
        return held[space]

    def array(self, view: View, held: Mapping[str, Array]) -> Array:
        return view.array(self._memory(view, held))

    def _python(self, step: PythonStep, held: Mapping[str, Array]) -> None:
        results = step.call([self.array(v, held) for v in step.reads])
        for view, result in zip(step.writes, results, strict=False):
            np.copyto(self.array(view, held), result, casting="unsafe")

    def run(self, feeds: Mapping[str, Array], timings: list[Timing] | None = None) -> dict[str, Array]:
        """All kept values and outputs by name; with `timings`, step by step."""
        held: dict[str, Array] = {}
        for value in self.graph.inputs:
            held[f"input:{value.name}"] = np.ascontiguousarray(feeds[value.name])
        results: dict[Value, Array] = {v: v.data for v in self.settled if v.data is not None}
        for value, view in self.views.items():
            if view.buffer.space == f"output:{value.name}":
                results[value] = held[view.buffer.space] = np.empty(view.logical_shape, view.dtype)
        for space in self.spaces:
            if space in held:
                self.pointers[self.slots[space]] = _address(held[space])
        self._counts.fill(0)  # not the gate: a helper that comes late may be looking through it
        segments = self.segments if timings is None else [(i, i + 1) for i in range(len(self.steps))]
        for first, last in segments:
            started = time.perf_counter()
            step = self.steps[first]
            if isinstance(step, PythonStep):
                try:
                    with np.errstate(all="ignore"):
                        self._python(step, held)
                except (ValueError, IndexError, TypeError, ArithmeticError) as error:
                    raise BackendError(f"failed while running: {error}", where=f"node {step.nodes[:1]}") from error
            else:
                self.pool.run(self, first, last)
            if timings is not None:
                timings.append(Timing(step, time.perf_counter() - started))
        for value, view in self.views.items():
            if value not in results:
                results[value] = np.array(self.array(view, held), order="C")
        return {v.name: a for v, a in results.items()}


def _address(array: Array) -> int:
    """Where an array's data are; unlike `array.ctypes.data`, without a reference cycle for the collector."""
    return array.__array_interface__["data"][0]
