"""Files: texts are read whole or not at all; all are written aside, then renamed.

So a reader finds the old file or the new one, whole.  A temporary file is `.NAME.PID.xxxxxxxx.part` in the folder of
its target.  A killed process leaves its own behind; the next one that writes to the same target removes it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from .errors import FOREIGN, OutputError, ParseError, QirError, said

Made = TypeVar("Made")


@contextmanager
def aside(path: str | Path, error: type[QirError] = OutputError) -> Generator[Path]:
    """A temporary file to write, renamed to `path` on success and removed on failure.

    A link is followed: what it names is replaced.  /dev/stdout is written to, when all is there.  error: the class of
    what is raised.
    Raises it where `path` is a folder, a device, a pipe or a socket (they are never replaced), where its folder does
    not exist, and for what the system refuses, a full disk too; the message names the file.
    """
    where = f"file {str(path)!r}"
    if streamed(path):
        with _stream(where, error) as part:
            yield part
        return
    try:
        target = regular(path, error)
        _sweep(target)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".part", dir=target.parent)
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, _mode(target))
            os.replace(name, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as cause:
        raise error(f"cannot be written: {cause.strerror or cause}", where=where) from cause


STDOUT = Path("/dev/stdout")


def streamed(path: str | Path) -> bool:
    """Whether a path stands for the standard output, whatever that is."""
    return str(path) == str(STDOUT)


@contextmanager
def _stream(where: str, error: type[QirError]) -> Generator[Path]:
    """A temporary file, copied to the standard output on success."""
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"
        part.touch()
        yield part
        sys.stdout.flush()
        try:
            with part.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as cause:
            raise error(f"cannot be written: {cause.strerror or cause}", where=where) from cause


def write_text(path: str | Path, text: str, error: type[QirError] = OutputError) -> None:
    """The whole text in UTF-8, or what was there before.  Raises as `aside` does."""
    with aside(path, error) as part:
        part.write_text(text, encoding="utf-8")


def regular(path: str | Path, error: type[QirError] = OutputError) -> Path:
    """The regular file, there or to be made, that a path names, through links.  Raises `error` for anything else."""
    where = f"file {str(path)!r}"
    target = Path(os.path.realpath(path))
    try:
        kind = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise error("its folder does not exist", where=where) from None
        return target
    except (OSError, ValueError) as cause:  # a null character is a ValueError
        raise error(f"cannot be written: {cause}", where=where) from cause
    if stat.S_ISDIR(kind):
        raise error("is a folder", where=where)
    if not stat.S_ISREG(kind):
        raise error("is no regular file (a device, pipe or socket)", where=where, hint="name a file")
    return target


def _mode(target: Path) -> int:
    """The mode of the file that is replaced, or that of a new one."""
    with suppress(OSError):
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sweep(target: Path) -> None:
    """Remove what processes that are no more left beside the target."""
    for path, process in _parts(target):
        if not alive(process):
            with suppress(OSError):
                path.unlink()


def under_way(target: Path) -> bool:
    """Whether another process is writing `target`."""
    return any(process != os.getpid() and alive(process) for _, process in _parts(target))


def _parts(target: Path) -> list[tuple[Path, int]]:
    """The temporary files beside a target, those of a model's data among them, and the processes that made them."""
    ours = re.compile(re.escape(f".{target.name}.") + r"(?:[0-9a-f]{16}\.data\.)?(\d+)\.\w+\.part")
    found = ((Path(entry.path), ours.fullmatch(entry.name)) for entry in os.scandir(target.parent))
    return [(path, int(match[1])) for path, match in found if match]


def alive(process: int) -> bool:
    """Whether a process of this number runs (any user's)."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


LARGEST = 256 << 20
"""Bytes of a text file; tables and ranges of the largest networks take a thousandth of it."""


def read_text(path: str | Path) -> str:
    """The whole text.  Raises ParseError where there is none, or too much of it."""
    try:
        file = Path(path)
        if file.stat().st_size > LARGEST:
            raise ParseError(f"is larger than {LARGEST >> 20} MB", where=str(path))
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, a null character in the name
        raise ParseError(f"cannot be read: {error}", where=str(path)) from None


def from_json(text: str, make: Callable[[Any], Made], what: str, where: str, hint: str | None = None) -> Made:
    """What `make` makes of a JSON text.  Raises ParseError: no JSON, or whatever `make` stumbles over."""
    try:
        return make(json.loads(text))
    except QirError as error:
        if isinstance(error, ParseError) and error.where is not None:
            raise
        raise ParseError(str(error), where=where) from None
    except FOREIGN as error:
        raise ParseError(f"is no {what} ({type(error).__name__}: {said(error)})", where=where, hint=hint) from None
