"""Every kernel instance that a launcher can ask for: the list that CI compiles for each architecture and emulates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from typing import TypeVar

from .program import PLAIN as PLAIN_PROGRAM
from .program import SAMPLES, STREAM

ARCHITECTURES = ("75", "80", "86", "89", "90a")
"""Compute capabilities that the kernels are compiled for in CI."""

FOUR_BITS = ("75", "80", "86", "89")
"""Those with native products of four bits; later ones emulate them."""

SHARED_LIMIT = {"75": 64 << 10, "80": 163 << 10, "86": 99 << 10, "89": 99 << 10, "90a": 227 << 10}
"""Shared memory that one block can have, in bytes  [CUDA Programming Guide, compute capabilities]."""


@dataclass(frozen=True)
class Kernel:
    """One instance: the source file under kernels/, the C++ name expression, and its block size."""

    source: str
    expression: str
    threads: int = 256
    architectures: tuple[str, ...] = ARCHITECTURES  # those that it is made for
    program: int = -1  # that of its epilogue, if it is compiled for one

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of one block."""
        return 0


K = TypeVar("K", bound=Kernel)


def specialised(kernel: K, program: int) -> K:
    """The instance compiled for one epilogue's program (program.cuh), of a kernel that has one for all."""
    given = kernel.expression.removesuffix(">")
    return replace(kernel, expression=f"{given}{'' if given.endswith('<') else ', '}{program}u>", program=program)


@dataclass(frozen=True)
class ConvTile(Kernel):
    """A tile shape of a tensor-core convolution.

    cell, packed: see conv_igemm.cu.  warpgroup: conv_wgmma.cu, with its own order of weights and slices of K;
    tensor_map: its kernel that reads the image through one.  four: native four-bit products.
    patch: conv_patch.cu, whose rows are pixels of a patch.
    """

    rows: int = 64
    columns: int = 64
    stages: int = 3
    cell: int = 16
    packed: bool = False
    warpgroup: bool = False
    tensor_map: bool = False
    four: bool = False
    patch: bool = False

    @property
    def depth(self) -> int:
        """K's of one slice: what the K of weights is rounded up to."""
        return 128 if self.warpgroup else 32 if self.patch else 64

    @property
    def shared_bytes(self) -> int:
        if self.patch:  # weights, two patches, distances of taps
            return PATCH_STEPS * self.columns * 32 + 2 * PATCH_CELLS * 4 + PATCH_STEPS * 8 * 4
        if self.warpgroup:  # barriers, and room to align to 1024
            return self.stages * ((self.rows + self.columns) * self.depth + 16) + 1024 - 128
        return self.stages * (self.rows * 64 + self.columns * (32 if self.packed else 64))


def conv_tile(
    signed: bool, cell: int, packed: bool, rows: int, columns: int, warps_m: int, stages: int, four: bool = False
) -> ConvTile:  # fmt: skip
    """The instance of conv_igemm with that tile; see conv_igemm.cu for what cell, packed and four mean."""
    flags = [str(f).lower() for f in (signed, packed)]
    return ConvTile(
        "conv_igemm.cu",
        f"qir::conv_igemm<{flags[0]}, {cell}, {flags[1]}, {rows}, {columns}, {warps_m}, {stages}"
        + f", {str(four).lower()}>",
        architectures=FOUR_BITS if four or packed else ARCHITECTURES, rows=rows, columns=columns, stages=stages,
        cell=cell, packed=packed, four=four,
    )  # fmt: skip


MAPPED_ROWS = 128
"""Rows of the tiles that read their image through a tensor map."""


def wgmma_tile(signed: bool, columns: int, stages: int, span: int = 0) -> ConvTile:
    """The instance of conv_wgmma with that tile, or of conv_wgmma_tma whose copies take `span` channels."""
    tensor_map = span > 0
    last = f", {span}>" if tensor_map else ">"
    name = f"qir::conv_wgmma{'_tma' if tensor_map else ''}<{str(signed).lower()}, {columns}, {stages}{last}"
    return ConvTile(
        "conv_wgmma.cu", name, threads=288 if tensor_map else 320, architectures=("90a",), rows=MAPPED_ROWS,
        columns=columns, stages=stages, cell=span or 16, warpgroup=True, tensor_map=tensor_map,
    )  # fmt: skip


PATCH_CELLS, PATCH_STEPS, PATCH_ROWS, PATCH_COLUMNS = 2048, 8, 8, 16
"""Of conv_patch.cu: room for a patch, products along K at most, and its tile of the output."""


def patch_tile(signed: bool, columns: int) -> ConvTile:
    """The instance of conv_patch for so many output channels at a time."""
    return ConvTile(
        "conv_patch.cu", f"qir::conv_patch<{str(signed).lower()}, {columns}>", threads=128,
        rows=PATCH_ROWS * PATCH_COLUMNS, columns=columns, cell=4, patch=True,
    )  # fmt: skip


TILES = ((64, 64, 2, 3), (128, 64, 4, 3), (64, 128, 2, 3), (128, 128, 2, 3))
NARROW_TILES = ((128, 32, 8, 3), (128, 16, 8, 3))
"""rows, columns, warps along the rows, stages of conv_igemm; those of few channels in their own width."""

WGMMA_TILES = ((16, 4), (32, 4), (64, 4), (128, 3), (256, 4))
CONV_TILES = {
    (signed, cell, packed): (
        *(conv_tile(signed, cell, packed, *t) for t in TILES[: 2 if cell == 4 else 3 if packed else 4]),
        *(conv_tile(signed, cell, packed, *t) for t in NARROW_TILES if cell == 16 and not packed),
        *(conv_tile(signed, cell, packed, *t, four=True) for t in TILES[:3] if packed),
        *(patch_tile(signed, n) for n in (64, 32, 16) if cell == 4),
        *(wgmma_tile(signed, *t, s) for s in (0, 128, 64) for t in WGMMA_TILES if cell == 16 and not packed),
    )
    for signed in (False, True)
    for cell, packed in ((16, False), (16, True), (4, False))
}
"""(signed activations, cell, packed weights) -> tiles to choose from, for all architectures together."""


def conv_tiles(signed: bool, cell: int, packed: bool, four: bool, architecture: str) -> tuple[ConvTile, ...]:
    """Tiles to choose from on one architecture ("80", "90a" ...; a later one takes what is not made for one alone).

    four: whether the activations have four bits.
    """
    tiles = [t for t in CONV_TILES[signed, cell, packed] if four or not t.four]
    return tuple(t for t in tiles if architecture in t.architectures or t.architectures == ARCHITECTURES)


_PLAIN = {
    "elementwise.cu": (
        "requantize_elements", "add_elements", "multiply_elements", "extremum_elements", "table_elements",
        "clip_elements", "divide_elements",
        "quantize_elements", "dequantize_elements", "interpolate_elements",
    ),
    "chunks.cu": (
        "requantize_chunks", "add_chunks", "multiply_chunks", "table_chunks", "clip_chunks", "copy_chunks",
        "quantize_pixels<false>", "quantize_pixels<true>",
    ),
    "pooling.cu": (
        "pool_chunks<false>", "pool_chunks<true>", "reduce_chunks<false>", "reduce_chunks<true>",
        *(f"pool_bytes<{m}, {s}>" for m in ("false", "true") for s in ("false", "true")),
    ),
    "logic.cu": ("arithmetic_elements", "relate_elements", "select_elements", "cast_elements"),
    "movement.cu": (
        *(f"{k}_elements<qir::{t}>" for k in ("copy", "gather", "lookup") for t in ("u8", "u16", "u32", "u64")),
        "fill_elements", "digest_elements",
    ),
    "reduce.cu": (
        "pool<false>", "pool<true>", *(f"reduce<{i}>" for i in range(4)), "softmax", "normalize", "top_k",
    ),
    "conv_igemm.cu": ("finish_splits<>",),
    "conv_depthwise.cu": tuple(f"conv_depthwise<{s}>" for s in ("false", "true")),
    "rows.cu": (
        *(f"softmax_rows<{w}, {s}>" for w in ("false", "true") for s in ("false", "true")),
        "normalize_rows<false>", "normalize_rows<true>",
    ),
    "matmul.cu": ("matmul_bytes",),
    "conv_direct.cu": ("conv_direct",),
}  # fmt: skip

WALKS = {(3, 1): 4, (3, 2): 4, (5, 1): 4, (5, 2): 4, (7, 1): 2}
"""(side of the window, stride) that conv_depthwise_rows takes: how many columns a thread yields."""

_DEPTHWISE = {
    name: Kernel("conv_depthwise.cu", f"qir::{name}", threads=128)
    for name in (f"conv_depthwise_rows<{s}, {k}, {d}>" for s in ("false", "true") for k, d in WALKS)
}
PLAIN = {name: Kernel(source, f"qir::{name}") for source, names in _PLAIN.items() for name in names} | _DEPTHWISE
SPECIALISED = (PLAIN["finish_splits<>"], *_DEPTHWISE.values())
"""Kernels other than tiles that are compiled for the program of their epilogue."""

INSTANCES: tuple[Kernel, ...] = (*PLAIN.values(), *(t for tiles in CONV_TILES.values() for t in tiles))


def instances(architecture: str) -> tuple[Kernel, ...]:
    """What a launcher can ask for on one architecture."""
    return tuple(k for k in INSTANCES if architecture in k.architectures)


def compiled(architecture: str) -> tuple[Kernel, ...]:
    """What CI compiles: kernels with an epilogue for programs that stand for those of networks, the rest as it is."""
    found: list[Kernel] = []
    for k in instances(architecture):
        if isinstance(k, ConvTile) or k in SPECIALISED:
            programs = (STREAM, PLAIN_PROGRAM) if k.architectures[-1] == architecture else (STREAM,)
            found += [specialised(k, int(p)) for p in programs]
        else:
            found.append(k)
        if isinstance(k, ConvTile) and k.warpgroup and k.columns == 128 and not k.tensor_map:
            found += [specialised(k, int(p)) for p in SAMPLES]
    return tuple(found)


def kernel(name: str) -> Kernel:
    """A kernel by its name without namespace, as in `kernel("pool<true>")`."""
    return PLAIN[name]


def sources() -> dict[str, str]:
    """Name -> text of every source and header under kernels/."""
    folder = resources.files("qir.runtime.cuda") / "kernels"
    return {f.name: f.read_text() for f in folder.iterdir() if f.name.endswith((".cu", ".cuh"))}
