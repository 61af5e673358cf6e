"""Convolutions and matrix products: tensor cores, the depthwise kernel or the direct one; one epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qir.errors import BackendError
from qir.types import Array

from ..arguments import CONV, DIRECT_CONV, EPILOGUE, record, scalar
from ..device.tensor_maps import SPANS, encodable, fits, image_map
from ..instances import (
    FOUR_BITS,
    MAPPED_ROWS,
    PATCH_CELLS,
    PATCH_COLUMNS,
    PATCH_ROWS,
    PATCH_STEPS,
    conv_tiles,
    kernel,
    specialised,
)  # fmt: skip
from ..planner.choices import MOST_BLOCKS, candidates, slices_of
from ..planner.fusion import Group
from ..planner.placement import CHUNK, SMALL, Placement, pixel_of_image
from ..planner.plan import Plan, shape_of
from ..program import PARTIAL_SUMS, Program
from .depthwise import depthwise
from .epilogue import epilogue
from .moving import copy
from .packing import centred, pack_weights, sums_of

MATMUL_SIDE = 64
"""Rows and columns of a tile of matmul.cu."""

LARGEST = 1 << 31
"""Cells of an image: the kernels count them in 32 bits (implicit_gemm.cuh, `origin`)."""


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
    out = plan.define(group.output, image=True)
    out_size = out.shape[2:] if pair else (1, out.shape[2])
    geometry = {
        "batch": x.shape[0], "height": size[0], "width": size[1], "out_height": out_size[0], "out_width": out_size[1],
        "kernel_h": kernel_hw[0], "kernel_w": kernel_hw[1], "stride_h": stride[0], "stride_w": stride[1],
        "dilation_h": dilation[0], "dilation_w": dilation[1], "pad_top": pads[0], "pad_left": pads[1],
    }  # fmt: skip
    w_s8 = centred(w, attrs["weight_zero_point"]) if len(attrs["pad_value"]) == 1 else None
    if w_s8 is not None and attrs["group"] == 1:
        geometry["pad_value"] = attrs["pad_value"][0]
        taps = np.moveaxis(w_s8.reshape(*w.shape[:2], -1), 1, 2)
        images = _chunked(plan, x, SMALL if w.shape[1] <= SMALL else CHUNK)
        _tensor_cores(plan, group, images, images.strides[-1], taps, w, geometry)
    elif w_s8 is not None and attrs["group"] == x.shape[1] == w.shape[0]:
        depthwise(plan, group, _chunked(plan, x, CHUNK), w_s8, {**geometry, "pad_value": attrs["pad_value"][0]})
    else:
        _direct(plan, group, x if pair else _lift(x), w, geometry)


def _tensor_cores(
    plan: Plan, group: Group, x: Placement, pixel_stride: int, taps: Array, origin: Array, geometry: dict[str, int],
    image: bool = True,
) -> None:  # fmt: skip
    """conv_igemm or conv_wgmma over x; K is split among blocks where the output alone gives too few."""
    value, weight = group.head.input(0), group.head.input(1)
    m, _, c = taps.shape
    pixels = geometry["batch"] * geometry["out_height"] * geometry["out_width"]
    cell = SMALL if image and c <= SMALL else CHUNK
    cells = geometry["batch"] * geometry["height"] * geometry["width"] * (pixel_stride // cell)
    if cells >= LARGEST:
        raise BackendError(
            f"an input of {cells * cell:,} bytes; a convolution addresses {LARGEST * cell:,}", where=str(group.head),
            hint="use a smaller batch",
        )  # fmt: skip
    # where there are no products of four bits, unpacking weights in the kernel costs more than it saves
    packed_cell = weight.dtype.bits == 4 and cell == CHUNK and plan.device.architecture in FOUR_BITS
    four = value.dtype.bits == 4
    tiles = conv_tiles(value.dtype.is_signed, cell, packed_cell, four, plan.device.architecture)
    wide, count = -(-c // cell) * cell, taps.shape[1]
    spans = [s for s in SPANS if plan.device.tensor_maps and fits(geometry, wide, s)]
    spans = [s for s in spans if encodable(image_map(0, geometry, wide, pixel_stride, MAPPED_ROWS, s))]
    tiles = [t for t in tiles if not t.tensor_map or t.cell in spans]
    fit = (
        patch_cells(geometry) <= PATCH_CELLS and count <= PATCH_STEPS * 8 and geometry["out_height"] >= PATCH_ROWS // 2
    )
    tiles = [t for t in tiles if not t.patch or fit]
    finish = epilogue(plan, group, image, sums_of(taps, value.dtype))
    ways = candidates(tiles, pixels, m, count * wide, count)
    if plan.device.specialises:
        ways = [replace(w, program=int(finish.program if w.splits == 1 else PARTIAL_SUMS)) for w in ways]
    choice = plan.choose(group, _key(group, geometry, m, c, pixel_stride), ways)
    tile, splits = choice.tile, choice.splits
    order = (id(origin), tile.cell, tile.packed, tile.warpgroup, tile.patch, tile.columns)
    packed = plan.packed.constant(pack_weights(taps, tile), order, origin)
    channels, slices = -(-m // tile.columns) * tile.columns, slices_of(tile, count * wide, count)
    grid = (-(-pixels // tile.rows), channels // tile.columns)
    if tile.patch:
        across, down = -(-geometry["out_width"] // PATCH_COLUMNS), -(-geometry["out_height"] // PATCH_ROWS)
        grid = (min(geometry["batch"] * across * down, MOST_BLOCKS), channels // tile.columns)
    fields = {
        **geometry, "out_channels": m, "channels": -(-c // tile.cell) * tile.cell, "k_padded": slices * tile.depth,
        "pixel_stride": pixel_stride, "split_slices": -(-slices // splits),
    }  # fmt: skip

    def launch(blocks: tuple[int, ...], end: Callable[[], Array]) -> None:
        def build() -> list[Array]:
            arguments = [record(CONV, x=x.pointer, w=packed.pointer, **fields), end()]
            if tile.tensor_map:
                view = image_map(x.pointer, geometry, wide, pixel_stride, tile.rows, tile.cell)
                arguments.append(plan.device.tensor_map(view))
            return arguments

        plan.launch(choice.kernel, blocks, build)

    if splits == 1:
        launch(grid, finish)
        return
    pitch = channels
    sums = plan.scratch((splits, pixels, pitch), np.dtype(np.int32))
    fields.update(split_step=pixels * pitch, out_channels=pitch)

    def partial() -> Array:
        return record(EPILOGUE, output=sums.pointer, output_stride=pitch, program=int(PARTIAL_SUMS))

    launch((*grid, splits), partial)
    count = pixels * -(-m // (CHUNK if finish.program & Program.NARROW else CHUNK // 2))
    last = kernel("finish_splits<>")
    plan.launch(
        specialised(last, int(finish.program)) if plan.device.specialises else last, (min(-(-count // 256), 65535),),
        lambda: [
            scalar("u8", sums.pointer), scalar("i4", splits), scalar("i8", pixels), scalar("i4", m),
            scalar("i4", pitch), finish(),
        ],
    )  # fmt: skip


def patch_cells(g: dict[str, int]) -> int:
    """Cells of a patch of conv_patch.cu: what a tile reaches, its rows in whole words of four."""
    rows = (PATCH_ROWS - 1) * g["stride_h"] + (g["kernel_h"] - 1) * g["dilation_h"] + 1
    columns = (PATCH_COLUMNS - 1) * g["stride_w"] + (g["kernel_w"] - 1) * g["dilation_w"] + 1
    return rows * (-(-(columns + -g["pad_left"] % 4) // 4) * 4)


def _key(group: Group, geometry: dict[str, int], m: int, c: int, pixel_stride: int) -> str:
    """What tells apart layers that can take different times."""
    x, w = group.head.input(0).dtype, group.head.input(1).dtype
    g = geometry
    residual = "" if group.residual is None else f"+{group.residual.dtype}"
    return (
        f"{x}x{w} {g['batch']}x{g['height']}x{g['width']}x{c} pitch {pixel_stride}"
        f" k{g['kernel_h']}x{g['kernel_w']} s{g['stride_h']}x{g['stride_w']} d{g['dilation_h']}x{g['dilation_w']}"
        f" -> {g['out_height']}x{g['out_width']}x{m} {group.output.dtype}{residual}{'+table' if group.table else ''}"
    )


def _direct(
    plan: Plan, group: Group, x: Placement, w: Array, geometry: dict[str, int], image: bool = True
) -> None:  # fmt: skip
    """Element by element: groups, a padding value for each channel, nine-bit weights."""
    attrs = group.head.attrs
    order = (0, *range(2, w.ndim), 1)
    direct = plan.packed.constant(np.ascontiguousarray(w.transpose(order)), (id(w), "direct"), w)
    pad_value = np.asarray(attrs.get("pad_value", [0]), np.int32)
    pad = plan.packed.constant(pad_value, (id(w), "pad value"), w)
    groups = attrs.get("group", 1)
    fields = {
        **geometry, "out_channels": w.shape[0], "group_in": w.shape[1], "group_out": w.shape[0] // groups,
        "weight_zero_point": attrs["weight_zero_point"], "pad_values": pad_value.size,
    }  # fmt: skip
    finish = epilogue(plan, group, image)
    count = geometry["batch"] * geometry["out_height"] * geometry["out_width"] * w.shape[0]
    plan.launch(
        kernel("conv_direct"), (min(-(-count // 256), 65535),),
        lambda: [record(DIRECT_CONV, pad_value=pad.pointer, **fields), x.view(), direct.view(), finish()],
    )  # fmt: skip


def _lift(x: Placement) -> Placement:
    """(N, C, L) as (N, C, 1, L)."""
    n, c, length = x.shape
    return Placement(x.storage, x.dtype, (n, c, 1, length), (x.strides[0], x.strides[1], 0, x.strides[2]), x.offset)


def _chunked(plan: Plan, x: Placement, unit: int) -> Placement:
    """x as images whose pixels are rows of `unit`-byte cells: itself, or a copy."""
    wide = -(-x.shape[1] // unit) * unit
    try:
        step, offset = pixel_of_image(x)
        if step % unit == 0 and offset % unit == 0 and step >= wide:
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
    depth, _ = w.shape
    rows = int(np.prod(x.shape[:-1]))
    plan.define(group.output, image=False)
    one = dict.fromkeys(
        ("batch", "height", "out_height", "kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1
    )
    geometry = {**one, "pad_top": 0, "pad_left": 0, "width": rows, "out_width": rows}
    wide = -(-depth // CHUNK) * CHUNK
    if not x.contiguous or wide != depth:
        flat = plan.scratch((*x.shape[:-1], wide), x.dtype)
        copy(plan, x, flat.part(len(x.shape) - 1, 0, depth))
        x = flat
    w_s8 = centred(w, node.attrs["weight_zero_point"])
    if w_s8 is not None:
        _tensor_cores(plan, group, x, wide, w_s8.T[:, None, :], w, {**geometry, "pad_value": 0}, image=False)
        return
    matrix = Placement(x.storage, x.dtype, (1, depth, 1, rows), (0, 1, 0, wide), x.offset)
    _direct(plan, group, matrix, w.T[:, :, None, None], geometry, image=False)


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

    *batch, rows, columns = out.shape
    if not int(np.prod(out.shape)):
        return
    grid = (-(-rows // MATMUL_SIDE), -(-columns // MATMUL_SIDE), min(int(np.prod(batch)), 65535))
    plan.launch(
        kernel("matmul_bytes"), grid,
        lambda: [
            shape_of(out.shape), a_rows.view(out.shape), b_cols.view(out.shape), out.view(), scalar("i4", depth),
            scalar("i8", a.strides[-1]), scalar("i8", b.strides[-2]), scalar("i4", attrs["a_zero_point"]),
            scalar("i4", attrs["b_zero_point"]),
        ],
    )  # fmt: skip


OPERATORS = {"qir.Conv": conv, "qir.MatMul": matmul, "qir.MatMulActivations": matmul_activations}
