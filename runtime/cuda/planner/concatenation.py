"""Concatenations without copies: which values are computed in their slice of the concatenated buffer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from qir.graph import Graph, Value

from .placement import CHUNK


@dataclass(frozen=True)
class ChannelSlot:
    """Channels [start, start + channels) of the value `whole`."""

    whole: Value
    start: int
    channels: int


def slots(graph: Graph, kept: Collection[Value], is_image: Callable[[Value], bool]) -> dict[Value, ChannelSlot]:
    """Where values live that a concatenation of images along the channels takes first.

    A slice must begin at a chunk of 16 channels and end at one, unless nothing comes after it: kernels store whole
    chunks.  Values of one concatenation whose slices do not are copied there; those in `kept` keep their own place.
    Concatenations of concatenations nest.
    """
    found: dict[Value, ChannelSlot] = {}
    for node in graph.nodes:
        if node.op != "Concat" or not is_image(node.output):
            continue
        if node.attrs["axis"] % node.output.type.rank != 1:
            continue
        start, total = 0, int(node.output.shape[1])
        for value in node.inputs:
            assert value is not None
            channels = int(value.shape[1])
            aligned = start % CHUNK == 0 and (channels % CHUNK == 0 or start + channels == total)
            computed = value.data is None and value not in graph.inputs and value not in kept
            if aligned and computed and is_image(value) and value not in found and not _twice(node.inputs, value):
                found[value] = ChannelSlot(node.output, start, channels)
            start += channels
    return found


def _twice(values: Collection[Value | None], value: Value) -> bool:
    return sum(v is value for v in values) > 1
