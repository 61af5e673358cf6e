"""Tuning: every way to launch a layer is timed once, the fastest kept for the device and the version of the kernels.

Tables are data: {"device", "kernels", "entries": {layer key: {"choice": name, "seconds": {name: s}}}}.  They change
speed only; any choice yields the same bits, which is checked before one is kept.  Sources, in the order in which they
are asked: what this machine measured (`cache_folder()`), then the tables shipped in runtime/cuda/tables.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from qir.errors import FOREIGN, BackendError
from qir.graph import Node

from .device.cupy_modules import cache_folder, kernel_version
from .digests import Digests
from .planner.choices import Choice, Chooser
from .planner.plan import Plan
from .runner import Runner

SWITCH = "QIR_CUDA_TUNE"
"""Environment variable: 0 turns tuning off, for sessions that do not say otherwise."""

REPEAT = 8
"""Launches that one timing averages."""

_LOG = logging.getLogger(__name__)

Entry = dict[str, Any]


def slug(device: str) -> str:
    """A device's name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


class TuningTable:
    """Measured choices of one device.  Threads may share it; processes merge what they measured on saving."""

    def __init__(self, device: str, folder: Path | None = None) -> None:
        self.device = device
        self.path = (folder or cache_folder()) / f"tuning-{slug(device)}-{kernel_version()}.json"
        self._lock = threading.Lock()
        shipped = resources.files("qir.runtime.cuda") / "tables" / f"{slug(device)}.json"
        self._shipped = (_entries(shipped.read_text(), device) if shipped.is_file() else None) or {}
        self._measured = self._read()

    def _read(self) -> dict[str, Entry]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return {}
        found = _entries(text, self.device)
        if found is None:
            _LOG.warning("the tuning results in %s are damaged; layers are measured anew", self.path)
            with suppress(OSError):
                self.path.unlink()
        return found or {}

    def __contains__(self, key: str) -> bool:
        return key in self._measured or key in self._shipped

    def choose(self, key: str, candidates: Sequence[Choice]) -> Choice:
        """The measured choice, if it is among the candidates; else the first."""
        for entries in (self._measured, self._shipped):
            name = entries.get(key, {}).get("choice")
            for candidate in candidates:
                if candidate.name == name:
                    return candidate
        return candidates[0]

    def update(self, entries: dict[str, Entry]) -> None:
        """Keep what was measured, here and on disk: written aside and renamed, so that readers see whole files."""
        with self._lock:
            self._measured = {**self._read(), **self._measured, **entries}
            text = json.dumps(
                {"device": self.device, "kernels": kernel_version(), "entries": self._measured},
                indent=1,
                sort_keys=True,
            )
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                fresh = self.path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
                fresh.write_text(text)
                fresh.replace(self.path)
            except OSError as error:
                _LOG.info("tuning results are not kept: %s", error)


def _entries(text: str, device: str) -> dict[str, Entry] | None:
    """The entries of a table's text; none where it is another device's, None where it is broken."""
    try:
        found = json.loads(text)
        if found["device"] != device:
            return {}
        return {
            str(k): {"choice": str(v["choice"]), "seconds": dict(v["seconds"])} for k, v in found["entries"].items()
        }
    except FOREIGN:
        return None


def switched_on() -> bool:
    """What the environment says."""
    return os.environ.get(SWITCH, "1").lower() not in ("0", "off", "false")


def tune(compile_: Callable[[Chooser], Plan], table: TuningTable) -> int:
    """Time the layers of a plan that the table does not know; returns how many.

    compile_: makes the plan with a chooser.  Plan after plan, every unknown layer takes its next candidate, and the
    launches that serve it are timed by the device's events.  Candidates of a plan that the device has no room for or
    cannot launch stay untimed.  One that computes other bits than the first, the default, is reported and never chosen.
    """
    unknown: dict[str, dict[str, list[float]]] = {}
    digests: Digests | None = None
    defaults: dict[Node, bytes] = {}
    wrong: set[tuple[str, str]] = set()
    most = turn = 0
    while turn == 0 or turn < most:

        def pick(key: str, candidates: Sequence[Choice], turn: int = turn) -> Choice:
            return table.choose(key, candidates) if key in table else candidates[turn % len(candidates)]

        plan = compile_(pick)
        fresh = {n: c for n, c in plan.choices.items() if c[0] not in table and turn < len(c[1])}
        if not fresh:
            break
        if turn == 0:
            plan.device.prepare(candidate.kernel for _, candidates, _ in fresh.values() for candidate in candidates)
        most = max(most, *(len(candidates) for _, candidates, _ in fresh.values()))
        try:
            runner = Runner(plan)
            digests = digests or Digests(plan.device)
            for node, digest in digests.of(runner, fresh).items():
                if defaults.setdefault(node, digest) != digest:
                    key, _, choice = fresh[node]
                    _LOG.warning("%s computes other bits than the default for %s: it is not used", choice.name, key)
                    wrong.add((key, choice.name))
            timed = _seconds(runner, fresh)
        except BackendError as error:
            _LOG.warning("candidates that cannot be tried: %s", error)
            timed = {}
        for node, seconds in timed.items():
            key, _, choice = fresh[node]
            unknown.setdefault(key, {}).setdefault(choice.name, []).append(seconds)
        turn += 1
    entries: dict[str, Entry] = {}
    for key, times in unknown.items():
        mean = {name: sum(t) / len(t) for name, t in times.items() if (key, name) not in wrong}
        if mean:
            entries[key] = {"choice": min(mean, key=lambda n: mean[n]), "seconds": mean}
    if entries:
        table.update(entries)
        _LOG.info("%d layer shapes tuned on %s", len(entries), table.device)
    return len(entries)


def _seconds(runner: Runner, layers: dict[Node, Any]) -> dict[Node, float]:
    """Seconds of all launches that serve each layer."""
    chosen = [launch for launch in runner.launches if launch.head in layers]
    total: dict[Node, float] = {}
    for launch, seconds in zip(chosen, runner.device.time(chosen, REPEAT), strict=True):
        total[launch.head] = total.get(launch.head, 0.0) + seconds
    return total
