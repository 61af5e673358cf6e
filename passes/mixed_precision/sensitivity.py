"""How much each layer minds each choice of bits: one interface, several measures, results as JSON.

fisher   trace / n * |Q(W) - W|^2 with the trace of the Gauss-Newton matrix from the network's own predictions, plus the
         same of the layer's input for its activation bits   [HAWQ-V2 eq. 2.11; HAWQ-V3 eq. 11]
hessian  the same with the trace of the weights' Hessian (Hutchinson)
kl       KL divergence of softmax(output) with only this layer quantized, from the float one; mean over samples
mse      mean squared change of the outputs with only this layer quantized
sqnr     noise over signal of the outputs, 10^(-SQNR/10), with only this layer quantized
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, ParseError, QuantizationError
from qir.files import from_json, read_text, write_text
from qir.graph import Graph, Node
from qir.running import session
from qir.types import Array, DType, QuantParams

from ..gradients.hessian import fisher_traces, hessian_traces, softmax
from ..quantization.grids import affine
from ..quantization.insert_qdq import channel_axis, linear_nodes
from ..quantization.ranges import Ranges
from ..quantization.weight_grids import quantize_weights, weight_grid
from .cost_model import Bits, format_bits, parse_bits

FORMAT = "qir.sensitivity/1"
MEASURES = ("fisher", "hessian", "kl", "mse", "sqnr")


@dataclass(frozen=True)
class Sensitivity:
    """layers: node name -> bits -> perturbation, never negative.  details: further figures (traces, weight errors)."""

    measure: str
    layers: Mapping[str, Mapping[Bits, float]]
    details: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    def save(self, path: str | Path) -> None:
        """Write the JSON file."""
        raw = {
            "format": FORMAT, "measure": self.measure,
            "layers": {n: {format_bits(b): v for b, v in row.items()} for n, row in self.layers.items()},
            "details": {n: dict(row) for n, row in self.details.items()},
        }  # fmt: skip
        write_text(path, json.dumps(raw, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Sensitivity:
        """Read a JSON file.  Raises ParseError when it is missing or not what `save` writes."""
        return from_json(read_text(path), _sensitivity, "sensitivity file", str(path))


def _sensitivity(raw: Any) -> Sensitivity:
    if raw["format"] != FORMAT:
        raise ParseError(f"format {raw['format']!r}, not {FORMAT!r}")
    layers = {str(n): {parse_bits(b): float(v) for b, v in row.items()} for n, row in raw["layers"].items()}
    details = {str(n): {str(k): float(v) for k, v in row.items()} for n, row in raw["details"].items()}
    return Sensitivity(str(raw["measure"]), layers, details)


def measure_sensitivity(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    ranges: Ranges,
    *,
    measure: str = "fisher",
    choices: Sequence[Bits] = ((4, 4), (4, 8), (8, 8)),
    labels: Sequence[Array] | None = None,
    loss: str = "cross_entropy",
    probes: int = 4,
    seed: int = 0,
    weight_range: str = "mse",
) -> Sensitivity:
    """Sensitivities of all linear layers with constant weights of a float graph, for each choice of bits.

    ranges: of activations (see `calibrate`).  labels: for "hessian", an array for each batch.
    Raises QuantizationError on an unknown measure or choices that are not of 4 or 8 bits, DataError without batches or
    with labels that do not fit, UnsupportedError from gradients.
    """
    check_choices(choices)
    if measure not in MEASURES:
        raise QuantizationError(f"no measure {measure!r}", hint=f"one of {', '.join(MEASURES)}")
    feeds = list(batches)
    if not feeds:
        raise DataError("no data to measure sensitivity with")
    nodes = [n for n in linear_nodes(graph) if n.input(1).is_constant]
    if measure not in ("fisher", "hessian"):
        return _forward(graph, nodes, feeds, ranges, measure, choices, weight_range)
    inputs = sorted({n.input(0).name for n in nodes})
    weights = [n.input(1).name for n in nodes]
    names = list(dict.fromkeys(weights + inputs))
    traces = fisher_traces(graph, feeds, names, loss=loss, probes=probes, seed=seed)
    if measure == "hessian":
        own = list(dict.fromkeys(weights))
        traces |= hessian_traces(graph, feeds, own, labels=labels, loss=loss, probes=probes, seed=seed)
    noise = _activation_noise(graph, inputs, feeds, ranges, sorted({a for _, a in choices}))
    layers: dict[str, dict[Bits, float]] = {}
    details: dict[str, dict[str, float]] = {}
    for node in nodes:
        w, x = node.input(1), node.input(0).name
        errors = {b: weight_noise(node, b, weight_range) for b in sorted({c[0] for c in choices})}
        mean_w, mean_x = max(traces[w.name].mean, 0.0), max(traces[x].mean, 0.0)
        layers[node.name] = {(b, a): mean_w * errors[b] + mean_x * noise[x, a] for b, a in choices}
        details[node.name] = {
            "trace": traces[w.name].trace, "trace_error": traces[w.name].error, "weights": float(traces[w.name].size),
            "input_trace": traces[x].trace, **{f"weight_error_{b}": e for b, e in errors.items()},
        }  # fmt: skip
    return Sensitivity(measure, layers, details)


def check_choices(choices: Sequence[Bits]) -> None:
    """Raises QuantizationError where integer graphs cannot have them, there are none, or one comes twice."""
    if not choices or len(set(choices)) < len(choices):
        raise QuantizationError("no choices, or one of them twice", hint="e.g. 4/4,4/8,8/8")
    for pair in choices:
        if any(bits not in (4, 8) for bits in pair):
            raise QuantizationError(f"no layer can have {format_bits(pair)} bits", hint="4 or 8 of each")


def weight_noise(node: Node, bits: int, method: str) -> float:
    """|Q(W) - W|^2 of a layer's weights, rounded to nearest."""
    w = node.input(1).array()
    q = weight_grid(w, bits, channel_axis(node), method)
    return float(((q.dequantize(quantize_weights(w, q)) - w) ** 2).sum())


def activation_grid(ranges: Ranges, name: str, bits: int) -> QuantParams:
    """The grid of an activation.  Raises QuantizationError where it has no range."""
    if name not in ranges:
        raise QuantizationError("has no range", where=f"tensor {name!r}", hint="calibrate this graph first")
    return affine(*ranges.at(name, bits), DType(f"uint{bits}"))


def _activation_noise(
    graph: Graph, names: Sequence[str], feeds: Sequence[Mapping[str, Array]], ranges: Ranges, widths: Sequence[int]
) -> dict[tuple[str, int], float]:
    """|Q(x) - x|^2 of one sample, averaged over the samples."""
    running = session(graph, backend="onnxruntime")
    total = {(name, bits): 0.0 for name in names for bits in widths}
    samples = 0
    for batch in feeds:
        values = running.run(dict(batch), outputs=names)
        samples += len(next(iter(batch.values())))
        for name, x in values.items():
            for bits in widths:
                q = activation_grid(ranges, name, bits)
                total[name, bits] += float(((q.dequantize(q.quantize(x)) - x) ** 2).sum())
    return {key: value / samples for key, value in total.items()}


# -- one layer at a time ----------------------------------------------------------------------------
def quantize_one(
    graph: Graph, name: str, bits: tuple[int | None, int | None], ranges: Ranges, weight_range: str = "mse"
) -> Graph:
    """A copy with one layer simulated at `bits` (weights, input); None leaves that side in float."""
    new = graph.clone()
    node = next(n for n in new.nodes if n.name == name)
    if bits[0] is not None:
        w = node.input(1)
        q = weight_grid(w.array(), bits[0], channel_axis(node), weight_range)
        reals = q.dequantize(quantize_weights(w.array(), q)).astype(w.dtype.numpy)
        new.set_input(node, 1, new.add_constant(f"{w.name}.simulated", reals))
    if bits[1] is not None:
        x = node.input(0)
        q = activation_grid(ranges, x.name, bits[1])
        scale = new.add_constant(f"{x.name}.scale", np.asarray(q.scale[0], x.dtype.numpy))
        zero = new.add_constant(f"{x.name}.zero_point", np.asarray(q.zero_point[0], q.dtype.numpy), q.dtype)
        ints = new.add_node("QuantizeLinear", [x, scale, zero], quant=q).output
        new.set_input(node, 0, new.add_node("DequantizeLinear", [ints, scale, zero]).output)
    return new


def run_all(graph: Graph, feeds: Sequence[Mapping[str, Array]]) -> list[Array]:
    """Each float output over all batches, as (samples, elements).

    With basic optimizations only: the others quantize weights between two quantized activations, and run layers in
    integers that were to be simulated.
    """
    running = session(graph, backend="onnxruntime", optimize="basic")
    names = [v.name for v in graph.outputs if v.dtype.is_float]
    runs = [running.run(dict(batch), outputs=names) for batch in feeds]
    return [
        np.concatenate([np.atleast_2d(r[n]).reshape(-1, np.atleast_1d(r[n]).shape[-1]) for r in runs]).astype(
            np.float64
        )
        for n in names
    ]


def perturbation(measure: str, reference: Sequence[Array], outputs: Sequence[Array]) -> float:
    """How far outputs are from the reference by "kl", "mse" or "sqnr"."""
    if measure == "kl":
        p, q = softmax(reference[0]), softmax(outputs[0])
        return float(np.maximum((p * (np.log(p + 1e-30) - np.log(q + 1e-30))).sum(axis=-1), 0).mean())
    noise = [float(((a - b) ** 2).sum()) for a, b in zip(reference, outputs, strict=True)]
    if measure == "mse":
        return sum(noise) / sum(a.size for a in reference)
    # of each output by itself: they may differ in size by orders of magnitude
    signal = [max(float((a**2).sum()), 1e-30) for a in reference]
    return float(np.mean([n / s for n, s in zip(noise, signal, strict=True)]))


def _forward(
    graph: Graph, nodes: Sequence[Node], feeds: Sequence[Mapping[str, Array]], ranges: Ranges, measure: str,
    choices: Sequence[Bits], weight_range: str,
) -> Sensitivity:  # fmt: skip
    reference = run_all(graph, feeds)
    layers: dict[str, dict[Bits, float]] = {}
    for node in nodes:
        layers[node.name] = {
            bits: perturbation(
                measure, reference, run_all(quantize_one(graph, node.name, bits, ranges, weight_range), feeds)
            )
            for bits in choices
        }
    return Sensitivity(measure, layers)
