"""Arrays as calibration reads them: in memory or in files, a few samples at a time."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, QirError
from qir.ops.memory import demand
from qir.types import Array, TensorType

from .images import Images
from .sample_axes import SampleAxes, say_absent

MOST_ROWS = 8
"""Rows of an array that are in memory at once, by default."""

MAGIC = b"\x93NUMPY"
KINDS = "a .npy or .npz file, or a folder of such files or of images"

Reader = Callable[[int, int], Array]
"""Rows [start, stop) of one array."""


@dataclass(frozen=True)
class Rows:
    """An array that is read a few rows at a time.  count: None where it is the same for all samples."""

    count: int | None
    read: Reader


def runs_of(source: Any, axes: SampleAxes) -> list[dict[str, Array]] | None:
    """Where no input names a batch: arrays of one axis more than the inputs, a run for each of its entries."""
    if isinstance(source, np.ndarray) and len(axes.types) == 1:
        source = {next(iter(axes.types)): source}
    if not isinstance(source, Mapping) or (axes.fixed is None and not axes.whole):
        return None
    given: Mapping[str, Any] = source
    arrays = {n: np.asarray(given[n]) for n in axes.types if n in given}
    if not arrays or any(a.ndim != axes.types[n].rank + 1 for n, a in arrays.items()):
        return None
    counts = {len(a) for a in arrays.values()}
    return [{n: a[i] for n, a in arrays.items()} for i in range(min(counts))] if len(counts) == 1 else None


def rows_of(source: Any, axes: SampleAxes) -> dict[str, Rows] | None:
    """Each input's rows; None for what can only be streamed."""
    types = axes.types
    if isinstance(source, str | Path):
        return file_rows(Path(source), axes)
    if isinstance(source, list | tuple) and source and all(isinstance(p, str | Path) for p in source):
        source = Images(tuple(source))
    if isinstance(source, Images):
        if source.skip_broken:
            return None
        name = only(types, "a folder of images")
        read, count = source.reader(types[name])
        return {name: Rows(count, read)}
    if isinstance(source, np.ndarray):
        name = only(types, "one array")
        return {name: _array(source, axes, name)}
    if isinstance(source, Mapping):
        given = _check_names(source, axes)
        return {name: _array(np.asarray(source[name]), axes, name) for name in given}
    if not isinstance(source, Iterable):
        raise DataError(
            f"a {type(source).__name__} is no data", hint="an array, a dict, a path or an iterable of these"
        )
    return None


def each_file(folder: Path) -> Iterator[Any]:
    """The arrays of a folder, a file at a time: a sample or a batch each, of any length."""
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz")):
        try:
            loaded = np.load(path, allow_pickle=False)
            item = dict(loaded) if path.suffix == ".npz" else loaded
        except Exception as error:  # as in `file_rows`
            raise _unreadable(path, error) from None
        yield item


def file_rows(path: Path, axes: SampleAxes) -> dict[str, Rows] | None:
    types = axes.types
    if path.is_dir():
        if any(p.suffix in (".npy", ".npz") for p in path.iterdir()):
            return None
        return rows_of(Images(path), axes) or {}
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    try:
        if path.suffix == ".npz":
            return _npz(path, axes)
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError("is no .npy file", where=str(path), hint=KINDS)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        name = only(types, "one array")
        if array.ndim and axes.axis[name] == 0:
            # mapped anew for each batch: pages read stay in memory for as long as their mapping lives
            return {name: Rows(len(array), lambda start, stop: np.load(path, mmap_mode="r")[start:stop])}
        return {name: _array(array, axes, name)}
    except QirError:
        raise
    except Exception as error:  # damaged archives: zipfile, zlib, lzma, NumPy and Python share no class
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, QirError):
        return DataError(error.message, where=str(path))
    what = "needs more memory than there is" if isinstance(error, MemoryError) else f"cannot be read: {error}"
    return DataError(what, where=str(path), hint=KINDS)


def _npz(path: Path, axes: SampleAxes) -> dict[str, Rows]:
    with zipfile.ZipFile(path) as archive:
        members = {n.removesuffix(".npy"): n for n in archive.namelist()}
    if len(members) == 1 and len(axes.types) == 1:
        members = {next(iter(axes.types)): next(iter(members.values()))}
    given = _check_names(members, axes)
    return {name: _npz_rows(path, members[name], axes, name) for name in given}


def _npz_rows(path: Path, member: str, axes: SampleAxes, name: str) -> Rows:
    """Rows of an array inside an .npz, read front to back without loading the rest."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, fortran, dtype = npy_header(file)
    if not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"member {member!r} has dtype {dtype} and shape {shape}")
    whole = fortran or not shape or dtype.hasobject or axes.axis[name] != 0
    demand(math.prod(shape if whole else (MOST_ROWS, *shape[1:])) * dtype.itemsize, f"member {member!r}", path)
    if whole:
        with np.load(path, allow_pickle=False) as arrays:
            return _array(arrays[member.removesuffix(".npy")], axes, name)
    row = math.prod(shape[1:]) * dtype.itemsize
    state: dict[str, Any] = {"file": None, "at": 0}

    def read(start: int, stop: int) -> Array:
        try:
            return rows(start, stop)
        except Exception as error:
            raise _unreadable(path, error) from None

    def rows(start: int, stop: int) -> Array:
        if state["file"] is None or state["at"] != start:
            if state["file"] is not None:
                state["file"].close()
            with zipfile.ZipFile(path) as archive:  # the member keeps the file open for itself
                state["file"] = archive.open(member)
            npy_header(state["file"])
            state["file"].seek(start * row, io.SEEK_CUR)  # a piece at a time
        data = state["file"].read((stop - start) * row)
        state["at"] = stop
        if stop == shape[0]:
            state["file"].close()
            state["file"] = None
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return Rows(shape[0], read)


def npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), dtype


def _array(array: Array, axes: SampleAxes, name: str) -> Rows:
    axis = axes.axis[name]
    if axis is None:
        return Rows(1 if axes.whole else None, lambda start, stop: array)
    if array.ndim <= axis:
        raise DataError(f"an array of {array.ndim} axes is no data", hint=f"axis {axis} counts samples")
    return Rows(array.shape[axis], lambda start, stop: axes.cut(name, array, start, stop))


def only(types: Mapping[str, TensorType], what: str) -> str:
    if len(types) != 1:
        raise DataError(
            f"{what} for a graph with {len(types)} inputs",
            hint=f"give one for each of {', '.join(types)} (dict or .npz)",
        )
    return next(iter(types))


def _check_names(given: Mapping[str, Any], axes: SampleAxes) -> list[str]:
    """The inputs that are given.  Raises DataError for a missing one that zeros do not stand for, or an unknown one."""
    absent = [name for name in axes.types if name not in given]
    for name in absent:
        if not axes.may_be_absent(name):
            have = ", ".join(map(str, given))
            raise DataError("is missing", where=f"input {name!r}", hint=f"the data have {have}")
    for name in given:
        if name not in axes.types:
            known = ", ".join(axes.types)
            raise DataError("is no input of the graph", where=f"data {name!r}", hint=f"inputs are {known}")
    say_absent(absent)
    return [name for name in axes.types if name in given]
