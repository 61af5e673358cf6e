"""Convolutions and matrix products: the tensor-core kernel where it can, the direct one elsewhere; one epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.graph import Value
from qir.types import Array, DType

from ..arguments import CONV, DIRECT_CONV, EPILOGUE, record, scalar
from ..fusion import Group
from ..kernels import CONV_TILES, ConvTile, kernel
from ..placement import CHUNK, Placement
from ..plan import Plan
from .moving import copy

STORES = {4: 0, 1: 1, 2: 2}
"""Bytes of an output element -> enum Store of epilogue.cuh."""


def _table(group: Group, x: DType) -> Array | None:
    """The fused table, indexed by the low byte of its input."""
    if group.table is None:
        return None
    data = group.table.input(1).array()
    low = np.arange(256)
    return data[np.where(low < 128, low, low - 256) - x.lo] if x.is_signed else data[low]


def _epilogue(plan: Plan, group: Group, image: bool) -> Callable[[], Array]:
    """Builds struct Epilogue once addresses are known; the output is an image, or rows of a matrix."""
    node = group.head
    pixel = _pixel_of_image if image else _pixel_of_rows
    out = plan.define(group.output, image)
    fields: dict[str, Any] = {}
    held: dict[str, Placement] = {}
    bias = node.optional(2)
    if bias is not None:
        held["bias"] = plan.at(bias)
    if group.requantize is not None:
        attrs = group.requantize.attrs
        multiplier, shift = (np.ravel(group.requantize.input(i).array()) for i in (1, 2))
        size = max(multiplier.size, shift.size)
        for name, data in (("multiplier", multiplier), ("shift", shift)):
            source = group.requantize.input(1 if name == "multiplier" else 2).array()
            whole = np.ascontiguousarray(np.broadcast_to(data, (size,)))
            held[name] = (
                plan.packed.constant(whole, (id(source), "broadcast", size))
                if size != data.size
                else (plan.packed.constant(source))
            )
        fields.update(per_channel=int(size > 1), zero_point=attrs["zero_point"], lo=attrs["lo"], hi=attrs["hi"])
        x_dtype = group.requantize.output.dtype
    else:
        x_dtype = DType.INT32
    residual = group.residual
    if group.add is not None and residual is not None:
        held["residual"] = _like_output(plan, plan.at(residual), image)
        fields.update(_addition(group, residual))
        x_dtype = group.add.output.dtype
        fields["residual_stride"], fields["residual_offset"] = pixel(held["residual"])
    table = _table(group, x_dtype)
    if table is not None and group.table is not None:
        held["table"] = plan.packed.constant(table, (id(group.table.input(1).array()), "low byte"))
    fields["output_stride"], fields["output_offset"] = pixel(out)
    fields["store"] = STORES[out.dtype.itemsize]

    def build() -> Array:
        pointers = {name: p.storage.pointer for name, p in held.items()}
        return record(EPILOGUE, output=out.storage.pointer, **pointers, **fields)

    return build


def _like_output(plan: Plan, x: Placement, image: bool) -> Placement:
    """x, or a copy of it in a layout that the epilogue can read."""
    try:
        (_pixel_of_image if image else _pixel_of_rows)(x)
    except BackendError:
        n, c, *spatial = x.shape
        flat = plan.scratch((n, *spatial, c) if image else x.shape, x.dtype)
        rank = len(x.shape)
        moved = flat.permuted([0, rank - 1, *range(1, rank - 1)]) if image else flat
        copy(plan, x, moved)
        return moved
    return x


def _addition(group: Group, residual: Value) -> dict[str, Any]:
    """Fields of the fused qir.Add, its first operand being the convolution's value."""
    assert group.add is not None and group.requantize is not None
    a = group.add.attrs
    mine, other = ("a", "b") if group.add.input(0) is group.requantize.output else ("b", "a")
    m, r, shift = a[f"{mine}_multiplier"], a[f"{other}_multiplier"], a["shift"]
    constant = (1 << (shift - 1)) - a[f"{mine}_zero_point"] * m - a[f"{other}_zero_point"] * r
    return {
        "residual_bits": residual.dtype.numpy.itemsize * 8, "residual_signed": int(residual.dtype.is_signed),
        "add_constant": constant, "a_multiplier": m, "b_multiplier": r, "add_shift": shift,
        "add_zero": a["zero_point"], "add_lo": a["lo"], "add_hi": a["hi"],
    }  # fmt: skip


def _pixel_of_image(p: Placement) -> tuple[int, int]:
    """(stride between pixels, offset) of a tensor of images; its pixels must follow one another evenly."""
    if len(p.shape) == 2:
        return p.strides[0], p.offset
    step = p.strides[-1]
    expected = step
    for i in range(len(p.shape) - 1, 1, -1):
        if p.shape[i] > 1 and p.strides[i] != expected:
            raise BackendError("an image in a layout that the convolution cannot write")
        expected *= p.shape[i]
    if (p.shape[0] > 1 and p.strides[0] != expected) or p.strides[1] != 1:
        raise BackendError("an image in a layout that the convolution cannot write")
    return step, p.offset


def _tile(pixels: int, channels: int, signed: bool) -> ConvTile:
    """The largest tile that still leaves some 200 blocks, without wasting most of its columns."""
    tiles = [t for t in CONV_TILES[signed] if t.columns <= max(64, -(-channels // 64) * 64)]
    big = [t for t in tiles if -(-pixels // t.rows) * -(-channels // t.columns) >= 200]
    return max(big or tiles[:1], key=lambda t: t.rows * t.columns)


def _pack(w_mkc: Array, tile: ConvTile) -> Array:
    """(M, taps, C) weights -> (M rounded up to the tile, K rounded up to 64), channels padded to 16."""
    m, taps, c = w_mkc.shape
    padded = -(-c // CHUNK) * CHUNK
    k = taps * padded
    out = np.zeros((-(-m // tile.columns) * tile.columns, -(-k // 64) * 64), np.int8)
    wide = np.zeros((m, taps, padded), np.int8)
    wide[..., :c] = w_mkc
    out[:m, :k] = wide.reshape(m, k)
    return out


def _two_dimensional(values: list[int], pair: bool, fill: int) -> tuple[int, int]:
    """(height, width) numbers of a 1-D or 2-D attribute."""
    return (values[0], values[1]) if pair else (fill, values[0])


def conv(plan: Plan, group: Group) -> None:
    """qir.Conv, with whatever is fused behind it."""
    node, attrs = group.head, group.head.attrs
    x, w = plan.at(node.input(0)), node.input(1).array()
    pair = w.ndim == 4
    kernel_hw = _two_dimensional(list(w.shape[2:]), pair, 1)
    stride = _two_dimensional(attrs["strides"], pair, 1)
    dilation = _two_dimensional(attrs["dilations"], pair, 1)
    pads = _two_dimensional(attrs["pads"][: w.ndim - 2], pair, 0)
    size = x.shape[2:] if pair else (1, x.shape[2])
    finish = _epilogue(plan, group, image=True)
    out = plan.placements[group.output]
    out_size = out.shape[2:] if pair else (1, out.shape[2])
    geometry = {
        "batch": x.shape[0], "height": size[0], "width": size[1], "out_height": out_size[0], "out_width": out_size[1],
        "out_channels": w.shape[0], "kernel_h": kernel_hw[0], "kernel_w": kernel_hw[1], "stride_h": stride[0],
        "stride_w": stride[1], "dilation_h": dilation[0], "dilation_w": dilation[1], "pad_top": pads[0],
        "pad_left": pads[1],
    }  # fmt: skip
    if _tensor_cores(w, attrs, node.input(0).dtype):
        images = _chunked(plan, x)
        pixels = x.shape[0] * out_size[0] * out_size[1]
        tile = _tile(pixels, w.shape[0], node.input(0).dtype.is_signed)
        taps = np.moveaxis(w.reshape(*w.shape[:2], -1), 1, 2)
        packed = plan.packed.constant(_pack(taps, tile), (id(w), "conv", tile.columns))
        geometry.update(
            channels=-(-w.shape[1] // CHUNK) * CHUNK, k_padded=packed.shape[1], pad_value=attrs["pad_value"][0],
            pixel_stride=images.strides[-1],
        )  # fmt: skip
        grid = (-(-pixels // tile.rows), packed.shape[0] // tile.columns)
        plan.launch(tile, grid, lambda: [record(CONV, x=images.pointer, w=packed.pointer, **geometry), finish()])
        return
    order = (0, *range(2, w.ndim), 1)
    direct = plan.packed.constant(np.ascontiguousarray(w.transpose(order)), (id(w), "direct"))
    pad_value = np.asarray(attrs["pad_value"], np.int32)
    pad = plan.packed.constant(pad_value, (id(w), "pad value"))
    geometry.update(
        group_in=w.shape[1], group_out=w.shape[0] // attrs["group"], weight_zero_point=attrs["weight_zero_point"],
        pad_values=pad_value.size,
    )  # fmt: skip
    count = x.shape[0] * out_size[0] * out_size[1] * w.shape[0]
    view = x if pair else _lift(x)
    plan.launch(
        kernel("conv_direct"), (min(-(-count // 256), 65535),),
        lambda: [record(DIRECT_CONV, pad_value=pad.pointer, **geometry), view.view(), direct.view(), finish()],
    )  # fmt: skip


def _lift(x: Placement) -> Placement:
    """(N, C, L) as (N, C, 1, L)."""
    n, c, length = x.shape
    return Placement(x.storage, x.dtype, (n, c, 1, length), (x.strides[0], x.strides[1], 0, x.strides[2]), x.offset)


def _tensor_cores(w: Array, attrs: dict[str, Any], dtype: DType) -> bool:
    """Whether the implicit-GEMM kernel multiplies these operands."""
    plain = attrs["group"] == 1 and len(attrs["pad_value"]) == 1 and attrs["weight_zero_point"] == 0
    return plain and w.dtype == np.int8 and dtype.bits <= 8


def _chunked(plan: Plan, x: Placement) -> Placement:
    """x as images whose pixels are rows of 16-byte chunks: itself, or a copy."""
    wide = -(-x.shape[1] // CHUNK) * CHUNK
    try:
        step, offset = _pixel_of_image(x)
        if step % CHUNK == 0 and offset % CHUNK == 0 and step >= wide:
            return x
    except BackendError:
        pass
    n, c, *spatial = x.shape
    rank = len(x.shape)
    flat = plan.scratch((n, *spatial, wide), x.dtype)
    moved = flat.permuted([0, rank - 1, *range(1, rank - 1)]).part(1, 0, c)
    copy(plan, x, moved)
    return moved


def matmul(plan: Plan, group: Group) -> None:
    """qir.MatMul with constant weights: a 1x1 convolution over rows, on a copy padded to 16 where needed."""
    node = group.head
    x, w = plan.at(node.input(0)), node.input(1).array()
    depth, columns = w.shape
    rows = int(np.prod(x.shape[:-1]))
    if node.attrs["weight_zero_point"] or w.dtype != np.int8:
        raise BackendError("weights with a zero point are not supported by the CUDA matrix product", where=str(node))
    wide = -(-depth // CHUNK) * CHUNK
    if not x.contiguous or wide != depth:
        flat = plan.scratch((*x.shape[:-1], wide), x.dtype)
        target = flat.part(len(x.shape) - 1, 0, depth)
        copy(plan, x, target)
        x = flat
    finish = _epilogue(plan, group, image=False)
    tile = _tile(rows, columns, node.input(0).dtype.is_signed)
    packed = plan.packed.constant(_pack(w.T[:, None, :], tile), (id(w), "matmul", tile.columns))
    one = dict.fromkeys(
        ("batch", "height", "out_height", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1
    )
    geometry = {
        **one, "width": rows, "out_width": rows, "out_channels": columns, "channels": wide, "pixel_stride": wide,
        "k_padded": packed.shape[1],
    }  # fmt: skip
    grid = (-(-rows // tile.rows), packed.shape[0] // tile.columns)
    final = x
    plan.launch(tile, grid, lambda: [record(CONV, x=final.pointer, w=packed.pointer, **geometry), finish()])


def _pixel_of_rows(p: Placement) -> tuple[int, int]:
    if not p.contiguous:
        raise BackendError("a matrix in a layout that the product cannot write")
    return p.shape[-1], 0


def matmul_activations(plan: Plan, group: Group) -> None:
    """qir.MatMulActivations: batched, broadcast, strided."""
    node = group.head
    a, b, out = plan.at(node.input(0)), plan.at(node.input(1)), plan.define(node.output)
    attrs = node.attrs
    if min(len(a.shape), len(b.shape)) < 2:
        raise BackendError("products of vectors are not supported", where=str(node))
    depth = a.shape[-1]
    a_rows = Placement(a.storage, a.dtype, (*a.shape[:-1], 1), (*a.strides[:-1], 0), a.offset)
    b_cols = Placement(
        b.storage, b.dtype, (*b.shape[:-2], 1, b.shape[-1]), (*b.strides[:-2], 0, b.strides[-1]), b.offset
    )
    plan.elements(
        "matmul_activations", out.shape,
        lambda: [
            a_rows.view(out.shape), b_cols.view(out.shape), out.view(), scalar("i4", depth),
            scalar("i8", a.strides[-1]), scalar("i8", b.strides[-2]), scalar("i4", attrs["a_zero_point"]),
            scalar("i4", attrs["b_zero_point"]),
        ],
    )  # fmt: skip


OPERATORS = {"qir.Conv": conv, "qir.MatMul": matmul, "qir.MatMulActivations": matmul_activations}
