"""What an attribute can be, by its name: names mean the same in all operators.

Executors read attributes in ways of their own (`keepdims` 2^62 is true to one and, cut to 32 bits, false to another),
so that whatever is not plainly one of the allowed values is refused where a node is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..types import DType

Take = Callable[[Any], Any]
"""The value as the IR keeps it.  Raises ValueError, saying what is expected."""

LARGEST = 2**31 - 1
"""Of sizes, strides and pads: what a compiled kernel can count."""

INT64 = (-(2**63), 2**63 - 1)


def _integer(least: int = INT64[0], most: int = INT64[1]) -> Take:
    expected = "an integer" if least == INT64[0] else f"an integer of {least} to {most}"

    def take(value: Any) -> int:
        if not isinstance(value, int | np.integer) or not least <= value <= most:
            raise ValueError(expected)
        return int(value)

    return take


def _flag(value: Any) -> int:
    if not isinstance(value, int | np.integer | np.bool_) or value not in (0, 1):
        raise ValueError("0 or 1")
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError("a number")
    if not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def _integers(least: int = INT64[0], most: int = INT64[1], fewest: int = 0) -> Take:
    one = _integer(least, most)

    def take(value: Any) -> list[int]:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise ValueError("a list of integers")
        try:
            found = [one(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
        except ValueError as error:
            raise ValueError(f"a list, each of it {error}") from None
        if len(found) < fewest:
            raise ValueError("a list that is not empty")
        return found

    return take


def _pad_value(value: Any) -> int | list[int]:
    return (
        _NARROW(value) if isinstance(value, int | np.integer) else _integers(DType.INT32.lo, DType.INT32.hi, 1)(value)
    )


def _word(*allowed: str) -> Take:
    def take(value: Any) -> str:
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise ValueError(" or ".join(allowed) or "a word")
        return value

    return take


def _dtype(value: Any) -> str:
    if not isinstance(value, str) or value not in DType._value2member_map_:
        raise ValueError("a dtype")
    return str(DType(value))


def _array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise ValueError("a tensor")
    return value  # pyright: ignore[reportUnknownVariableType]


_SIZE, _SIZES, _PADS = _integer(1, LARGEST), _integers(1, LARGEST, 1), _integers(0, LARGEST, 1)
_NUMBER, _NARROW = _integer(), _integer(DType.INT32.lo, DType.INT32.hi)

TAKES: Mapping[str, Take] = {
    **dict.fromkeys(
        ("allowzero", "antialias", "ceil_mode", "centre", "count_include_pad", "exclude_outside", "fmod", "keepdims",
         "largest", "noop_with_empty_axes", "saturate", "select_last_index", "sorted", "storage_order", "training_mode",
         "transA", "transB"), _flag),
    **dict.fromkeys(
        ("alpha", "beta", "cubic_coeff_a", "epsilon", "extrapolation_value", "gamma", "momentum"), _real),
    **dict.fromkeys(("blocksize", "group", "num_groups", "num_outputs", "p"), _SIZE),
    **dict.fromkeys(("dilations", "kernel_shape", "output_shape", "strides"), _SIZES),
    **dict.fromkeys(("output_padding", "pads"), _PADS),
    **dict.fromkeys(("axes", "perm"), _integers()),
    **dict.fromkeys(("axis", "bits", "end", "first", "hi", "least", "lo", "seed", "start"), _NUMBER),
    **dict.fromkeys(("a_multiplier", "a_zero_point", "b_multiplier", "b_zero_point", "multiplier", "weight_zero_point",
                     "x_zero_point", "zero_point"), _NARROW),
    "pad_value": _pad_value,  # one for each channel, where the operator has channels of different grids
    "shift": _integer(1, 62),
    "extra": _integer(0, 15),
    "noise": _integer(0, 1 << 62),
    "stash_type": _integer(0, 1 << 31),
    "block_size": _integer(0, 1 << 31),
    **dict.fromkeys(("dtype", "output_dtype", "to"), _dtype),
    "approximate": _word("none", "tanh"),
    "auto_pad": _word("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"),
    "keep_aspect_ratio_policy": _word("stretch", "not_larger", "not_smaller"),
    **dict.fromkeys(("coordinate_transformation_mode", "mode", "nearest_mode"), _word()),  # each operator has its own
    "value": _array,
}  # fmt: skip
"""A test asserts that every attribute of every operator is here."""


def taken(key: str, value: Any) -> Any:
    """An attribute's value as the IR keeps it.  Raises ValueError with a sentence where it is not one."""
    take = TAKES.get(key)
    if take is None:
        return value
    try:
        return take(value)
    except ValueError as error:
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
        raise ValueError(f"attribute {key!r} is {shown}, {error} expected") from None
