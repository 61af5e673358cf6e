"""How a convolution or product can be launched: tiles, and in how many parts K is split.  The first is the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..instances import ConvTile, specialised

TARGET_BLOCKS = 264
"""Blocks that fill a large GPU (two for each of 132 multiprocessors)."""

MOST_BLOCKS = 4 * TARGET_BLOCKS
"""Splitting K further than this only makes more sums to add."""


@dataclass(frozen=True)
class Choice:
    """A tile, and how many blocks share a sum."""

    tile: ConvTile
    splits: int
    program: int = -1  # that of the launch's epilogue, if kernels are compiled for one

    @property
    def kernel(self) -> ConvTile:
        """What is launched."""
        return self.tile if self.program < 0 else specialised(self.tile, self.program)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.tile.expression.removeprefix('qir::')}/{self.splits}"


Chooser = Callable[[str, Sequence[Choice]], Choice]
"""(key of a layer shape, candidates) -> the one to launch."""


def first(key: str, candidates: Sequence[Choice]) -> Choice:
    """The chooser that knows no measurements."""
    return candidates[0]


def slices_of(tile: ConvTile, depth: int, taps: int) -> int:
    """Slices of K: `depth` products, an equal part of them for each tap, which a tile may round up to its cells."""
    each = -(-depth // taps)
    return -(-taps * -(-each // tile.cell) * tile.cell // tile.depth)


def candidates(
    tiles: Sequence[ConvTile], pixels: int, channels: int, depth: int, taps: int = 1
) -> list[Choice]:  # fmt: skip
    """Every sensible way to compute (pixels, channels) sums of `depth` products, the heuristic one first.

    That is never one with a tensor map: those are taken where they have been timed and found faster.
    """
    least = min((t.columns for t in tiles if t.columns >= min(channels, 64)), default=64)  # what holds all channels
    patches = [t for t in tiles if t.patch and t.columns == least] or [t for t in tiles if t.patch][:1]
    others = [t for t in tiles if not t.patch]
    fitting = [t for t in others if least <= t.columns <= max(64, -(-channels // 64) * 64)] or others[:1]
    usual = patches or [t for t in fitting if t.columns == least or channels > 32] or fitting
    full = [t for t in usual if _blocks(t, pixels, channels) >= 200]
    smallest = min(t.rows * t.columns for t in usual)
    small = [t for t in usual if t.rows * t.columns == smallest]
    tile = max(full or small, key=lambda t: (t.rows * t.columns, t.warpgroup, t.four, not t.tensor_map))
    parts = 1 if tile.patch else min(TARGET_BLOCKS // _blocks(tile, pixels, channels), depth // 512)
    found = [Choice(tile, _even(slices_of(tile, depth, taps), parts))]
    for tile in patches + fitting:
        slices = slices_of(tile, depth, taps)
        for splits in (1, 2, 4, 8, 16):
            if splits > 1 and (
                tile.patch or splits * 2 > slices or splits * _blocks(tile, pixels, channels) > MOST_BLOCKS
            ):
                break
            found.append(Choice(tile, _even(slices, splits)))
    return list(dict.fromkeys(found))


def _blocks(tile: ConvTile, pixels: int, channels: int) -> int:
    return -(-pixels // tile.rows) * -(-channels // tile.columns)


def _even(slices: int, splits: int) -> int:
    """So many splits that none is without a slice."""
    each = -(-slices // max(splits, 1))
    return -(-slices // each)
