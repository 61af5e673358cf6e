"""Threads that help with a plan's native steps.

The caller's thread always runs the whole program; helpers join when they wake and leave when nothing is left, so a
busy machine or a slow wake-up costs speed and never correctness.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .interpreter import execute, open_gate


def _core_reader() -> Callable[[], int]:
    """What tells the core that the calling thread is on (-1 where the system does not say)."""
    try:
        return ctypes.PyDLL(None).sched_getcpu
    except (AttributeError, OSError, TypeError):
        return lambda: -1


current_core = _core_reader()


class ThreadPool:
    """`threads` threads in all, the caller's included; helpers are daemons that end with the pool."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._state = _State(threads - 1)
        for index in range(1, threads):
            threading.Thread(target=_help, args=(self._state, index), name=f"qir-{index}", daemon=True).start()
        weakref.finalize(self, _State.stop, self._state)

    def run(self, plan: Any, first: int, last: int) -> None:
        """Steps [first, last) of a compiled plan; returns when they are done and no helper is inside.

        One call at a time (the session's lock sees to that).
        """
        state = self._state
        plan.set_segment(first, last)
        try:
            open_gate(plan.gate)
            state.job = plan
            state.keep_off(current_core())
            state.wake_all()
        finally:
            # whatever interrupts: an open gate is closed only by this
            _work(plan, 0)
            state.job = None


class _State:
    def __init__(self, helpers: int) -> None:
        self.wake = [threading.Lock() for _ in range(helpers)]
        for wake in self.wake:
            wake.acquire()
        self.ids: set[int] = set()
        self.job: Any = None
        self.stopped = False
        self.cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
        self.avoided = -1

    def wake_all(self) -> None:
        """Every helper that waits goes on."""
        for wake in self.wake:
            if wake.locked():
                wake.release()

    def keep_off(self, core: int) -> None:
        """Helpers may run on all cores but the caller's.

        A thread that wakes goes ahead of the one that runs, and it may be woken on the caller's core: the caller
        would then stand still, until the kernel balances its queues some milliseconds later, beside an idle core.
        """
        others = self.cores - {core}
        if core == self.avoided or not others or core not in self.cores or len(self.ids) < len(self.wake):
            return
        self.avoided = core
        try:
            for thread in self.ids:
                os.sched_setaffinity(thread, others)
        except OSError:  # the process lost cores meanwhile, or a helper: leave them where they are
            self.cores = set()

    def stop(self) -> None:
        self.stopped = True
        self.wake_all()


def _work(plan: Any, thread: int) -> None:
    execute(
        plan.program, plan.records, plan.pointers, plan.counters, plan.gate, plan.scratch[thread], plan.panel_bytes,
        thread == 0,
    )  # fmt: skip


def _help(state: _State, thread: int) -> None:
    state.ids.add(threading.get_native_id())
    while True:
        state.wake[thread - 1].acquire()
        if state.stopped:
            return
        plan = state.job
        if plan is not None:
            _work(plan, thread)
        del plan
