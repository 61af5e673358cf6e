"""Sliding windows: pads, output sizes and strided views shared by convolution and pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import TypeInferenceError
from ..types import Array


def resolve_pads(
    spatial: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]
) -> tuple[list[int], list[int], list[int]]:
    """(pads [begin..., end...], strides, dilations) with auto_pad and defaults resolved.

    spatial: input sizes; kernel: window sizes.
    """
    rank = len(kernel)
    strides = list(attrs.get("strides") or [1] * rank)
    dilations = list(attrs.get("dilations") or [1] * rank)
    auto = attrs.get("auto_pad", "NOTSET")
    if len(spatial) != rank or len(strides) != rank or len(dilations) != rank:
        raise TypeInferenceError(f"{rank}-D kernel on {len(spatial)} spatial axes")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begins: list[int] = []
        ends: list[int] = []
        for size, k, s, d in zip(spatial, kernel, strides, dilations, strict=True):
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small = total // 2
            begins.append(small if auto == "SAME_UPPER" else total - small)
            ends.append(total - begins[-1])
        return begins + ends, strides, dilations
    pads = list(attrs.get("pads") or [0] * (2 * rank)) if auto != "VALID" else [0] * (2 * rank)
    if len(pads) != 2 * rank:
        raise TypeInferenceError(f"{len(pads)} pads for {rank} spatial axes")
    return pads, strides, dilations


def out_size(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int) -> int:
    """Number of windows that fit (floor).  Raises TypeInferenceError when none does."""
    room = size + begin + end - ((kernel - 1) * dilation + 1)
    if room < 0:
        raise TypeInferenceError(f"a window of {kernel} (dilation {dilation}) does not fit into {size}+{begin}+{end}")
    return room // stride + 1


@dataclass(frozen=True)
class PoolGeometry:
    """A pooling's windows: the padding that was asked for, the padding that all windows need, their number."""

    asked: tuple[tuple[int, int], ...]
    widths: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    out: tuple[int, ...]

    def counts(self, spatial: Sequence[int], kernel: Sequence[int], include_pad: bool) -> Array:
        """Elements that each window averages over, int64 of shape `out`.

        What ceil_mode adds beyond the asked padding never counts.
        """
        total = np.ones((), np.int64)
        for i, size in enumerate(spatial):
            begin, end = self.asked[i] if include_pad else (0, 0)
            starts = np.arange(self.out[i]) * self.strides[i] - self.widths[i][0]
            taps = starts[:, None] + np.arange(kernel[i]) * self.dilations[i]
            inside = ((taps >= -begin) & (taps < size + end)).sum(axis=1).astype(np.int64)
            total = total[..., None] * inside
        return total


def pool_geometry(spatial: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]) -> PoolGeometry:
    """Windows of a pooling.  ceil_mode adds a last window where it starts inside the input or its begin padding."""
    pads, strides, dilations = resolve_pads(spatial, kernel, attrs)
    rank = len(kernel)
    asked = tuple((pads[i], pads[rank + i]) for i in range(rank))
    out: list[int] = []
    widths: list[tuple[int, int]] = []
    for size, k, s, d, (begin, end) in zip(spatial, kernel, strides, dilations, asked, strict=True):
        span = (k - 1) * d + 1
        count = out_size(size, k, s, d, begin, end)
        if attrs.get("ceil_mode") and attrs.get("auto_pad", "NOTSET") == "NOTSET":
            count = -(-(size + begin + end - span) // s) + 1
            if (count - 1) * s >= size + begin:
                count -= 1
        out.append(count)
        widths.append((begin, max(end, (count - 1) * s + span - size - begin)))
    return PoolGeometry(asked, tuple(widths), tuple(strides), tuple(dilations), tuple(out))


def conv_output(x: Sequence[int], w: Sequence[int], attrs: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of a convolution's output from x (N, C, *spatial) and w (M, C/group, *kernel)."""
    declared = attrs.get("kernel_shape")
    if declared is not None and list(declared) != list(w[2:]):
        raise TypeInferenceError(f"kernel_shape {list(declared)} but w is {list(w)}")
    pads, strides, dilations = resolve_pads(x[2:], w[2:], attrs)
    rank = len(w) - 2
    sizes = [out_size(x[2 + i], w[2 + i], strides[i], dilations[i], pads[i], pads[rank + i]) for i in range(rank)]
    return (x[0], w[0], *sizes)


def windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """View (N, C, *out, *kernel) of an already padded x (N, C, *spatial)."""
    rank = len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    pick = (
        slice(None),
        slice(None),
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    return view[pick]
