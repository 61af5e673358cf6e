"""Programs of epilogues: what a kernel is compiled for, as flags of a template argument (kernels/program.cuh)."""

from __future__ import annotations

from enum import IntFlag


class Program(IntFlag):
    """What an epilogue does, as enum Program of program.cuh."""

    WORDS = 1 << 0
    SCALE_HIGH = 1 << 1
    SCALE_FITS = 1 << 2
    SCALE_WIDE = 1 << 3
    ZERO_LATER = 1 << 4
    SCALE_LO = 1 << 5
    SCALE_HI = 1 << 6
    RESIDUAL_S8 = 1 << 7
    RESIDUAL_U8 = 1 << 8
    RESIDUAL_S16 = 1 << 9
    RESIDUAL_U16 = 1 << 10
    SUM_WIDE = 1 << 11
    SUM_LO = 1 << 12
    SUM_HI = 1 << 13
    TABLE = 1 << 14
    SECOND = 1 << 15
    SECOND_SIGNED = 1 << 16
    SECOND_LO = 1 << 17
    SECOND_HI = 1 << 18
    OUT_8 = 1 << 19
    OUT_16 = 1 << 20
    OUT_SIGNED = 1 << 21
    NARROW = 1 << 22


PARTIAL_SUMS = Program.WORDS
"""int32 sums as they are."""

PLAIN = Program.WORDS | Program.SCALE_HIGH | Program.OUT_8 | Program.NARROW
"""8 bits, clamped to the dtype's own limits."""

STREAM = (
    Program.WORDS | Program.SCALE_HIGH | Program.SCALE_LO | Program.SCALE_HI | Program.RESIDUAL_S16 | Program.SUM_LO
    | Program.SUM_HI | Program.SECOND | Program.OUT_16 | Program.OUT_SIGNED
)  # fmt: skip
"""A residual stream of 16 bits and what the next convolution reads of it: the longest that networks ask for."""

SAMPLES = (
    PARTIAL_SUMS,
    PLAIN & ~Program.SCALE_HIGH | Program.SCALE_FITS,
    PLAIN & ~Program.SCALE_HIGH | Program.SCALE_WIDE | Program.SCALE_LO | Program.SCALE_HI,
    PLAIN | Program.SCALE_LO | Program.SCALE_HI | Program.TABLE,
    STREAM & ~Program.SCALE_HIGH | Program.SCALE_FITS,
    STREAM & ~Program.SCALE_HIGH | Program.SCALE_WIDE,
    STREAM & ~(Program.RESIDUAL_S16 | Program.OUT_16 | Program.SECOND) | Program.RESIDUAL_S8 | Program.OUT_8,
)
"""Others, compiled for one tile."""
