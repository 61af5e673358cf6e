"""Ctrl-C at any moment: one line, exit 130, and no worker left behind.

A KeyboardInterrupt alone does not do: code that an import runs turns it into an ImportError, a destructor swallows it
with a traceback, worker processes print one each, and threads keep the interpreter from ending.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

UNWINDING = 1.0
"""Seconds in which temporary files go; a pool whose workers are gone might wait for ever."""

_watching: list[Interrupts] = []


class Interrupts:
    """The handler of SIGINT.  seen: whether one has come."""

    def __init__(self) -> None:
        self.seen = False
        self.process = os.getpid()

    def install(self) -> None:
        signal.signal(signal.SIGINT, self.handle)
        sys.unraisablehook = self.unraisable

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Ends a worker quietly; in the first process ends the workers and raises KeyboardInterrupt, once."""
        if os.getpid() != self.process:
            os._exit(130)
        if self.seen:
            return
        self.seen = True
        end_workers()
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self.leave()  # C code that imports prints and carries on; and there is nothing to unwind yet
            frame = frame.f_back
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: self.leave())
            signal.setitimer(signal.ITIMER_REAL, UNWINDING)
        raise KeyboardInterrupt

    def unraisable(self, args: Any) -> None:
        """Where Python would only print that a destructor or callback was interrupted."""
        if issubclass(args.exc_type, KeyboardInterrupt):
            self.leave()
        sys.__unraisablehook__(args)

    def check(self) -> None:
        """Leaves where an interrupt came and something swallowed it."""
        if self.seen:
            self.leave()

    def leave(self) -> NoReturn:
        """One line and exit 130, at once."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_workers()
        end_children()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        shown = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides the cursor
        with contextlib.suppress(OSError):
            os.write(2, shown + b"interrupted\n")
        os._exit(130)


def watch() -> Interrupts:
    """Listen from now on."""
    found = Interrupts()
    found.install()
    _watching[:] = [found]
    return found


def seen() -> bool:
    """Whether Ctrl-C was pressed."""
    return any(w.seen for w in _watching)


def end_workers() -> None:
    """Kill the processes of this one's pools."""
    module: Any = sys.modules.get("multiprocessing.process")
    for child in list(module.active_children()) if module else []:
        child.kill()


def end_children() -> None:
    """Kill every child, as Linux lists them: one may have been forked a moment before its pool knew of it."""
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for number in path.read_text().split():
                os.kill(int(number), signal.SIGKILL)
