"""What a layer costs at a pair of bit widths: size, bit operations, AQT's compute costs, or a measured latency.

size       weights * b_w / 8 bytes                                            [HAWQ-V3 eq. 12; AQT 4.3, memory cost]
bops       macs * b_w * b_a                                                   [HAWQ-V3 eq. 13]
linear     macs * max(b_w, b_a): units of 16, 8, 4 bits twice as fast each    [AQT 4.1]
quadratic  macs * b_w * b_a / 16: adders of a multiplier; 16, 4, 1            [AQT 4.2]
latency    a table, measured per layer (`session.profile()`)                  [HAWQ-V3 eq. 14]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qir.errors import ParseError

Bits = tuple[int, int]
"""(weight bits, activation bits) of a layer."""

LatencyTable = Mapping[str, Mapping[Bits, float]]
"""Layer -> bits -> seconds (any unit, as long as it is one)."""


@dataclass(frozen=True)
class Work:
    """What a layer has to do: multiply-accumulates at batch one, and how many weights it keeps."""

    macs: int
    weights: int


def size(work: Work, bits: Bits) -> float:
    """Bytes of the weights."""
    return work.weights * bits[0] / 8


def bops(work: Work, bits: Bits) -> float:
    """Bit operations."""
    return float(work.macs * bits[0] * bits[1])


def linear(work: Work, bits: Bits) -> float:
    """Compute cost where a unit of half the width is twice as fast; operands of two widths use the wider unit."""
    return float(work.macs * max(bits))


def quadratic(work: Work, bits: Bits) -> float:
    """Compute cost where a multiplier of b_w by b_a bits takes b_w * b_a adders; 16 at 16 bits, as AQT counts."""
    return work.macs * bits[0] * bits[1] / 16


COSTS: dict[str, Callable[[Work, Bits], float]] = {"size": size, "bops": bops, "linear": linear, "quadratic": quadratic}
"""Costs that need no measurement, by name."""


def parse_bits(text: str) -> Bits:
    """ "4/8" (weights/activations) or "8" for both.  Raises ParseError."""
    parts = text.lower().removeprefix("w").replace("a", "/").split("/")
    try:
        numbers = [int(p) for p in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or any(not 1 <= n <= 32 for n in numbers):
        raise ParseError(f"{text!r} is no pair of bit widths", hint='write "4/8" for 4-bit weights, 8-bit activations')
    return (numbers[0], numbers[-1])


def format_bits(bits: Bits) -> str:
    """(4, 8) -> "4/8"."""
    return f"{bits[0]}/{bits[1]}"
