"""Workers that are watched: one that hangs is killed and counted, one that dies is counted."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEMORY = 12 << 30
"""Bytes of address space past which the system refuses a worker more."""


@dataclass(frozen=True)
class Report:
    """finding: "" (nothing to say), "untyped", "disagreement", "hang", "died" or "memory"."""

    outcome: str
    finding: str
    where: str
    seconds: float
    peak: int


class Worker:
    """One child at a time, started anew when it had to be killed."""

    def __init__(self, limit_s: float = 20.0, limit_bytes: int = 2 << 30) -> None:
        self.limit_s, self.limit_bytes = limit_s, limit_bytes
        self.child: subprocess.Popen[str] | None = None

    def ask(self, kind: str, path: Path) -> Report:
        child = self.child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps([kind, str(path)]) + "\n")
            child.stdin.flush()
            ready = self._wait(child)
            line = child.stdout.readline() if ready else ""
        except OSError:
            ready, line = True, ""
        if line:
            found = Report(**json.loads(line))
            if not found.finding and found.peak > self.limit_bytes:
                found = Report(found.outcome, "memory", found.where, found.seconds, found.peak)
            return found
        self.close()
        if not ready:
            return Report(f"over {self.limit_s:g} s", "hang", "", self.limit_s, 0)
        return Report(f"the process ended with {child.returncode}", "died", "", 0.0, 0)

    def _wait(self, child: subprocess.Popen[str]) -> bool:
        """Whether an answer comes before so many seconds of its own are over (a busy machine is no fault of it)."""
        assert child.stdout is not None
        began, used = time.monotonic(), cpu_seconds(child.pid)
        while True:
            if select.select([child.stdout], [], [], 1.0)[0]:
                return True
            elapsed = time.monotonic() - began
            if elapsed > self.limit_s and (cpu_seconds(child.pid) - used > self.limit_s or elapsed > 10 * self.limit_s):
                return False

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment, preexec_fn=limit_memory,
        )  # fmt: skip
        limit, self.limit_s = self.limit_s, 600.0
        self.ask("warm", ROOT)  # imports and compiling the kernels are nobody's seconds
        self.limit_s = limit
        return self.child

    def close(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    pipe.close()
            self.child = None


def cpu_seconds(process: int) -> float:
    """Seconds that a process has worked (Linux; elsewhere seconds that have passed)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
