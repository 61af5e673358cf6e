"""Types of a model's inputs: which axes are open, which open axes are one, and which of them is the batch.

A file names its open axes, or leaves them unnamed.  What a name stands for is tried: names as they are, then names of
a batch taken for one, then axes of one position; sizes of any kind, then multiples of 2, 4 ... as a network with
skip connections wants them.  The first reading under which all types can be inferred is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import ModelError
from ..types import Dim, DType, TensorType
from .expressions import BATCH, Symbol

Shapes = Mapping[str, Sequence[int | str]]

STEPS = (2, 4, 8, 16, 32, 64, 7, 14, 28, 56, 112, 224)
"""Multiples that open sizes are tried with where they cannot be any number."""

_BATCH = re.compile(r"batch|^(n|b|bs)$", re.IGNORECASE)
_NO_BATCH = re.compile(r"seq|len|tok|time|frame|height|width|node|edge|point|row|col|step|num|^[hwlst]$", re.IGNORECASE)
_NOBODY = re.compile(r"^unk__\d+$|^\?$|^$")
_MADE_UP = re.compile(r"^s\d+$")


@dataclass(frozen=True)
class OpenAxis:
    """An axis whose size stays open.  name: "" where it has none that says anything.  label: its name in the file."""

    input: str
    axis: int
    rank: int
    name: str
    dtype: DType
    label: str

    @property
    def long(self) -> bool:
        """Whether hundreds are likelier than tens: images and sound, but no tokens."""
        if re.search(r"seq|tok", self.name, re.IGNORECASE):
            return False
        return self.rank >= 4 or (self.axis == self.rank - 1 and self.dtype.is_float)


@dataclass(frozen=True)
class Reading:
    """One way to understand the open axes."""

    types: list[tuple[str, TensorType]]
    symbols: dict[str, Symbol]

    @property
    def beyond_batch(self) -> bool:
        """Whether more than the batch is open."""
        return len(self.symbols) > 1


def readings(
    kinds: Mapping[str, DType], declared: Mapping[str, list[int | str] | None], shapes: Shapes
) -> Iterator[Reading]:
    """Ways to understand the model's open axes, likeliest first; at least one.

    kinds, declared: of each input, its dtype and its sizes in the file ("?" for an open one without a name; None where
    it has no shape).  shapes: sizes given for some: ints, names of open axes ("N": the batch), -1 for the file's own.
    Raises ModelError: a shape for an unknown input, a rank that differs, no shape.
    """
    for name in shapes:
        if name not in kinds:
            raise ModelError("is no input of the model", where=f"input_shapes[{name!r}]",
                             hint=f"inputs are {', '.join(kinds)}")  # fmt: skip
    wanted = _wanted(declared, shapes)
    axes = [
        OpenAxis(name, axis, len(shape), _named(dim), kinds[name], _label(declared[name], axis, dim))
        for name, shape in wanted.items() for axis, dim in enumerate(shape) if isinstance(dim, str)
    ]  # fmt: skip
    seen: list[dict[OpenAxis, str]] = []
    for grouped in (_by_name(axes), _one_batch(axes), _by_position(axes)):
        if grouped not in seen:
            seen.append(grouped)
    for flipped, step in ((False, 1), (True, 1), *((False, s) for s in STEPS)):
        for grouped in seen:
            reading = _reading(wanted, kinds, grouped, flipped, step)
            if reading.beyond_batch or (not flipped and step == 1):
                yield reading


def _label(declared: Sequence[int | str] | None, axis: int, size: int | str) -> str:
    return (_named(declared[axis]) if declared else "") or _named(size)


def _named(size: int | str) -> str:
    return "" if isinstance(size, int) or _NOBODY.match(size) else size


def _wanted(declared: Mapping[str, list[int | str] | None], shapes: Shapes) -> dict[str, list[int | str]]:
    """Sizes of each input: the given ones, else the file's; a name that became a number is one everywhere."""
    wanted: dict[str, list[int | str]] = {}
    numbers: dict[str, int] = {}
    for name, theirs in declared.items():
        where, given = f"input {name!r}", shapes.get(name)
        if given is None:
            if theirs is None:
                raise ModelError("has no shape", where=where, hint=f"pass input_shapes={{{name!r}: [...]}}")
            wanted[name] = list(theirs)
            continue
        if theirs is not None and len(given) != len(theirs):
            raise ModelError(f"has {len(theirs)} axes, input_shapes gives {len(given)}", where=where)
        mine: list[int | str] = []
        for size, old in zip(given, theirs or given, strict=True):
            if isinstance(size, int) and size < -1:
                raise ModelError(f"has a negative size in {list(given)}", where=where)
            if isinstance(size, int) and size > 0:
                if isinstance(old, int) and old not in (size, -1, 0):
                    raise ModelError(f"has shape {theirs}, input_shapes gives {list(given)}", where=where)
                if isinstance(old, str) and not _NOBODY.match(old):
                    numbers[old] = size
                mine.append(size)
            elif isinstance(size, str):
                mine.append(size)
            else:
                mine.append(old if isinstance(old, str) or mine else BATCH)
        wanted[name] = mine
    return {
        name: [numbers.get(d, d) if isinstance(d, str) else d for d in sizes] if name not in shapes else sizes
        for name, sizes in wanted.items()
    }


# -- which axes are one -----------------------------------------------------------------------------
def _batches(axes: Sequence[OpenAxis]) -> list[OpenAxis]:
    """The axes that are a batch: so called anywhere, or the first ones that are not called otherwise."""
    called = [a for a in axes if _BATCH.search(a.name)]
    if called:
        return [a for a in axes if a in called or (a.axis == 0 and not a.name)]
    return [a for a in axes if a.axis == 0 and not _NO_BATCH.search(a.name)]


def _by_name(axes: Sequence[OpenAxis]) -> dict[OpenAxis, str]:
    """Each name a symbol, the first name of a batch the batch; axes without a name are their own."""
    batches = _batches(axes)
    first = next((a.name for a in batches if a.name), "")
    symbols: dict[str, str] = {}
    taken = {BATCH}
    found: dict[OpenAxis, str] = {}
    for a in axes:
        if a in batches and (a.name in ("", first) or _MADE_UP.match(a.name)):
            found[a] = BATCH
            continue
        key = a.name or f"{a.input}:{a.axis}"
        if key not in symbols:
            symbols[key] = _fresh(re.sub(r"\W", "_", a.name) or _position(a), taken)
        found[a] = symbols[key]
    return found


def _one_batch(axes: Sequence[OpenAxis]) -> dict[OpenAxis, str]:
    """All batches are one."""
    batches = _batches(axes)
    return {a: BATCH if a in batches else s for a, s in _by_name(axes).items()}


def _by_position(axes: Sequence[OpenAxis]) -> dict[OpenAxis, str]:
    """And what stands on the same axis of inputs of one rank is one, too."""
    first: dict[tuple[int, int], str] = {}
    return {a: BATCH if s == BATCH else first.setdefault((a.rank, a.axis), s) for a, s in _one_batch(axes).items()}


def _position(axis: OpenAxis) -> str:
    if axis.rank >= 4 and axis.axis >= 2:
        return "DHW"[axis.axis - axis.rank + 3] if axis.axis >= axis.rank - 3 else "L"
    return "L"


def _fresh(name: str, taken: set[str]) -> str:
    name = name if re.match(r"[A-Za-z_]", name) else f"L{name}"
    free, n = name, 1
    while free in taken:
        n += 1
        free = f"{name}{n}"
    taken.add(free)
    return free


def _reading(
    wanted: Mapping[str, Sequence[int | str]], kinds: Mapping[str, DType], grouped: Mapping[OpenAxis, str],
    flipped: bool, step: int,
) -> Reading:  # fmt: skip
    symbols = {BATCH: Symbol()}
    for axis, symbol in grouped.items():
        known = symbols.get(symbol)
        if known is None:
            symbols[symbol] = Symbol(axis.label, step, axis.long != flipped)
        elif not known.name:
            symbols[symbol] = replace(known, name=axis.label)
    at = {(a.input, a.axis): s for a, s in grouped.items()}
    types = [
        (name, TensorType(kinds[name], tuple(_dim(at, name, axis, d) for axis, d in enumerate(shape))))
        for name, shape in wanted.items()
    ]
    return Reading(types, symbols)


def _dim(at: Mapping[tuple[str, int], str], name: str, axis: int, size: int | str) -> Dim:
    return size if isinstance(size, int) else at[name, axis]
