"""FoldNormalization: (pixel - mean) / std goes into the first convolution, so that the graph takes the pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qir.errors import GraphError, QuantizationError
from qir.graph import Graph, Node, Stage, Value
from qir.ops.windows import resolve_pads
from qir.types import Array

from ..manager import Pass
from ..report import PassReport

Floats = NDArray[np.float64]

METADATA = "qir.normalization"
"""Metadata of a graph that takes pixels: JSON {input: {mean, std, axis}}, what was folded."""

PIXELS = (0.0, 255.0)
"""The range to calibrate the input with afterwards: its uint8 grid then has scale 1 and zero point 0, the pixels'."""


@dataclass(frozen=True)
class FoldNormalization(Pass):
    """conv(w, (p - mean) / std) + b  =  conv(w / std, p) + b - sum(w / std * mean)             [docs/arithmetic.md 11]

    mean, std: in units of pixels (0 to 255), one number or one a channel.  input: which one (default: the only one).
    Where the convolution pads, zero is the pixel `mean`: padding becomes an explicit Pad with the nearest whole pixel,
    channel by channel where they differ; that rounding, at most half a pixel at the border, is all that changes.
    """

    name: ClassVar[str] = "fold_normalization"
    requires: ClassVar[tuple[Stage, ...]] = (Stage.FLOAT, Stage.FOLDED)

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    input: str | None = None

    def __post_init__(self) -> None:
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or min(self.std) <= 0:
            raise QuantizationError(f"mean {self.mean} and std {self.std} are no normalization")

    def run(self, graph: Graph) -> PassReport:
        """Raises GraphError where something other than convolutions of constant weights reads the input."""
        report = self.report()
        x = self._input(graph)
        readers = _convolutions(x)
        for conv, _ in readers:
            self._fold(graph, conv)
            report.rewrote(self.name, conv.name)
        graph.prune()
        if not readers:
            raise GraphError("is read by no convolution", where=f"input {x.name!r}")
        graph.metadata[METADATA] = json.dumps({x.name: {"mean": self.mean, "std": self.std, "axis": readers[0][1]}})
        return report

    def _input(self, graph: Graph) -> Value:
        if self.input is not None:
            return graph.value(self.input)
        if len(graph.inputs) != 1:
            names = ", ".join(v.name for v in graph.inputs)
            raise GraphError(f"has {len(graph.inputs)} inputs", where="fold_normalization", hint=f"say which: {names}")
        return graph.inputs[0]

    def _fold(self, graph: Graph, conv: Node) -> None:
        x, w = conv.input(0), conv.input(1)
        if not w.is_constant:
            raise GraphError("has weights that are no constant", where=str(conv))
        group, weights = conv.attrs["group"], w.array().astype(np.float64)
        per_group, channels = weights.shape[1], weights.shape[1] * group
        mean, std = self._channels(self.mean, channels), self._channels(self.std, channels)
        # channel that w[m, j] multiplies: j-th of m's group
        reads = (np.arange(len(weights)) // (len(weights) // group))[:, None] * per_group + np.arange(per_group)
        spatial = [1] * (weights.ndim - 2)
        scaled = weights / std[reads].reshape(*reads.shape, *spatial)
        moved = (scaled * mean[reads].reshape(*reads.shape, *spatial)).reshape(len(weights), -1).sum(1)
        bias = conv.optional(2)
        if bias is not None and not bias.is_constant:
            raise GraphError("has a bias that is no constant", where=str(conv))
        b = (0.0 if bias is None else bias.array().astype(np.float64)) - moved

        pads = np.asarray(resolve_pads([int(d) for d in x.shape[2:]], weights.shape[2:], conv.attrs)[0])
        while (node := x.producer) is not None and node.op == "Pad":
            pads, x = pads + np.concatenate([half[2:] for half in np.split(node.input(1).array(), 2)]), node.input(0)
        if pads.any():
            x = pad_channels(graph, x, pads.tolist(), np.rint(mean), f"{conv.name}.x")
        conv.attrs.update(auto_pad="NOTSET", pads=[0] * len(pads))
        graph.set_input(conv, 0, x)
        graph.set_input(conv, 1, graph.add_constant(f"{w.name}.pixels", scaled.astype(np.float32)))
        graph.set_input(conv, 2, graph.add_constant(f"{conv.name}.bias.pixels", b.astype(np.float32)))

    @staticmethod
    def _channels(numbers: Sequence[float], channels: int) -> Floats:
        if len(numbers) not in (1, channels):
            raise QuantizationError(f"{len(numbers)} means or deviations for {channels} channels")
        return np.broadcast_to(np.asarray(numbers, np.float64), (channels,))


def _convolutions(x: Value, padded: bool = False) -> list[tuple[Node, int]]:
    """The convolutions that read x, perhaps through a Pad of zeros, each with the axis of x that is its channels.

    Changes of layout before the Pad are looked through.
    """
    if x.is_output:
        raise GraphError("is an output too, so its normalization cannot move", where=f"value {x.name!r}")
    found: list[tuple[Node, int]] = []
    for node, index in x.uses():
        if node.op == "Conv" and index == 0:
            found.append((node, 1))
        elif node.op == "Transpose" and not padded:
            perm = node.attrs["perm"] or list(range(x.type.rank))[::-1]
            found += [(conv, perm[axis]) for conv, axis in _convolutions(node.output)]
        elif node.op == "Identity" and not padded:
            found += _convolutions(node.output)
        elif node.op == "Pad" and index == 0 and _pads_with_zeros(node):
            found += _convolutions(node.output, padded=True)
        else:
            raise GraphError(
                f"reads {x.name!r}; a normalization folds into convolutions only", where=str(node),
                hint="normalize the data instead of --fold-normalization",
            )  # fmt: skip
    return found


def _pads_with_zeros(node: Node) -> bool:
    """A constant, spatial Pad of zeros of an NCHW tensor."""
    width, value, axes = node.input(1), node.optional(2), node.optional(3)
    if node.attrs["mode"] != "constant" or width.data is None or axes is not None or width.data.min(initial=0) < 0:
        return False
    zero = value is None or (value.data is not None and not value.data.any())
    return zero and not any(half[:2].any() for half in np.split(width.data, 2))


def pad_channels(graph: Graph, x: Value, pads: Sequence[int], values: Array, name: str) -> Value:
    """x (N, C, *spatial) padded with values[c] in channel c: one Pad, or one for each channel and a Concat."""
    rank = len(pads) // 2
    width = graph.add_constant(f"{name}.pads", np.asarray([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64))

    def pad(part: Value, value: float, output: str) -> Value:
        fill = graph.add_constant(f"{output}.value", np.asarray(value, np.float32))
        return graph.add_node("Pad", [part, width, fill], {"mode": "constant"}, outputs=[output]).output

    if len(set(values.tolist())) == 1:
        return pad(x, float(values[0]), f"{name}.padded")
    sizes = graph.add_constant(f"{name}.split", np.ones(len(values), np.int64))
    names = [f"{name}.channel{i}" for i in range(len(values))]
    parts = graph.add_node("Split", [x, sizes], {"axis": 1}, outputs=names).outputs
    padded = [pad(p, float(v), f"{p.name}.padded") for p, v in zip(parts, values, strict=True)]
    return graph.add_node("Concat", padded, {"axis": 1}, outputs=[f"{name}.padded"]).output
