"""Compiles the kernels once; later processes load them from the user's cache folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

from ..kernels.record import EPILOGUE_WIDTH, STEP_WIDTH
from .interpreter import execute, open_gate
from .kernel_cache import CACHE

_lock = threading.Lock()
_ready = False
SLOW = 2.0
"""Seconds after which it was a compilation, not a load from the cache."""


def warm_up(progress: Callable[[str], None]) -> None:
    """Returns when the interpreter is compiled or loaded.  `progress` hears of a compilation."""
    global _ready
    with _lock:
        if _ready:
            return
        started = time.perf_counter()
        timer = threading.Timer(SLOW, progress, ("compiling CPU kernels, once on this machine (half a minute) ...",))
        timer.daemon = True
        timer.start()
        scratch = np.zeros(256, np.uint8)
        gate = scratch.ctypes.data + 128
        open_gate(gate)
        execute(
            np.zeros((1, STEP_WIDTH), np.int64), np.zeros((1, EPILOGUE_WIDTH), np.int64), np.zeros(2, np.int64),
            scratch.ctypes.data, gate, scratch.ctypes.data, 0, True,
        )  # fmt: skip
        CACHE.publish()
        timer.cancel()
        seconds = time.perf_counter() - started
        if seconds > SLOW:
            progress(f"CPU kernels compiled in {seconds:.0f} s")
        _ready = True
