"""Where compiled kernels are kept between processes: in the user's cache folder, whole or not at all.

numba keeps machine code that a damaged byte makes crash.  So a folder of it is made aside, with a list of checksums,
and renamed when it is complete; one that does not agree with its list is thrown away, with a warning, and made anew.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core import config

from qir.files import alive

from ..kernels.intrinsics import KIND

log = logging.getLogger(__name__)

SETTINGS: Any = config

LIST = "checksums.json"
KEPT = 8
"""Folders: one for each version of qir, of numba and of Python, and each kind of CPU; the oldest goes first."""

INTERPRETER = Path(__file__).with_name("interpreter.py")


def cache_root() -> Path:
    """The user's cache folder of qir."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qir"


class KernelCache:
    """The folder of one set of sources on one kind of CPU."""

    def __init__(self, root: Path | None = None, digest: int | None = None) -> None:
        self.root = root or cache_root()
        self.digest = sources_digest() if digest is None else digest
        self.folder = self.root / f"kernels-{self.digest:012x}-{_surroundings()}"
        self._making: Path | None = None

    @contextmanager
    def used(self) -> Generator[Path | None]:
        """Inside, numba keeps what it is told to cache here; where the folder cannot be made, where it always does."""
        before = SETTINGS.CACHE_DIR
        chosen = None if before else self._choose()  # NUMBA_CACHE_DIR is the user's own wish
        if chosen is not None:
            SETTINGS.CACHE_DIR = str(chosen)
        try:
            yield chosen
        finally:
            SETTINGS.CACHE_DIR = before

    def _choose(self) -> Path | None:
        try:
            if self.folder.is_dir():
                if is_whole(self.folder):
                    os.utime(self.folder)
                    return self.folder
                log.warning("the compiled CPU kernels in %s are damaged; they are made anew", self.folder)
                shutil.rmtree(self.folder)
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._making = Path(tempfile.mkdtemp(prefix=f".kernels.{os.getpid()}.", dir=self.root))
            atexit.register(self.drop)
        except OSError as error:
            log.info("compiled kernels are not kept in %s: %s", self.root, error)
        return self._making

    def publish(self) -> None:
        """What was compiled inside `used` is complete: later processes find it."""
        made, self._making = self._making, None
        if made is None:
            return
        try:
            (made / LIST).write_text(json.dumps(checksums(made)))
            made.rename(self.folder)
        except OSError as error:  # another process was first, or the disk is full
            log.debug("compiled kernels are not kept: %s", error)
            shutil.rmtree(made, ignore_errors=True)

    def drop(self) -> None:
        """Nothing was compiled, or not all of it."""
        made, self._making = self._making, None
        if made is not None and made.name.split(".")[2] == str(os.getpid()):  # a forked child leaves it alone
            shutil.rmtree(made, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what killed processes left, and the oldest folders."""
        for entry in self.root.glob(".kernels.*"):
            process = entry.name.split(".")[2]
            if process.isdigit() and not alive(int(process)):
                shutil.rmtree(entry, ignore_errors=True)
        folders: list[tuple[float, Path]] = []
        for entry in self.root.glob("kernels-*"):
            with suppress(OSError):
                folders.append((entry.stat().st_mtime, entry))
        for _, entry in sorted(folders)[: max(len(folders) - KEPT + 1, 0)]:
            shutil.rmtree(entry, ignore_errors=True)


def sources_digest() -> int:
    """A number that changes with the source of any kernel, and with the kind of CPU they are made for."""
    kernels = sorted((Path(__file__).parents[1] / "kernels").rglob("*.py"))
    text = b"".join(path.read_bytes() for path in (*kernels, INTERPRETER))
    return int.from_bytes(hashlib.blake2b(text + KIND.encode(), digest_size=6).digest(), "little")


def _surroundings() -> str:
    """What else numba's own files depend on: versions, the CPU, and the place and time of the source file."""
    stamp = INTERPRETER.stat()
    features = llvm.get_host_cpu_features().flatten()
    parts = (sys.version, numba.__version__, llvm.get_host_cpu_name(), features, INTERPRETER.resolve(),
             stamp.st_mtime_ns, stamp.st_size)  # fmt: skip
    return hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder but the list itself."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LIST)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def is_whole(folder: Path) -> bool:
    """Whether the files of a folder are those of its list."""
    try:
        return json.loads((folder / LIST).read_text()) == checksums(folder)
    except (OSError, ValueError, RecursionError):
        return False


CACHE = KernelCache()
