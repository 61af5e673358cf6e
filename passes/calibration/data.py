"""Data for calibration and for runs: anything a user has at hand, as batches that fit the graph's inputs.

    batches(array, graph)                              an ndarray, first axis samples
    batches({"x": array, "mask": array}, graph)        several inputs
    batches("calib.npy", graph)                        memory-mapped
    batches("calib.npz", graph)                        one array per input, read a batch at a time
    batches(Images("photos/", mean=127.5, std=127.5), graph)     or just "photos/"
    batches(["a.jpg", "b.jpg"], graph)                 a list of image files
    batches(iterable, graph)                           arrays, dicts or (image, label) tuples, each a sample or a batch;
                                                       of NumPy, PyTorch or anything else that is an array;
                                                       of any length where a size is open
    batches("samples/", graph)                         a folder of .npy or .npz files, each a sample or a batch

Everything streams: memory holds one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError
from qir.graph import Graph
from qir.types import Array, TensorType, is_float

from .array_rows import MOST_ROWS as BATCH
from .array_rows import Rows, each_file, only, rows_of, runs_of
from .images import Images
from .sample_axes import SampleAxes


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
    axes = SampleAxes.of(types)
    size = 1 if axes.whole else axes.fixed or batch_size or BATCH
    if (runs := runs_of(source, axes)) is not None:
        return Batches(lambda: _stream(iter(runs), axes, size, None if samples is None else samples * size), len(runs))
    found = rows_of(source, axes)
    if found is None:
        walk: Any = source
        if isinstance(source, Images):
            name = only(types, "a folder of images")
            return Batches(lambda: _stream(source.each(types[name]), axes, size, samples), None)
        if isinstance(source, str | Path):
            return Batches(lambda: _stream(each_file(Path(source)), axes, size, samples), None)
        return Batches(lambda: _stream(iter(walk), axes, size, samples), None, once=iter(walk) is walk)
    total = _common_count(found)
    count = total if samples is None else min(total, samples)
    if axes.fixed:
        if count < size:
            raise DataError(f"{count} samples, but the graph takes {size} at a time")
        count -= count % size
    return Batches(lambda: _read(found, axes, size, count), count)


def _common_count(found: Mapping[str, Rows]) -> int:
    counts = {rows.count for rows in found.values() if rows.count is not None}
    if len(counts) > 1:
        listed = ", ".join(f"{name} {rows.count}" for name, rows in found.items())
        raise DataError(f"inputs have different numbers of samples: {listed}")
    count = counts.pop() if counts else 0
    if count == 0:
        raise DataError("no samples")
    return count


def _read(found: Mapping[str, Rows], axes: SampleAxes, size: int, count: int) -> Iterator[dict[str, Array]]:
    for start in range(0, count, size):
        stop = min(start + size, count)
        part = axes.completed({name: rows.read(start, stop) for name, rows in found.items()})
        yield {name: check(array, axes.types[name], name, axes.axis[name]) for name, array in part.items()}


# -- iterables ------------------------------------------------------------------------------------
def _stream(items: Iterator[Any], axes: SampleAxes, size: int, samples: int | None) -> Iterator[dict[str, Array]]:
    """Samples or batches of any size, regrouped into batches of `size`; other lengths begin another batch."""
    waiting: list[dict[str, Array]] = []
    held = seen = 0
    for item in items:
        part = _item(item, axes)
        length = axes.count(part)
        if samples is not None and seen + length > samples:
            length = samples - seen
            part = {k: axes.cut(k, v, 0, length) for k, v in part.items()}
        if waiting and length and not axes.alike(waiting[0], part) and not axes.fixed:
            yield axes.joined(waiting)
            waiting, held = [], 0
        if length:
            waiting.append(part)
        held, seen = held + length, seen + length
        while held >= size and waiting:
            joined = axes.joined(waiting)
            yield {k: axes.cut(k, v, 0, size) for k, v in joined.items()}
            held -= size
            waiting = [{k: axes.cut(k, v, size, size + held) for k, v in joined.items()}] if held else []
        if samples is not None and seen >= samples:
            break
    if seen == 0:
        raise DataError("no samples", hint="the iterable is empty, or was used up before")
    if held and not axes.fixed:
        yield axes.joined(waiting)
    elif held == seen:
        raise DataError(f"{seen} samples, but the graph takes {size} at a time")


def _item(item: Any, axes: SampleAxes) -> dict[str, Array]:
    """One item of an iterable as arrays with a batch axis."""
    types = axes.types
    if isinstance(item, Mapping):
        given: Mapping[str, Any] = item
        _check_present(given, axes)  # more than the inputs (labels, names of files) may be there
        named = {name: as_array(given[name]) for name in types if name in given}
    elif isinstance(item, tuple | list) and _starts_with_inputs(item, types):
        named = {name: as_array(part) for name, part in zip(types, item, strict=False)}
    else:
        named = {only(types, "one array"): as_array(item)}
    for name, array in named.items():
        axis = axes.axis[name]
        if axis is not None and array.ndim == types[name].rank - 1:
            named[name] = np.expand_dims(array, axis)
    named = {name: check(array, types[name], name, axes.axis[name]) for name, array in named.items()}
    return axes.completed(named)


def _check_present(given: Mapping[str, Any], axes: SampleAxes) -> None:
    for name in axes.types:
        if name not in given and not axes.may_be_absent(name):
            have = ", ".join(map(str, given))
            raise DataError("is missing", where=f"input {name!r}", hint=f"the data have {have}")


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


def check(array: Array, type: TensorType, name: str, axis: int | None = 0) -> Array:
    """The batch as it is, if it fits the input's type (any number of samples along `axis`).  Raises DataError."""
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
    if len(want) != len(got) or any(
        isinstance(w, int) and w != g and i != axis for i, (w, g) in enumerate(zip(want, got, strict=True))
    ):
        hint = "add a batch axis in front" if len(got) == len(want) - 1 else None
        raise DataError(f"shape {list(want)} expected, {list(got)} given", where=where, hint=hint)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("holds NaN or infinity", where=where)
    return array
