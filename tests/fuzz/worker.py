"""One process that exercises files as its parent names them: a line in, a line out."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from pathlib import Path

from .exercise import Disagreement, exercise


def reset_peak() -> None:
    """Forget the peak of this process's memory (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")) * 1024


def answer(kind: str, path: Path) -> dict[str, object]:
    reset_peak()
    began = time.process_time()
    finding, where = "", ""
    try:
        outcome = exercise(kind, path)
    except Disagreement as error:
        outcome, finding = f"Disagreement: {error}", "disagreement"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if "/qir/" in f.filename
                      or "/runtime/" in f.filename or "/passes/" in f.filename), "")  # fmt: skip
        outcome, finding = f"{type(error).__name__}: {error}", "untyped"
    seconds = time.process_time() - began  # its own: others may keep the machine busy
    return {"outcome": outcome, "finding": finding, "where": where, "seconds": seconds, "peak": peak_bytes()}


def serve() -> None:
    out = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        kind, path = json.loads(line)
        out.write(json.dumps(answer(kind, Path(path))) + "\n")
        out.flush()


if __name__ == "__main__":
    serve()
