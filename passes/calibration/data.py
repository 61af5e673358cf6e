"""Data for calibration and for runs: anything a user has at hand, as batches that fit the graph's inputs.

    batches(array, graph)                              an ndarray, first axis samples
    batches({"x": array, "mask": array}, graph)        several inputs
    batches("calib.npy", graph)                        memory-mapped
    batches("calib.npz", graph)                        one array per input, read a batch at a time
    batches(Images("photos/", mean=127.5, std=127.5), graph)     or just "photos/"
    batches(["a.jpg", "b.jpg"], graph)                 a list of image files
    batches(iterable, graph)                           arrays, dicts or (image, label) tuples, each a sample or a batch;
                                                       of NumPy, PyTorch or anything else that is an array

Everything streams: memory holds one batch.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, QirError
from qir.graph import Graph
from qir.ops.memory import demand
from qir.types import Array, TensorType, is_float

from .images import Images

BATCH = 8
"""Default batch: small, because calibration holds every intermediate tensor of one batch."""

MAGIC = b"\x93NUMPY"
KINDS = "a .npy or .npz file, or a folder of images"

Reader = Callable[[int, int], Array]
"""Rows [start, stop) of one array."""


@dataclass(frozen=True)
class Rows:
    """An array that is read a few rows at a time."""

    count: int
    read: Reader


class Batches(Iterable[dict[str, Array]]):
    """Mappings from input name to array; iterate as often as the source allows.

    samples: how many there are, None where only iterating would tell.  once: a generator, used up by one walk.
    """

    def __init__(
        self, start: Callable[[], Iterator[dict[str, Array]]], samples: int | None, once: bool = False
    ) -> None:
        self._start, self.samples, self.once = start, samples, once

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return self._start()


def batches(
    source: Any,
    inputs: Graph | Mapping[str, TensorType],
    *,
    batch_size: int | None = None,
    samples: int | None = None,
) -> Batches:
    """`source` (see above) as batches for a graph's inputs, checked as they come.

    batch_size: default BATCH, or the graph's own where that is fixed (an incomplete last batch is left out then).
    Raises DataError: no such file, nothing in it, inputs missing or unknown, wrong shape or dtype, NaN or infinity,
    numbers of samples that differ.
    """
    types = {v.name: v.type for v in inputs.inputs} if isinstance(inputs, Graph) else dict(inputs)
    if not types:
        raise DataError("the graph has no inputs")
    if batch_size is not None and batch_size < 1:
        raise DataError(f"batch_size {batch_size} is not positive")
    if samples is not None and samples < 1:
        raise DataError(f"samples {samples} is not positive")
    fixed = {t.shape[0] for t in types.values() if t.shape and isinstance(t.shape[0], int)}
    size = max(int(n) for n in fixed) if fixed else batch_size or BATCH
    found = _rows(source, types)
    if found is None:
        walk: Any = source
        if isinstance(source, Images):
            name = _only(types, "a folder of images")
            return Batches(lambda: _stream(source.each(types[name]), types, size, bool(fixed), samples), None)
        return Batches(lambda: _stream(iter(walk), types, size, bool(fixed), samples), None, once=iter(walk) is walk)
    total = _common_count(found)
    count = total if samples is None else min(total, samples)
    if fixed:
        if count < size:
            raise DataError(f"{count} samples, but the graph takes {size} at a time")
        count -= count % size
    return Batches(lambda: _read(found, types, size, count), count)


# -- arrays and files -----------------------------------------------------------------------------
def _rows(source: Any, types: Mapping[str, TensorType]) -> dict[str, Rows] | None:
    """Each input's rows; None for an iterable, which can only be streamed."""
    if isinstance(source, str | Path):
        return _file(Path(source), types)
    if isinstance(source, list | tuple) and source and all(isinstance(p, str | Path) for p in source):
        source = Images(tuple(source))
    if isinstance(source, Images):
        if source.skip_broken:
            return None
        name = _only(types, "a folder of images")
        read, count = source.reader(types[name])
        return {name: Rows(count, read)}
    if isinstance(source, np.ndarray):
        return {_only(types, "one array"): _array(source)}
    if isinstance(source, Mapping):
        _check_names(source, types)
        return {name: _array(np.asarray(source[name])) for name in types}
    if not isinstance(source, Iterable):
        raise DataError(
            f"a {type(source).__name__} is no data", hint="an array, a dict, a path or an iterable of these"
        )
    return None


def _file(path: Path, types: Mapping[str, TensorType]) -> dict[str, Rows]:
    if path.is_dir():
        return _rows(Images(path), types) or {}
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    try:
        if path.suffix == ".npz":
            return _npz(path, types)
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise DataError("is no .npy file", where=str(path), hint=KINDS)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim:
            # mapped anew for each batch: pages read stay in memory for as long as their mapping lives
            rows = Rows(len(array), lambda start, stop: np.load(path, mmap_mode="r")[start:stop])
            return {_only(types, "one array"): rows}
    except QirError:
        raise
    except Exception as error:  # damaged archives: zipfile, zlib, lzma, NumPy and Python share no class
        raise _unreadable(path, error) from None
    return {_only(types, "one array"): _array(array)}


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, QirError):
        return DataError(error.message, where=str(path))
    what = "needs more memory than there is" if isinstance(error, MemoryError) else f"cannot be read: {error}"
    return DataError(what, where=str(path), hint=KINDS)


def _npz(path: Path, types: Mapping[str, TensorType]) -> dict[str, Rows]:
    with zipfile.ZipFile(path) as archive:
        members = {n.removesuffix(".npy"): n for n in archive.namelist()}
    if len(members) == 1 and len(types) == 1:
        members = {next(iter(types)): next(iter(members.values()))}
    _check_names(members, types)
    return {name: _npz_rows(path, members[name]) for name in types}


def _npz_rows(path: Path, member: str) -> Rows:
    """Rows of an array inside an .npz, read front to back without loading the rest."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        shape, fortran, dtype = _npy_header(file)
    if not dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"member {member!r} has dtype {dtype} and shape {shape}")
    whole = fortran or not shape or dtype.hasobject
    demand(math.prod(shape if whole else (BATCH, *shape[1:])) * dtype.itemsize, f"member {member!r}", path)
    if whole:
        with np.load(path, allow_pickle=False) as arrays:
            return _array(arrays[member.removesuffix(".npy")])
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
            _npy_header(state["file"])
            state["file"].seek(start * row, io.SEEK_CUR)  # a piece at a time
        data = state["file"].read((stop - start) * row)
        state["at"] = stop
        if stop == shape[0]:
            state["file"].close()
            state["file"] = None
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return Rows(shape[0], read)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), dtype


def _array(array: Array) -> Rows:
    if array.ndim == 0:
        raise DataError("a single number is no data", hint="the first axis counts samples")
    return Rows(len(array), lambda start, stop: array[start:stop])


def _only(types: Mapping[str, TensorType], what: str) -> str:
    if len(types) != 1:
        raise DataError(
            f"{what} for a graph with {len(types)} inputs",
            hint=f"give one for each of {', '.join(types)} (dict or .npz)",
        )
    return next(iter(types))


def _check_names(given: Mapping[str, Any], types: Mapping[str, TensorType]) -> None:
    for name in types:
        if name not in given:
            raise DataError("is missing", where=f"input {name!r}", hint=f"the data have {', '.join(map(str, given))}")
    for name in given:
        if name not in types:
            raise DataError("is no input of the graph", where=f"data {name!r}", hint=f"inputs are {', '.join(types)}")


def _common_count(found: Mapping[str, Rows]) -> int:
    counts = {rows.count for rows in found.values()}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {rows.count}" for name, rows in found.items())
        raise DataError(f"inputs have different numbers of samples: {listed}")
    count = counts.pop()
    if count == 0:
        raise DataError("no samples")
    return count


def _read(
    found: Mapping[str, Rows], types: Mapping[str, TensorType], size: int, count: int
) -> Iterator[dict[str, Array]]:
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield {name: check(rows.read(start, stop), types[name], name) for name, rows in found.items()}


# -- iterables ------------------------------------------------------------------------------------
def _stream(
    items: Iterator[Any], types: Mapping[str, TensorType], size: int, fixed: bool, samples: int | None
) -> Iterator[dict[str, Array]]:
    """Samples or batches of any size, regrouped into batches of `size`."""
    waiting: list[dict[str, Array]] = []
    held = seen = 0
    for item in items:
        part = _item(item, types)
        length = len(next(iter(part.values())))
        if samples is not None and seen + length > samples:
            length = samples - seen
            part = {k: v[:length] for k, v in part.items()}
        if length:
            waiting.append(part)
        held, seen = held + length, seen + length
        while held >= size:
            joined = {k: np.concatenate([p[k] for p in waiting]) if len(waiting) > 1 else waiting[0][k] for k in types}
            yield {k: v[:size] for k, v in joined.items()}
            held -= size
            waiting = [{k: v[size:] for k, v in joined.items()}] if held else []
        if samples is not None and seen >= samples:
            break
    if seen == 0:
        raise DataError("no samples", hint="the iterable is empty, or was used up before")
    if held and not fixed:
        yield {k: np.concatenate([p[k] for p in waiting]) for k in types}
    elif held == seen:
        raise DataError(f"{seen} samples, but the graph takes {size} at a time")


def _item(item: Any, types: Mapping[str, TensorType]) -> dict[str, Array]:
    """One item of an iterable as arrays with a batch axis."""
    if isinstance(item, Mapping):
        if not types.keys() <= item.keys():  # more than the inputs (labels, names of files) may be there
            _check_names(item, types)
        named = {name: as_array(item[name]) for name in types}
    elif isinstance(item, tuple | list) and _starts_with_inputs(item, types):
        named = {name: as_array(part) for name, part in zip(types, item, strict=False)}
    else:
        named = {_only(types, "one array"): as_array(item)}
    for name, array in named.items():
        if array.ndim == types[name].rank - 1:
            named[name] = array[None]
    lengths = {len(a) if a.ndim else 1 for a in named.values()}
    if len(lengths) > 1:
        raise DataError(f"inputs of one batch have different numbers of samples: {sorted(lengths)}")
    return {name: check(array, types[name], name) for name, array in named.items()}


def as_array(item: Any) -> Array:
    """Anybody's array: of PyTorch with a gradient or on a GPU, too.  Raises DataError."""
    try:
        for step in ("detach", "cpu"):
            item = getattr(item, step)() if hasattr(item, step) else item
        return np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"a {type(item).__name__} is no array: {error}") from None


def _starts_with_inputs(item: Sequence[Any], types: Mapping[str, TensorType]) -> bool:
    """Whether a tuple holds the inputs, and labels behind them, as data sets and loaders give them."""
    shapes = [getattr(part, "shape", None) for part in item[: len(types)]]
    return len(item) >= max(2, len(types)) and all(
        shape is not None and len(shape) in (t.rank, t.rank - 1)
        for shape, t in zip(shapes, types.values(), strict=True)
    )


def check(array: Array, type: TensorType, name: str) -> Array:
    """The batch, if it fits the input's type (any number of samples); floats of any width do.  Raises DataError."""
    where, expected = f"input {name!r}", type.dtype.numpy
    if type.dtype.is_float and array.dtype != expected and is_float(array.dtype):
        with np.errstate(over="ignore"):
            array = array.astype(expected)
    if array.dtype != expected:
        raise DataError(
            f"{expected} expected, {array.dtype} given", where=where,
            hint=f"convert it with .astype(np.{expected}), and normalize images as the network wants them",
        )  # fmt: skip
    want, got = type.shape, array.shape
    if len(want) != len(got) or any(isinstance(w, int) and w != g for w, g in zip(want[1:], got[1:], strict=True)):
        hint = "add a batch axis in front" if len(got) == len(want) - 1 else None
        raise DataError(f"shape {list(want)} expected, {list(got)} given", where=where, hint=hint)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("holds NaN or infinity", where=where)
    return array
