"""Why a quantized network is worse than the float one: the debugging flow of the White Paper (fig. 9), with advice.

1. float check: the prepared graph (folded, equalized) must give the float network's outputs.
2. weights or activations: each side quantized alone.
3. layer by layer: each layer's weights, and each layer's input, quantized alone.
4. the worst tensors: their distributions, and what to do about each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.errors import DataError
from qir.graph import Graph
from qir.types import Array

from .calibration import collect, ranges_from
from .insert_qdq import channel_axis, linear_nodes
from .placement import first_and_last, layer_bits
from .ranges import Ranges
from .recipes import Recipe
from .sensitivity import perturbation, quantize_one, run_all

FLOAT_DB = 60.0
"""Below this SQNR the prepared graph is not the float network any more."""


@dataclass(frozen=True)
class Culprit:
    """One layer's weights or input, quantized alone.  sqnr: of the outputs, dB.  facts, advice: sentences."""

    layer: str
    tensor: str
    side: str
    sqnr: float
    facts: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """SQNR of the outputs in dB: prepared float, weights only, activations only, both; culprits, worst first."""

    float_sqnr: float
    weights_sqnr: float
    activations_sqnr: float
    both_sqnr: float
    culprits: tuple[Culprit, ...]

    def text(self, worst: int = 8) -> str:
        """The flow in words."""
        lines = [f"1. float check: {_db(self.float_sqnr)} between the network and its prepared form"]
        if self.float_sqnr < FLOAT_DB:
            lines.append("   the preparation itself changes the outputs: leave out steps (equalize, absorb_bias)")
        else:
            lines.append("   fine: what is lost is lost by quantization")
        lines.append(
            f"2. weights only: {_db(self.weights_sqnr)}; activations only: {_db(self.activations_sqnr)}; "
            f"both: {_db(self.both_sqnr)}"
        )
        lines.append("   " + self.verdict())
        lines.append("3. each tensor by itself, worst first:")
        for c in self.culprits[:worst]:
            lines.append(f"   {_db(c.sqnr)}  {c.side} of {c.layer} ({c.tensor})")
            lines += [f"      {fact}" for fact in c.facts]
            lines += [f"      -> {advice}" for advice in c.advice]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Which side to work on."""
        gap = self.weights_sqnr - self.activations_sqnr
        if gap < -3:
            return "the weights cost most: per-channel scales, equalization, weight_range='mse', rounding='gptq'"
        if gap > 3:
            return "the activations cost most: better ranges (mse, percentile), equalization, wider layers (search)"
        return "both sides cost about the same: start with the tensors below"


def _db(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:5.1f} dB"


def sqnr(reference: Sequence[Array], outputs: Sequence[Array]) -> float:
    """Signal to noise of the outputs in dB; infinite where they are equal."""
    noise = perturbation("sqnr", reference, outputs)
    return math.inf if noise == 0 else -10 * math.log10(noise)


def diagnose(graph: Graph, batches: Iterable[Mapping[str, Array]], recipe: Recipe, *, worst: int = 8) -> Diagnosis:
    """Run the flow for a float graph and the recipe that disappoints.  The batches are kept in memory: a few suffice.

    Raises DataError without batches, and what the recipe's passes raise.
    """
    feeds = list(batches)
    if not feeds:
        raise DataError("no data to diagnose with")
    from .strip_softmax import StripSoftmax

    plain = StripSoftmax().apply(graph)[0] if recipe.strip_softmax else graph
    prepared, _ = recipe.prepare.run(graph)
    seen = collect(prepared, feeds)
    ranges = ranges_from(seen, recipe.method if recipe.needs_data else "minmax", bits=(4, 8))
    reference = run_all(prepared, feeds)
    base = sqnr(run_all(plain, feeds), reference)
    nodes = [n for n in linear_nodes(prepared) if n.input(1).is_constant]
    ends, widths = first_and_last(prepared), recipe.insert(ranges).widths
    bits = {n.name: layer_bits(n, ends, widths, recipe.weight_bits) for n in nodes}
    sides = {"weights": prepared, "input": prepared, "both": prepared}
    found: list[Culprit] = []
    for node in nodes:
        w, a = bits[node.name]
        pairs: dict[str, tuple[int | None, int | None]] = {"weights": (w, None), "input": (None, a), "both": (w, a)}
        for side, pair in pairs.items():
            sides[side] = quantize_one(sides[side], node.name, pair, ranges, recipe.weight_range)
            if side != "both":
                one = quantize_one(prepared, node.name, pair, ranges, recipe.weight_range)
                tensor = node.input(1 if side == "weights" else 0).name
                found.append(Culprit(node.name, tensor, side, sqnr(reference, run_all(one, feeds))))
    found.sort(key=lambda c: c.sqnr)
    channels = {name: (t.channel_lo, t.channel_hi) for name, t in seen.items() if t.channel_count}
    explained = [
        _explained(prepared, c, bits[c.layer], ranges, channels, recipe) if i < worst else c
        for i, c in enumerate(found)
    ]
    total = {side: sqnr(reference, run_all(g, feeds)) for side, g in sides.items()}
    return Diagnosis(base, total["weights"], total["input"], total["both"], tuple(explained))


def _explained(
    graph: Graph, c: Culprit, bits: tuple[int, int], ranges: Ranges, channels: Mapping[str, tuple[Array, Array]],
    recipe: Recipe,
) -> Culprit:  # fmt: skip
    """With facts about the tensor's distribution, and advice."""
    facts: list[str] = []
    advice: list[str] = []
    node = next(n for n in graph.nodes if n.name == c.layer)
    if c.side == "weights":
        w = node.input(1).array().astype(np.float64)
        axis = channel_axis(node)
        tops = np.abs(w if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).reshape(-1, 1)
        if axis is not None:
            tops = np.abs(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)).max(axis=1)
        spread = float(tops.max() / max(float(np.median(tops)), 1e-30))
        deviation = float(np.abs(w).max() / max(float(w.std()), 1e-30))
        facts.append(f"max|w| of channels: {spread:.1f} times their median; extremes at {deviation:.1f} deviations")
        if spread > 8 and not recipe.per_channel:
            advice.append("channels differ much: per_channel=true, or equalize")
        if deviation > 8 and recipe.weight_range == "minmax":
            advice.append("outliers stretch the grid: weight_range='mse'")
        if recipe.rounding == "nearest":
            advice.append("choose the rounding from data: rounding='gptq'")
        if bits[0] < 8:
            advice.append(f"or keep this layer wider: layers={{{c.layer!r}: (8, {bits[1]})}}, or search")
    else:
        lo, hi = ranges.at(c.tensor, bits[1])
        seen = ranges.seen(c.tensor)
        facts.append(f"range [{lo:.4g}, {hi:.4g}], extremes seen [{seen[0]:.4g}, {seen[1]:.4g}]")
        clipped = (seen[1] - seen[0]) / max(hi - lo, 1e-30)
        if c.tensor in channels:
            reach = np.maximum(np.abs(channels[c.tensor][0]), np.abs(channels[c.tensor][1]))
            spread = float(reach.max() / max(float(np.median(reach)), 1e-30))
            facts.append(f"largest channel reaches {spread:.1f} times as far as the median channel")
            if spread > 8:
                advice.append("channels differ much: equalize='activations' (or 'weights') before quantizing")
        if clipped > 4:
            facts.append(f"the range leaves out {100 * (1 - 1 / clipped):.0f} % of the span seen")
        if clipped < 1.05 and recipe.method in ("minmax", "ema"):
            advice.append("extremes set the range: method='mse' or 'percentile'")
        if bits[1] < 8:
            advice.append(f"or keep this input wider: layers={{{c.layer!r}: ({bits[0]}, 8)}}, or search")
    if not advice:
        advice.append("keep it in 16 bits, or leave it as it is if the whole is good enough")
    return Culprit(c.layer, c.tensor, c.side, c.sqnr, tuple(facts), tuple(advice))
