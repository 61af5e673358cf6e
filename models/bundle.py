"""The trained networks and the digits that come with the package."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qir.errors import DataError
from qir.types import Array

FOLDER = Path(__file__).resolve().parent
MEAN, STD = 78.0, 96.0
"""Normalization of the digits' pixels: image = (pixel - MEAN) / STD."""


@dataclass(frozen=True)
class Digits:
    """Handwritten digits (scikit-learn's), pixels uint8 (n, 1, 8, 8) and labels int64 (n,).

    calibration: 256 images out of the training part.  test: 454 images that no training saw.
    """

    calibration_pixels: NDArray[np.uint8]
    calibration_labels: NDArray[np.int64]
    test_pixels: NDArray[np.uint8]
    test_labels: NDArray[np.int64]

    @property
    def calibration(self) -> Array:
        """Calibration images as the networks take them, float32 (256, 1, 8, 8)."""
        return normalize(self.calibration_pixels)

    @property
    def test(self) -> Array:
        """Test images as the networks take them, float32 (454, 1, 8, 8)."""
        return normalize(self.test_pixels)


def normalize(pixels: NDArray[np.uint8]) -> Array:
    return ((pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)


def digits() -> Digits:
    """The bundled images: no network, no scikit-learn needed."""
    with np.load(FOLDER / "digits.npz", allow_pickle=False) as archive:
        return Digits(*(archive[name] for name in Digits.__dataclass_fields__))


def bundled() -> dict[str, dict[str, Any]]:
    """{network: {"accuracy": held-out accuracy of the float network, "parameters": count, ...}}."""
    return json.loads((FOLDER / "digits.json").read_text(encoding="utf-8"))


def bundled_path(name: str) -> Path:
    """The .onnx file of a bundled network.  Raises DataError with the names there are."""
    path = FOLDER / f"{name}.onnx"
    if name not in bundled() or not path.is_file():
        raise DataError(f"no bundled network {name!r}", hint=f"there are {', '.join(bundled())}")
    return path
