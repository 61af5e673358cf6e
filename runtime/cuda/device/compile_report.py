"""What NVRTC makes of every kernel instance on every architecture: registers, shared memory, spills. No GPU needed.

Jobs of a few instances run in parallel processes; a result is kept on disk under the content it came from, so that
nothing is compiled twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from qir.errors import FOREIGN

from ..instances import ARCHITECTURES, SHARED_LIMIT, Kernel, compiled, sources
from .nvrtc import Nvrtc, Usage, usage

LOG = logging.getLogger(__name__)

JOB = 5
"""Instances compiled together: what they share is parsed once, and jobs stay small enough to balance."""


@dataclass(frozen=True)
class Job:
    """Some instances of one source for one architecture."""

    architecture: str
    kernels: tuple[Kernel, ...]


def jobs(architectures: Sequence[str] = ARCHITECTURES) -> Iterator[Job]:
    """All instances, those of one file next to each other."""
    for architecture in architectures:
        made = compiled(architecture)
        for source in sorted({k.source for k in made}):
            family = [k for k in made if k.source == source]
            for i in range(0, len(family), JOB):
                yield Job(architecture, tuple(family[i : i + JOB]))


def compile_all(
    architectures: Sequence[str] = ARCHITECTURES, workers: int | None = None
) -> dict[tuple[str, str], Usage]:
    """(architecture, name expression) -> what it takes.  Raises BackendError for what does not compile."""
    found: dict[tuple[str, str], Usage] = {}
    # the convolutions take longest: first, so that no worker is left with one at the end
    order = sorted(jobs(architectures), key=lambda j: "conv" not in j.kernels[0].source)
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for job, used in zip(order, pool.map(compile_job, order), strict=True):
            found.update({(job.architecture, k.expression): u for k, u in zip(job.kernels, used, strict=True)})
    return found


def _kept_at(job: Job, compiler: Nvrtc) -> Path:
    """Where the usage of a job's instances is kept, by the content that it is made from."""
    source = job.kernels[0].source
    texts = sorted((n, t) for n, t in sources().items() if n == source or n.endswith(".cuh"))
    key = json.dumps([texts, compiler.version(), job.architecture, [asdict(k) for k in job.kernels]])
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qir"
    return folder / f"usage-{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def kept_usage(architectures: Sequence[str] = ARCHITECTURES) -> dict[tuple[str, str], Usage]:
    """Like `compile_all`, but only what has been compiled before."""
    found: dict[tuple[str, str], Usage] = {}
    compiler = Nvrtc()
    for job in jobs(architectures):
        if _kept_at(job, compiler).exists():
            used = zip(job.kernels, compile_job(job), strict=True)
            found.update({(job.architecture, k.expression): u for k, u in used})
    return found


def compile_job(job: Job) -> list[Usage]:
    """The usage of a job's instances, in their order; from the cache if they have been compiled before."""
    compiler = Nvrtc()
    kept = _kept_at(job, compiler)
    if kept.exists():
        try:
            return [Usage(**u) for u in json.loads(kept.read_text())]
        except FOREIGN:
            LOG.warning("the kernels' usage in %s is damaged; it is found anew", kept)
    _, lowered, log = compiler.compile(job.kernels[0].source, job.kernels, job.architecture)
    used = [usage(log, lowered[k.expression]) for k in job.kernels]
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps([asdict(u) for u in used]))
    fresh.replace(kept)
    return used


def complaints(architecture: str, kernel: Kernel, used: Usage) -> list[str]:
    """Why an instance could not be launched, or would be slow; empty if all is well."""
    found: list[str] = []
    if used.registers * kernel.threads > 65536:
        found.append(f"{used.registers} registers x {kernel.threads} threads: more than a multiprocessor has")
    if used.spill_stores > (64 if kernel.program < 0 else 0):
        found.append(f"spills {used.spill_stores} bytes")
    if used.serialized:
        found.append("warpgroup products are serialized")
    if kernel.shared_bytes + used.shared_bytes > SHARED_LIMIT[architecture]:
        found.append(f"{kernel.shared_bytes + used.shared_bytes} bytes of shared memory")
    return found


def table(found: dict[tuple[str, str], Usage], version: tuple[int, int]) -> str:
    """Markdown: a row an instance; registers a thread, and the bytes spilled where there are any."""
    lines = [
        "# What every kernel instance takes",
        "",
        "By the assembler's report of NVRTC {}.{} (`python benchmarks/kernels.py`, without a GPU).".format(*version),
        "Columns sm_*: registers a thread; `s` and a number: bytes of spills; `-`: not made for that architecture;",
        "`?`: made for it, not measured since its source changed.",
        "",
        "| kernel | threads | shared memory | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(ARCHITECTURES),
    ]
    made = {k.expression: k for a in ARCHITECTURES for k in compiled(a)}
    for name, kernel in made.items():
        cells: list[str] = []
        static = 0
        for architecture in ARCHITECTURES:
            used = found.get((architecture, name))
            if used is None:
                cells.append("?" if architecture in kernel.architectures else "-")
                continue
            static = max(static, used.shared_bytes)
            cells.append(f"{used.registers}" + (f" s{used.spill_stores}" if used.spill_stores else ""))
        shared = kernel.shared_bytes + static
        short = name.replace("qir::", "")
        lines.append(f"| `{short}` | {kernel.threads} | {shared or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
