"""How pixels become inputs: given by options, or remembered in the metadata of a model that was made with them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError
from qir.graph import Graph
from qir.passes.calibration.images import SUFFIXES, Images
from qir.passes.prepare.fold_normalization import METADATA as FOLDED

from .needs import need

METADATA = "qir.preprocessing"
"""JSON {mean, std, order, crop, size, layout}: what the images went through that a model was calibrated with."""

NOMINAL = {"NominalRange_0_255": (0.0, 1.0), "Normalized_0_1": (0.0, 255.0), "Normalized_1_1": (127.5, 127.5)}
"""Image.NominalPixelRange of ONNX's own image metadata -> (mean, std) of pixels."""


def is_images(path: Path) -> bool:
    """A folder (but one of arrays), a single image, or a .txt with a file a line."""
    if path.is_dir():
        return not any(p.suffix in (".npy", ".npz") for p in path.iterdir())
    return path.suffix.lower() in SUFFIXES or path.suffix.lower() == ".txt"


def remembered(graph: Graph) -> dict[str, Any]:
    """What a model's metadata say; empty where they say nothing (or nonsense: they may come from anywhere)."""
    found: dict[str, Any] = {}
    pixels = NOMINAL.get(graph.metadata.get("Image.NominalPixelRange", ""))
    if pixels:
        found = {"mean": [pixels[0]], "std": [pixels[1]]}
        if graph.metadata.get("Image.BitmapPixelFormat", "").lower().startswith("bgr"):
            found["order"] = "BGR"
    for raw in (graph.metadata.get(METADATA), _folded(graph)):
        try:
            found |= _checked(json.loads(raw)) if raw else {}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            continue
    return found


def _folded(graph: Graph) -> str | None:
    """mean and std of a normalization that went into the first layer."""
    try:
        entries = json.loads(graph.metadata.get(FOLDED, "{}"))
        return json.dumps({k: v for k, v in next(iter(entries.values())).items() if k in ("mean", "std")})
    except (ValueError, TypeError, AttributeError, StopIteration, RecursionError):
        return None


def _checked(raw: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {k: [float(v) for v in raw[k]] for k in ("mean", "std") if k in raw}
    if "crop" in raw:
        found["crop"] = float(raw["crop"])
    if raw.get("size"):
        height, width = raw["size"]
        found["size"] = (int(height), int(width))
    return found | {k: str(raw[k]) for k in ("order", "layout") if k in raw}


def images(args: argparse.Namespace, graph: Graph, *others: Graph, normalized: bool = True) -> Images:
    """--data as images; what no option says comes from the models' metadata, the first that knows it.

    Raises DataError where a float input is to be filled and nobody says how.
    """
    need("PIL", "reading images")
    known: dict[str, Any] = {}
    for one in (*others, graph):
        known = remembered(one) | known
    mean, std = args.mean or known.get("mean"), args.std or known.get("std")
    folder: Any = files_of(args.data) if args.data.is_file() else args.data
    found = Images(
        folder, size=args.size or known.get("size"), crop=args.crop or known.get("crop", 0.875),
        layout=args.layout or known.get("layout", "auto"), order="BGR" if args.bgr else known.get("order", "RGB"),
        mean=(mean or 0.0) if normalized else 0.0, std=(std or 1.0) if normalized else 1.0,
        skip_broken=args.skip_broken,
    )  # fmt: skip
    found.files()
    takes_reals = any(v.dtype.is_float or v.quant is not None for v in graph.inputs)
    if normalized and mean is None and std is None and takes_reals and not graph.metadata.get(FOLDED):
        raise DataError(
            "nobody says how pixels become this network's inputs", where=str(args.data),
            hint="give --mean and --std in pixels, e.g. --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375 "
            "(PyTorch's ImageNet), --mean 127.5 --std 127.5, or --mean 0 --std 1 for the pixels as they are",
        )  # fmt: skip
    return found


def files_of(path: Path) -> list[Path]:
    """The files that a .txt names, a line each, beside it where they are not absolute; or the one image."""
    if path.suffix.lower() != ".txt":
        return [path]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"is no list of files: {error}", where=str(path)) from None
    return [path.parent / line.strip() for line in lines if line.strip()]


def remember(graph: Graph, source: Images) -> None:
    """Write into a model's metadata how its calibration images became inputs."""
    mean, std = (np.ravel(v).tolist() for v in (source.mean, source.std))
    size = source.size if source.size is None or not isinstance(source.size, int) else (source.size, source.size)
    kept = {
        "mean": mean, "std": std, "order": source.order, "crop": source.crop,
        "size": None if size is None else list(size), "layout": source.layout,
    }  # fmt: skip
    graph.metadata[METADATA] = json.dumps(kept)
