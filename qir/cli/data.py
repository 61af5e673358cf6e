"""Models and data as the commands take them."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, named
from qir.files import regular, streamed
from qir.graph import Graph, Stage, Value
from qir.io import load
from qir.passes.calibration.array_rows import file_rows, npy_header
from qir.passes.calibration.data import Batches, batches
from qir.passes.calibration.sample_axes import SampleAxes
from qir.passes.prepare.fold_normalization import METADATA
from qir.runtime import default_backend
from qir.runtime.measure.compare import on_grid
from qir.types import Array, DType, TensorType

from . import show
from .needs import need_backend
from .preprocessing import images, is_images


def load_model(path: Path, shapes: Sequence[tuple[str, Sequence[int | str]]] = ()) -> Graph:
    """The graph of a file, its symbolic sizes fixed by --input-shape."""
    return load(path, input_shapes=dict(shapes))


def source(args: argparse.Namespace, graph: Graph, *others: Graph, normalized: bool = True) -> Any:
    """What --data names: a path, or images with their options (without --mean and --std on request).

    others: further models whose metadata may say how pixels become inputs.
    """
    if not is_images(args.data):
        return args.data
    return images(args, graph, *others, normalized=normalized)


def feeds(args: argparse.Namespace, graph: Graph, text: str, *others: Graph) -> show.Shown[dict[str, Array]]:
    """--data in batches that fit the graph's inputs, with a progress bar; floats are put on an integer input's grid."""
    given = dtypes(args.data)
    types = {v.name: as_given(graph, v, given) for v in graph.inputs}
    found = batches(source(args, graph, *others), types, batch_size=args.batch, samples=args.samples)
    if any(types[v.name] != v.type for v in graph.inputs):
        found = Batches(lambda plain=found: (on_grid(graph, b) for b in plain), found.samples)
    return shown(found, args.batch, text)


def as_given(graph: Graph, value: Value, given: Mapping[str, np.dtype[Any]]) -> TensorType:
    """The input's type, or float32 where it is quantized and the data are reals (images: unless it takes pixels)."""
    folded = value.name in graph.metadata.get(METADATA, "")
    dtype = given.get(value.name, given.get("*"))
    real = not folded if dtype is None else dtype.kind == "f"
    return replace(value.type, dtype=DType.FLOAT32, quant=None) if value.quant is not None and real else value.type


def dtypes(path: Path) -> dict[str, np.dtype[Any]]:
    """dtype of each array in a file ("*": of the only one), without reading it; nothing for what is no array file."""
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                found: dict[str, np.dtype[Any]] = {}
                for name in archive.namelist():
                    with archive.open(name) as file:
                        found[name.removesuffix(".npy")] = npy_header(file)[2]
                return {**found, "*": next(iter(found.values()))} if len(found) == 1 else found
        if path.is_file():
            with path.open("rb") as file:
                return {"*": npy_header(file)[2]}
    except Exception:  # of whatever class: reading it, through `batches`, will say what is wrong
        pass
    return {}


def pixel_batches(args: argparse.Namespace, graph: Graph) -> Batches:
    """--data as pixels for a graph whose normalization is folded: images, uint8 arrays, or normalized arrays undone."""
    if is_images(args.data):
        return batches(source(args, graph, normalized=False), graph, batch_size=args.batch, samples=args.samples)
    if len(graph.inputs) != 1:
        raise DataError("--fold-normalization is for models with one input", where=str(args.data))
    array = whole_array(args.data)
    if array.dtype != np.uint8:
        axis = 1 if array.ndim == 4 and array.shape[1] in (1, 3, 4) else array.ndim - 1
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        mean, std = (np.asarray(v, np.float32).reshape(shape) for v in (args.mean or (0.0,), args.std or (1.0,)))
        array = np.rint(array * std + mean)
        lo, hi = (float(f(array, initial=0)) for f in (np.min, np.max))
        if array.size and not (lo >= -1 and 1 < hi <= 256):
            raise DataError(
                f"times --std plus --mean, its numbers go from {lo:g} to {hi:g}: they are no pixels (0 to 255)",
                where=str(args.data), hint="give the --mean and --std, in pixels, that it was normalized with",
            )  # fmt: skip
        array = np.clip(array, 0, 255)
    return batches(array.astype(np.float32), graph, batch_size=args.batch, samples=args.samples)


def whole_array(path: Path) -> Array:
    """The one array of a .npy or .npz file.  Raises DataError."""
    if not path.exists():
        raise DataError("no such file or folder", where=str(path))
    kinds = dtypes(path)
    if len(kinds.keys() - {"*"}) > 1:
        raise DataError("holds more than one array", where=str(path), hint="--fold-normalization is for one input")
    rows = file_rows(path, SampleAxes.of({"x": TensorType(DType.FLOAT32, ("N",))})) or {}
    if "x" not in rows:
        raise DataError("is no array", where=str(path))
    found = rows["x"]
    with named(DataError, path, "cannot be read"):
        return found.read(0, found.count or 0)


def shown(found: Batches, size: int, text: str) -> show.Shown[dict[str, Array]]:
    total = None if found.samples is None else -(-found.samples // size)
    return show.Shown(found, text, total)


def collect(results: Iterator[Mapping[str, Array]]) -> dict[str, Array]:
    """Batches of outputs joined along the first axis; numbered (y.0, y.1 ...) where their other sizes differ."""
    parts = list(results)
    found: dict[str, Array] = {}
    for name in parts[0]:
        arrays = [np.atleast_1d(p[name]) for p in parts]
        if len({a.shape[1:] for a in arrays}) == 1:
            found[name] = np.concatenate(arrays)
        else:
            found |= {f"{name}.{i}": a for i, a in enumerate(arrays)}
    return found


def writable(path: Path, *inputs: Path, stream: bool = True) -> Path:
    """The path of a result.  Raises DataError at once, and not after an hour of work, where it cannot be written.

    stream: it may be the standard output; what the command says goes to stderr then.
    """
    if stream and streamed(path):
        show.to_stderr()
        return path
    if path.is_dir():
        raise DataError("is a folder", where=str(path), hint="give a file name")
    if not path.parent.is_dir():
        raise DataError("its folder does not exist", where=str(path), hint=f"mkdir -p {path.parent}")
    if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
        raise DataError("would overwrite its own input", where=str(path))
    regular(path, DataError)
    return path


def backend(args: argparse.Namespace, graph: Graph) -> str:
    """The backend asked for; else the fastest here that runs integer graphs, and onnxruntime for all others."""
    if args.backend:
        need_backend(args.backend)
        return args.backend
    return default_backend(graph) if graph.stage is Stage.INTEGER else "onnxruntime"


def like(args: argparse.Namespace) -> list[Graph]:
    """The model of --like, whose metadata say how pixels become inputs."""
    return [load_model(args.like)] if args.like else []
