"""Reverse-mode rules, part two: convolutions, poolings, Resize, and the operators that only move elements.

A sliding window is walked tap by tap: each tap is a strided slice of the padded input, so that the gradient of one
tap is a matrix product (or a product, where each channel is on its own) added to the same slice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from qir.ops import REGISTRY, op_of
from qir.ops.resampling import linear_taps, nearest_index, outside, resized_axes
from qir.ops.windows import PoolGeometry, pool_geometry, resolve_pads
from qir.types import Array

from .gradient_rules import RULES, Arrays, Attrs, Rule, rule, some

Cut = tuple[slice, ...]


def taps(kernel: Sequence[int], out: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Iterator[Cut]:
    """For each tap (row-major over the kernel) the slice of a padded (N, C, *spatial) that all windows meet it at."""
    for place in itertools.product(*(range(k) for k in kernel)):
        steps = zip(place, out, strides, dilations, strict=True)
        yield (slice(None), slice(None), *(slice(i * d, i * d + (n - 1) * s + 1, s) for i, n, s, d in steps))


def conv_gradients(
    x: Array, w: Array, d: Array, attrs: Attrs, needed: Sequence[bool]
) -> tuple[Array | None, Array | None]:
    """(dx, dw) of y = conv(x, w): x (N, C, *s), w (M, C/group, *k), d the gradient of y."""
    pads, strides, dilations = resolve_pads(x.shape[2:], w.shape[2:], attrs)
    rank, group = w.ndim - 2, int(attrs["group"])
    n, m, cg = len(x), w.shape[0], w.shape[1]
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(x, widths)
    out = d.shape[2:]
    dxp = np.zeros_like(padded) if needed[0] else None
    dw = np.zeros((m, cg, int(np.prod(w.shape[2:]))), w.dtype) if needed[1] else None
    flat_w = w.reshape(m, cg, -1)
    depthwise = cg == 1 and m == group
    rows = d.reshape(n, group, m // group, -1)
    for t, cut in enumerate(taps(w.shape[2:], out, strides, dilations)):
        if depthwise:
            if dw is not None:
                dw[:, 0, t] = (padded[cut] * d).sum((0, *range(2, d.ndim)))
            if dxp is not None:
                dxp[cut] += d * flat_w[:, 0, t].reshape(1, -1, *[1] * rank)
            continue
        if dw is not None:
            part = padded[cut].reshape(n, group, cg, -1)
            dw[:, :, t] = np.matmul(rows, np.swapaxes(part, 2, 3)).sum(0).reshape(m, cg)
        if dxp is not None:
            kernel = np.ascontiguousarray(np.swapaxes(flat_w[:, :, t].reshape(group, m // group, cg), 1, 2))
            dxp[cut] += np.matmul(kernel[None], rows).reshape(n, group * cg, *out)
    dx = None
    if dxp is not None:
        inner = tuple(slice(a, size - b) for (a, b), size in zip(widths, padded.shape, strict=True))
        dx = dxp[inner]
    return dx, None if dw is None else dw.reshape(w.shape)


@rule("Conv")
def _conv(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, w, d = some(xs[0]), some(xs[1]), some(ds[0])
    found: list[Array | None] = [*conv_gradients(x, w, d, a, needed)]
    if len(xs) > 2 and xs[2] is not None:
        found.append(d.sum((0, *range(2, d.ndim))))
    return found


@rule("ConvTranspose")
def _conv_transpose(
    a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]
) -> list[Array | None]:
    """y = conv_transpose(x, w) is the transpose of d -> conv(d, w), so its own transpose is that convolution."""
    x, w, d = some(xs[0]), some(xs[1]), some(ds[0])
    rank = w.ndim - 2
    strides = list(a["strides"] or [1] * rank)
    dilations = list(a["dilations"] or [1] * rank)
    extra = list(a["output_padding"] or [0] * rank)
    full = [
        (n - 1) * s + (k - 1) * q + 1 + e
        for n, s, k, q, e in zip(x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True)
    ]
    total = [f - n for f, n in zip(full, d.shape[2:], strict=True)]  # what the padding cut off
    upper = a["auto_pad"] != "SAME_LOWER"
    if a["auto_pad"] == "NOTSET" and not a["output_shape"]:
        begins = list(a["pads"] or [0] * (2 * rank))[:rank]
    else:
        begins = [t // 2 if upper else t - t // 2 for t in total]
    # the end pads as well what output_padding added: those positions saw no tap, the floor of the size drops them
    ends = [t - b for t, b in zip(total, begins, strict=True)]
    conv = {
        "pads": [*begins, *ends], "strides": strides, "dilations": dilations, "group": a["group"], "auto_pad": "NOTSET",
    }  # fmt: skip
    dx = op_of("Conv").reference({**conv, "kernel_shape": None}, d, w)[0] if needed[0] else None
    dw = conv_gradients(d, w, x, conv, (False, True))[1] if needed[1] else None
    found: list[Array | None] = [dx, dw]
    if len(xs) > 2 and xs[2] is not None:
        found.append(d.sum((0, *range(2, d.ndim))))
    return found


# -- poolings -------------------------------------------------------------------------------------
def _scatter(x: Array, g: PoolGeometry, kernel: Sequence[int], shares: Iterator[Array]) -> Array:
    """Sum of each tap's share of the windows' gradients at the pixels it came from."""
    padded = np.zeros([n + sum(w) for n, w in zip(x.shape, [(0, 0), (0, 0), *g.widths], strict=True)], x.dtype)
    for cut, share in zip(taps(kernel, g.out, g.strides, g.dilations), shares, strict=True):
        padded[cut] += share
    inner = tuple(slice(a, a + n) for (a, _), n in zip(g.widths, x.shape[2:], strict=True))
    return padded[(slice(None), slice(None), *inner)]


@rule("AveragePool")
def _average_pool(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, kernel = some(xs[0]), a["kernel_shape"]
    g = pool_geometry(x.shape[2:], kernel, a)
    counts = np.maximum(g.counts(x.shape[2:], kernel, bool(a["count_include_pad"])), 1)
    share = (some(ds[0]) / counts).astype(x.dtype)
    return [_scatter(x, g, kernel, itertools.repeat(share, int(np.prod(kernel))))]


@rule("MaxPool")
def _max_pool(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    """The whole gradient to the first maximum of each window."""
    x, kernel, d = some(xs[0]), a["kernel_shape"], some(ds[0])
    g = pool_geometry(x.shape[2:], kernel, a)
    padded = np.pad(x, [(0, 0), (0, 0), *g.widths], constant_values=-np.inf)

    def shares() -> Iterator[Array]:
        left = np.ones(d.shape, bool)
        for cut in taps(kernel, g.out, g.strides, g.dilations):
            hit = left & (padded[cut] == ys[0])
            left &= ~hit
            yield d * hit

    return [_scatter(x, g, kernel, shares())]


@rule("GlobalAveragePool")
def _global_average(
    a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]
) -> list[Array | None]:
    x = some(xs[0])
    return [np.broadcast_to(some(ds[0]) / np.prod(x.shape[2:]), x.shape).astype(x.dtype)]


@rule("GlobalMaxPool")
def _global_max(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    hit = some(xs[0]) == ys[0]
    return [hit * (some(ds[0]) / hit.sum(axis=tuple(range(2, hit.ndim)), keepdims=True))]


# -- resampling -----------------------------------------------------------------------------------
def _add_at(d: Array, index: Array, axis: int, size: int) -> Array:
    """The transpose of np.take(x, index, axis) for an axis of `size`."""
    result = np.zeros((*d.shape[:axis], size, *d.shape[axis + 1 :]), d.dtype)
    np.add.at(np.moveaxis(result, axis, 0), index, np.moveaxis(d, axis, 0))
    return result


@rule("Resize")
def _resize(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x, d = some(xs[0]), some(ds[0])
    given = [xs[i] if i < len(xs) else None for i in (1, 2, 3)]
    axes = resized_axes(a, x.shape, *given)
    for axis in axes:
        along = [1] * x.ndim
        along[axis.index] = -1
        d = d * ~outside(a, axis).reshape(along)
    for axis in reversed(axes):
        if a["mode"] == "nearest":
            d = _add_at(d, nearest_index(a, axis), axis.index, axis.size)
            continue
        along = [1] * x.ndim
        along[axis.index] = -1
        if axis.size != axis.out or axis.scale != 1 or axis.roi != (0.0, 1.0):
            low, high, weight = linear_taps(a, axis)
            w = weight.reshape(along).astype(d.dtype)
            d = _add_at(d * (1 - w), low, axis.index, axis.size) + _add_at(d * w, high, axis.index, axis.size)
    return [d, *[None] * (len(xs) - 1)]


# -- movement -------------------------------------------------------------------------------------
RESHAPES = [name for name, op in REGISTRY.items() if op.keeps_order]


def _move(name: str) -> Rule:
    """Send the elements' numbers through the operator: they say where each result came from."""

    def backward(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
        x = some(xs[0])
        numbers = np.arange(1, x.size + 1).reshape(x.shape)  # 0 is what padding puts in
        rest = [None if name == "Pad" and i == 1 else v for i, v in enumerate(xs[1:])]
        total = np.zeros(x.size + 1)
        for source, d in zip(op_of(name).reference(a, numbers, *rest), ds, strict=False):
            if d is not None:
                total += np.bincount(source.reshape(-1), d.reshape(-1), x.size + 1)
        return [total[1:].reshape(x.shape).astype(x.dtype), *[None] * (len(xs) - 1)]

    return backward


@rule(*RESHAPES)
def _reshape(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    return [some(ds[0]).reshape(some(xs[0]).shape), *[None] * (len(xs) - 1)]


@rule("TopK")
def _top_k(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    x = some(xs[0])
    result = np.zeros_like(x)
    np.put_along_axis(result, ys[1].astype(np.int64), some(ds[0]), axis=int(a["axis"]))
    return [result, None]


@rule("Concat")
def _concat(a: Attrs, xs: Arrays, ys: Sequence[Array], ds: Arrays, needed: Sequence[bool]) -> list[Array | None]:
    ends = np.cumsum([some(x).shape[a["axis"]] for x in xs])[:-1]
    return list(np.split(some(ds[0]), ends, axis=a["axis"]))


RULES.update({name: _move(name) for name, op in REGISTRY.items() if op.moves and not op.keeps_order})
