"""Steps of a CPU plan before they become numbers: named fields, references into buffers, epilogues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from qir.types import Array

from ...compile.micro_operations import MicroOperation
from ...compile.tensors import Buffer, View

SLOT_SHIFT = 48


@dataclass(frozen=True)
class Ref:
    """An address that is known once buffers have offsets."""

    buffer: Buffer
    offset: int = 0


def ref(view: View) -> Ref:
    return Ref(view.buffer, view.offset)


Number = int | Ref


@dataclass
class Step:
    """One native step. fields: position -> number (positions are named in runtime/cpu/kernels/record.py).

    nodes: names of the graph's nodes that it executes; macs, weight_bytes: for the profile.
    """

    fields: dict[int, Number]
    epilogue: list[MicroOperation] = field(default_factory=lambda: [])
    reads: list[View] = field(default_factory=lambda: [])
    writes: list[View] = field(default_factory=lambda: [])
    nodes: list[str] = field(default_factory=lambda: [])
    op: str = ""
    macs: int = 0
    weight_bytes: int = 0
    panel_bytes: int = 0
    patch_bytes: int = 0


@dataclass
class PythonStep:
    """A step without a native kernel: the operator's reference on views of the arena."""

    call: Callable[[Sequence[Array]], Sequence[Array]]
    reads: list[View]
    writes: list[View]
    nodes: list[str]
    op: str = ""
    macs: int = 0
    weight_bytes: int = 0


AnyStep = Step | PythonStep


def constant(array: Array) -> Ref:
    """A ref to constant data; the buffer keeps the array alive."""
    data = np.ascontiguousarray(array)
    return Ref(Buffer(data.nbytes, "constant", data))


def padded(v: Array, multiple: int = 16) -> Array:
    """A vector with zeros up to a multiple: vector code reads whole groups."""
    extra = -v.size % multiple
    return np.concatenate([v, np.zeros(extra, v.dtype)]) if extra else np.ascontiguousarray(v)
