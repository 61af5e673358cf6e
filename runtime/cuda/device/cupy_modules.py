"""Kernels as functions of the CUDA driver: compiled by NVRTC once a machine, kept as cubins, loaded once a process.

Not through `cupy.RawModule`, which compiles for sm_90 where the kernels want sm_90a.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from qir.errors import BackendError

from ..instances import Kernel, sources
from .nvrtc import Nvrtc

log = logging.getLogger(__name__)

DEFAULT_SHARED = 48 << 10
"""Dynamic shared memory that a kernel may have without asking  [CUDA Programming Guide, shared memory]."""

SEPARATOR = b"\n"

_loaded: dict[tuple[int, Kernel], int] = {}
_lock = threading.Lock()


@cache
def kernel_version() -> str:
    """A name for the sources of the kernels: what depends on them (cubins, tuning) is kept under it."""
    text = "\0".join(f"{name}\0{content}" for name, content in sorted(sources().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled kernels and tuning results are kept between processes."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qir"


ARCHITECTURE = "QIR_CUDA_ARCHITECTURE"
"""Environment variable: an older or plainer architecture of the GPU's generation to compile for, such as 90 on an H200
(no warpgroup kernels) or 80 on an sm_89."""


def architecture_of(capability: int) -> str:
    """What to compile for: the GPU's own architecture, with Hopper's own instructions where there are.

    Raises BackendError where the environment names one whose machine code the GPU does not run.
    """
    asked = os.environ.get(ARCHITECTURE)
    if not asked:
        return "90a" if capability == 90 else str(capability)
    number = re.fullmatch(r"(\d+)a?", asked)
    plain = int(number[1]) if number else 0
    # machine code runs on later GPUs of the same generation  [CUDA Programming Guide, binary compatibility]
    fits = asked == f"{capability}a" if asked.endswith("a") else plain <= capability
    if plain // 10 != capability // 10 or not fits:
        lowest = max(capability // 10 * 10, 75)
        raise BackendError(f"{ARCHITECTURE}={asked}: this GPU runs code of sm_{lowest} to sm_{capability}")
    return asked


def cubin(kernel: Kernel, architecture: str, compiler: Nvrtc, folder: Path | None = None) -> tuple[str, bytes]:
    """(lowered name, cubin) of one kernel, compiled unless it is kept.  Raises BackendError with the compiler's log."""
    major, minor = compiler.version()
    key = f"2 {kernel_version()} {major}.{minor} {architecture} {kernel.expression}"
    where = (folder or cache_folder()) / f"cubin-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    kept = _kept(where)
    if kept is not None:
        return kept
    binary, lowered, _ = compiler.compile(kernel.source, [kernel], architecture)
    name = lowered[kernel.expression]
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        fresh = where.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        body = name.encode() + SEPARATOR + binary
        fresh.write_bytes(hashlib.sha256(body).hexdigest().encode() + SEPARATOR + body)
        fresh.replace(where)
    except OSError:  # a home that cannot be written: compile again next time
        pass
    return name, binary


def _kept(where: Path) -> tuple[str, bytes] | None:
    """What a cubin's file holds; None where there is none, or one that is damaged (it is written anew then)."""
    try:
        checksum, _, body = where.read_bytes().partition(SEPARATOR)
    except OSError:
        return None
    if checksum.decode("latin-1") != hashlib.sha256(body).hexdigest():
        log.warning("the compiled kernel %s is damaged; it is made anew", where)
        return None
    name, _, binary = body.partition(SEPARATOR)
    return name.decode(), binary


class Modules:
    """Functions of one GPU."""

    def __init__(self, cupy: Any, index: int, architecture: str) -> None:
        self._driver, self._index, self._architecture = cupy.cuda.driver, index, architecture
        self._newest = int(cupy.cuda.runtime.driverGetVersion()) // 1000

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Compile and load what is missing; compilations run side by side. The GPU must be the current one."""
        with _lock:
            missing = [k for k in dict.fromkeys(kernels) if (self._index, k) not in _loaded]
            if not missing:
                return
            compiler = Nvrtc(self._newest)
            workers = min(len(missing), os.cpu_count() or 1)
            with ThreadPoolExecutor(workers) as pool:
                binaries = list(pool.map(lambda k: cubin(k, self._architecture, compiler), missing))
            for kernel, (name, binary) in zip(missing, binaries, strict=True):
                _loaded[self._index, kernel] = self._load(kernel, name, binary, compiler)

    def _load(self, kernel: Kernel, name: str, binary: bytes, compiler: Nvrtc) -> int:
        try:
            function = int(self._driver.moduleGetFunction(self._driver.moduleLoadData(binary), name))
            if kernel.shared_bytes > DEFAULT_SHARED:
                attribute = self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._driver.funcSetAttribute(function, attribute, kernel.shared_bytes)
        except self._driver.CUDADriverError as error:
            major, minor = compiler.version()
            raise BackendError(
                f"cannot be loaded on sm_{self._architecture}: {error}", where=kernel.expression,
                hint=f"NVRTC is {major}.{minor}; the driver must be of that CUDA version or later",
            ) from error  # fmt: skip
        return function

    def function(self, kernel: Kernel) -> int:
        """The driver's handle of a prepared kernel."""
        return _loaded[self._index, kernel]
