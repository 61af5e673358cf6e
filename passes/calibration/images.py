"""A folder of images as a batch source (needs Pillow: the extra `images`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError
from qir.types import Array, TensorType

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Images:
    """All image files of `folder` (sub-folders too), in the order of their names; or a list of files, in its order.

    Each is cut to its central square of `crop` times the shorter side, resized (bicubic) to `size` (height, width;
    default: what the graph's input says), and becomes (pixel - mean) / std with pixels in [0, 255].
    mean, std: a number, or one a channel, in the order of `order`.  layout: "NCHW", "NHWC" or "auto" (from the
    input's shape).  order: "RGB" or "BGR".  skip_broken: leave unreadable images out
    (with a warning that names them) instead of raising DataError.  An input of dtype uint8 takes the pixels themselves.
    """

    folder: str | Path | Sequence[str | Path]
    size: int | tuple[int, int] | None = None
    crop: float = 0.875
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    layout: str = "auto"
    order: str = "RGB"
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if self.layout not in ("auto", "NCHW", "NHWC"):
            raise DataError(f"layout {self.layout!r}", hint="NCHW, NHWC or auto")
        if self.order not in ("RGB", "BGR"):
            raise DataError(f"channel order {self.order!r}", hint="RGB or BGR")
        if not 0 < self.crop <= 1:
            raise DataError(f"crop {self.crop} is not in (0, 1]")
        if not np.all(np.asarray(self.std) > 0):
            raise DataError(f"std {self.std} is not positive")

    def files(self) -> list[Path]:
        """The image files.  Raises DataError where there are none."""
        if not isinstance(self.folder, str | Path):
            listed = [Path(p) for p in self.folder]
            if not listed:
                raise DataError("no images", hint="the list of files is empty")
            return listed
        folder = Path(self.folder)
        if not folder.is_dir():
            raise DataError("no such folder", where=str(folder))
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise DataError("holds no images", where=str(folder), hint=f"known are {', '.join(sorted(SUFFIXES))}")
        return found

    def reader(self, type: TensorType) -> tuple[Callable[[int, int], Array], int]:
        """(rows [start, stop) as the input wants them, number of images).  Raises DataError."""
        image = _pillow()
        channels_first, channels, size = self._geometry(type)
        files = self.files()
        mean, std = (np.asarray(v, np.float32).reshape(-1) for v in (self.mean, self.std))
        for what, vector in (("mean", mean), ("std", std)):
            if len(vector) not in (1, channels):
                raise DataError(f"{len(vector)} values of {what} for {channels} channels")

        def read(start: int, stop: int) -> Array:
            pixels = np.stack([self._open(image, path, channels, size) for path in files[start:stop]])
            if self.order == "BGR" and channels == 3:
                pixels = pixels[..., ::-1]
            x = pixels if type.dtype.is_integer else ((pixels.astype(np.float32) - mean) / std)
            x = np.moveaxis(x, -1, 1) if channels_first else x
            return np.ascontiguousarray(x, dtype=type.dtype.numpy)

        return read, len(files)

    def each(self, type: TensorType) -> Iterator[Array]:
        """One image after the other, broken ones left out and named in the log."""
        read, count = self.reader(type)
        files, broken = self.files(), 0
        for i in range(count):
            try:
                yield read(i, i + 1)
            except DataError as error:
                if error.where != str(files[i]):
                    raise
                broken += 1
                log.warning("left out: %s", error)
        if broken == count:
            raise DataError(f"none of {count} images can be read", where=str(self.folder))

    def _geometry(self, type: TensorType) -> tuple[bool, int, tuple[int, int]]:
        """(channels first, channels, (height, width))."""
        if type.rank != 4:
            raise DataError(f"images for an input of shape {list(type.shape)}", hint="a rank of 4 is needed")
        first = self.layout == "NCHW" or (self.layout == "auto" and type.shape[1] in MODES)
        sizes = (*type.shape[2:], type.shape[1]) if first else type.shape[1:]
        height, width, channels = sizes
        if channels not in MODES:
            raise DataError(f"images with {channels} channels", hint="1, 3 or 4; is `layout` right?")
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        if isinstance(height, str) or isinstance(width, str) or isinstance(channels, str):
            raise DataError("the input's height and width are not fixed", hint="give `size`")
        return first, channels, (height, width)

    def _open(self, image: Any, path: Path, channels: int, size: tuple[int, int]) -> Array:
        """One image as (height, width, channels) uint8."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                raw = image.open(path)
            with raw:
                picture = raw.convert(MODES[channels])
        except FileNotFoundError:
            raise DataError("no such file", where=str(path)) from None
        except Exception as error:  # each format of Pillow's raises what it likes
            raise DataError(
                f"is no readable image: {error}", where=str(path), hint="skip_broken=True (--skip-broken) leaves it out"
            ) from None
        side = min(picture.size) * self.crop
        left, top = (picture.size[0] - side) / 2, (picture.size[1] - side) / 2
        box = (left, top, left + side, top + side)
        resized = picture.resize((size[1], size[0]), image.Resampling.BICUBIC, box=box)
        return np.asarray(resized, dtype=np.uint8).reshape(size[0], size[1], channels)


def _pillow() -> Any:
    """Pillow's Image module.  Raises DataError where it is not installed."""
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise DataError("reading images needs Pillow", hint="pip install qir[images]") from None
