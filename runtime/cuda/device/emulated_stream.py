"""Streams and events of the emulated device, as late as the rules of CUDA allow.

Nothing that is enqueued happens before somebody waits for it: a run that forgets to wait, to hold a stream back, or
that writes a staging buffer whose copy is still to come reads or yields stale data here, every time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

_WORLD = threading.RLock()  # one host thread at a time plays the device


class EmulatedStream:
    """A queue of things to do."""

    def __init__(self) -> None:
        self._queue: deque[Callable[[], None]] = deque()
        self.issued = self.finished = 0

    def push(self, work: Callable[[], None]) -> None:
        with _WORLD:
            self._queue.append(work)
            self.issued += 1

    def run_to(self, point: int) -> None:
        """Do what was enqueued before `point`."""
        with _WORLD:
            while self.finished < point:
                work = self._queue.popleft()
                self.finished += 1
                work()

    def synchronize(self) -> None:
        self.run_to(self.issued)


class EmulatedEvent:
    """See `interface.Event`. waits: how often a host thread waited, a number that all events of a device share."""

    def __init__(self, waits: list[int]) -> None:
        self._waits = waits
        self._at: tuple[EmulatedStream, int] | None = None

    @property
    def done(self) -> bool:
        return self._at is None or self._at[0].finished >= self._at[1]

    def record(self, stream: EmulatedStream) -> None:
        self._at = (stream, stream.issued)

    def hold(self, stream: EmulatedStream) -> None:
        if self._at is not None:
            other, point = self._at
            stream.push(lambda: other.run_to(point))

    def wait(self) -> None:
        self._waits[0] += 1
        if self._at is not None:
            self._at[0].run_to(self._at[1])
