"""Ctrl-C at any moment: one line, exit 130, and no worker left behind.

A KeyboardInterrupt alone does not do: code that an import runs turns it into an ImportError, a destructor swallows it
with a traceback, worker processes print one each, and threads keep the interpreter from ending.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = 130
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

UNWINDING = 1.0
"""Seconds in which temporary files go."""

_watching: list[Interrupts] = []
_parent = [0]
"""Which process forked last."""


class Interrupts:
    """The handler of SIGINT.  seen: whether one has come."""

    def __init__(self) -> None:
        self.seen = False
        self.process = os.getpid()

    def install(self) -> None:
        signal.signal(signal.SIGINT, self.handle)
        sys.unraisablehook = self.unraisable
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=note_parent, after_in_child=obey_parent)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Ends a worker quietly; in the first process leaves, or raises KeyboardInterrupt, once."""
        if os.getpid() != self.process:
            os._exit(INTERRUPTED)
        if self.seen:
            return
        self.seen = True
        if workers():
            self.leave()  # a pool that is torn down while it starts prints tracebacks, or waits for ever
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
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the signal came in the middle of a write
            sys.stdout.flush()
        shown = b"\x1b[?25h" if os.isatty(2) else b""  # a progress bar hides the cursor
        with contextlib.suppress(OSError):
            os.write(2, shown + b"interrupted\n")
        for child in workers():
            child.kill()
        os._exit(INTERRUPTED)


def watch() -> Interrupts:
    """Listen from now on."""
    found = Interrupts()
    found.install()
    _watching[:] = [found]
    return found


def seen() -> bool:
    """Whether Ctrl-C was pressed."""
    return any(w.seen for w in _watching)


def workers() -> list[Any]:
    """The processes of this one's pools."""
    module: Any = sys.modules.get("multiprocessing.process")
    return list(module.active_children()) if module else []


def note_parent() -> None:
    """Before a fork."""
    _parent[0] = os.getpid()


def obey_parent() -> None:
    """In a forked worker: leave Ctrl-C to the parent, and end when it ends (it may not know of the worker yet)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _parent[0]:
            os._exit(INTERRUPTED)
