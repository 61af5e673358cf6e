"""A run under way: what `run_async` returns."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from qir.types import Array

from .device.interface import Event


class Pending:
    """Results of a run that may still be under way.

    Keeps alive what the run reads and writes.  Host arrays that were not page-locked have been read when `run_async`
    returns; page-locked ones and device tensors must keep their content until the run is done.
    """

    def __init__(self, used: object, event: Event) -> None:
        self.event = event
        self._used: object | None = used
        self._results: dict[str, Any] = {}
        self._staged: list[tuple[str, Array, Array | None]] = []
        self._lock = threading.Lock()

    def give(self, name: str, result: object) -> None:
        """An output that the device writes where the caller wants it."""
        self._results[name] = result

    def take(self, name: str, staging: Array, target: Array | None) -> None:
        """An output that comes by a staging buffer; `target`: the caller's array, or None for a new one."""
        self._results[name] = None  # keeps the order
        self._staged.append((name, staging, target))

    @property
    def done(self) -> bool:
        """Whether `result` would return without waiting."""
        return self._used is None or self.event.done

    def result(self) -> dict[str, Any]:
        """Outputs by name, once they are there.  Results in device memory are ready too."""
        with self._lock:
            if self._used is not None:
                self.event.wait()
                self._collect()
        return dict(self._results)

    def enqueued(self) -> dict[str, Any]:
        """Outputs in device memory without waiting: what follows on the same stream finds them ready."""
        if self._staged:
            return self.result()
        return dict(self._results)

    def _collect(self) -> None:
        for name, staging, target in self._staged:
            if target is None:
                self._results[name] = staging.copy()
            else:
                np.copyto(target, staging)
                self._results[name] = target
        self._staged.clear()
        self._used = None
