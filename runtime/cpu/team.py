"""Threads that help with a plan's native steps.

The caller's thread always runs the whole program; helpers join when they wake and leave when nothing is left, so a
busy machine or a slow wake-up costs speed and never correctness.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from .engine import execute


class Team:
    """`threads` threads in all, the caller's included; helpers are daemons that end with the team."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._state = _State()
        for index in range(1, threads):
            threading.Thread(target=_help, args=(self._state, index), name=f"qir-{index}", daemon=True).start()
        weakref.finalize(self, _State.stop, self._state, threads)

    def run(self, plan: Any, first: int, last: int) -> None:
        """Steps [first, last) of a compiled plan; returns when they are done and no helper is inside."""
        state = self._state
        with state.lock:
            state.job = (plan, first, last)
        for _ in range(self.threads - 1):
            state.wake.release()
        try:
            _work(plan, first, last, 0)
        finally:
            with state.lock:
                state.job = None
                while state.inside:
                    state.left.wait()


class _State:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = threading.Condition(self.lock)
        self.wake = threading.Semaphore(0)
        self.job: Any = None
        self.inside = 0
        self.stopped = False

    def stop(self, threads: int) -> None:
        self.stopped = True
        for _ in range(threads):
            self.wake.release()


def _work(plan: Any, first: int, last: int, thread: int) -> None:
    execute(plan.program, plan.tails, plan.pointers, plan.counters, plan.scratch[thread], plan.panel_bytes, first, last)


def _help(state: _State, thread: int) -> None:
    while True:
        state.wake.acquire()
        if state.stopped:
            return
        with state.lock:
            job = state.job
            if job is None:
                continue
            state.inside += 1
        try:
            plan, first, last = job
            _work(plan, first, last, thread)
            del plan
        finally:
            del job
            with state.lock:
                state.inside -= 1
                if not state.inside:
                    state.left.notify_all()
