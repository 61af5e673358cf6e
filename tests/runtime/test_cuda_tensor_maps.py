"""Tensor maps: what the driver is asked for, and which layers they suit."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from qir.errors import BackendError
from qir.runtime.cuda.device.tensor_maps import BYTES, encodable, encode, fits, image_map

SQUARE = {
    "batch": 5, "height": 14, "width": 14, "out_height": 7, "out_width": 7, "kernel_h": 3, "kernel_w": 3,
    "stride_h": 2, "stride_w": 2, "dilation_h": 1, "dilation_w": 1, "pad_top": 1, "pad_left": 1, "pad_value": 0,
}  # fmt: skip


class Driver:
    """Writes its arguments down, and 1, 2, 3 ... into the map."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.given: list[Any] = []

    def cuTensorMapEncodeIm2col(self, *arguments: Any) -> int:
        self.given = [list(a) if isinstance(a, ctypes.Array) else a.value for a in arguments]
        assert self.given[0] % 64 == 0
        ctypes.memmove(self.given[0], np.arange(BYTES, dtype=np.uint8).ctypes.data, BYTES)
        return self.status


def test_the_driver_is_told_the_image_innermost_axis_first() -> None:
    driver = Driver()
    found = encode(image_map(4096, SQUARE, 128, 144, 128), driver)
    np.testing.assert_array_equal(found, np.arange(BYTES))
    assert driver.given[1:] == [
        0, 4, 4096, [128, 14, 14, 5], [144, 144 * 14, 144 * 14 * 14],
        [-1, -1], [-2, -2],  # seven windows, two apart: the last begins at 11, two before the last pixel
        128, 128, [1, 2, 2, 1], 0, 3, 2, 0,
    ]  # fmt: skip


def test_a_refusal_is_an_error() -> None:
    with pytest.raises(BackendError, match="error 1"):
        encode(image_map(4096, SQUARE, 128, 144, 128), Driver(status=1))


@pytest.mark.parametrize(
    ("change", "channels", "suits"),
    [
        ({}, 128, True),
        ({"pad_value": 3}, 128, False),
        ({"pad_value": 3, "pad_top": 0, "pad_left": 0, "out_height": 6, "out_width": 6}, 128, True),
        ({"pad_value": 3, "pad_top": 0, "pad_left": 0}, 128, False),  # the last windows reach outside
        ({"pad_left": 0}, 128, False),
        ({"kernel_h": 1, "kernel_w": 7, "pad_left": 3, "pad_top": 0}, 128, False),
        ({"stride_h": 9, "stride_w": 9, "out_height": 2, "out_width": 2}, 128, False),
        ({}, 64, False),  # nine taps of 64 would become nine of 128
        ({}, 112, True),
        ({"kernel_h": 1, "kernel_w": 1, "pad_top": 0, "pad_left": 0}, 64, True),
        ({"dilation_h": 200, "dilation_w": 200, "pad_top": 200, "pad_left": 200}, 128, False),
    ],
)
def test_which_layers_they_suit(change: dict[str, int], channels: int, suits: bool) -> None:
    assert fits({**SQUARE, **change}, channels) is suits


@pytest.mark.parametrize(
    ("change", "pixel_stride", "made"),
    [
        ({}, 128, True),
        ({}, 136, False),  # strides are multiples of 16
        ({}, 112, False),  # pixels one after the other
        ({"batch": 1 << 33}, 128, False),
        ({"height": 1 << 30, "width": 1 << 9, "out_height": 1 << 29, "out_width": 1 << 8}, 128, False),  # 2^40 bytes
        ({"stride_h": 9, "stride_w": 9, "out_height": 2, "out_width": 2}, 128, False),
        ({"pad_top": 129, "pad_left": 129}, 128, False),
        ({"height": 1, "width": 1, "out_height": 1, "out_width": 1, "stride_h": 1, "stride_w": 1}, 128, False),
    ],
)
def test_what_the_driver_makes(change: dict[str, int], pixel_stride: int, made: bool) -> None:
    """By rule, not by trying: a call in vain is an error to compute-sanitizer."""
    assert encodable(image_map(0, {**SQUARE, **change}, 128, pixel_stride, 128)) is made
