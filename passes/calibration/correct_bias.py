"""CorrectBias: quantized weights shift a layer's mean output by dW E[x]; its bias takes the shift back.

E[y_quantized] = E[W x] + dW E[x],  b <- b - dW E[x]                                         [White Paper eq. 25-27]
E[x], the mean of each input channel, comes from data (empirical: `Statistics.channel_mean`) or from batch-norm
statistics through the clipped normal distribution (analytic: `data_free.analytic_moments`)     [White Paper eq. 28].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qir.graph import Graph, Node, Stage, Value
from qir.ops import op_of
from qir.ops.requantize import params_of
from qir.types import Array

from ..manager import Pass
from ..report import PassReport
from .data_free import analytic_moments
from .observers import Statistics

Floats = NDArray[np.float64]


def empirical_means(seen: Statistics) -> dict[str, Floats]:
    """Tensor name -> mean of each channel, from calibration."""
    return {name: t.channel_mean for name, t in seen.items() if t.channel_count}


def analytic_means(graph: Graph, input_ranges: Mapping[str, tuple[float, float]] | None = None) -> dict[str, Floats]:
    """Tensor name -> mean of each channel, from batch-norm statistics and weights."""
    return {name: m.mean for name, m in analytic_moments(graph, input_ranges).items()}


@dataclass(frozen=True)
class CorrectBias(Pass):
    """QDQ -> QDQ: correct the bias of every linear layer.

    reference: the float graph that the QDQ graph was made from (same node names).
    means:     tensor name -> mean of each channel (`empirical_means` or `analytic_means`).
    only:      names of the layers to correct; None: all.
    """

    name: ClassVar[str] = "correct_bias"
    requires: ClassVar[Stage] = Stage.QDQ

    reference: Graph
    means: Mapping[str, Array] = field(default_factory=dict[str, Any])
    only: Collection[str] | None = None

    def run(self, graph: Graph) -> PassReport:
        report = self.report()
        floats = {n.name: n for n in self.reference.nodes if op_of(n.op).linear}
        for node in graph.nodes:
            if not op_of(node.op).linear or node.name not in floats:
                continue
            if self.only is not None and node.name not in self.only:
                continue
            missing = self._correct(graph, node, floats[node.name])
            if missing:
                report.missed(self.name, node.name, missing)
            else:
                report.rewrote(self.name, node.name)
        return report

    def _correct(self, graph: Graph, node: Node, counterpart: Node) -> str | None:
        """Correct one layer; a sentence where that cannot be."""
        back = node.input(1).producer
        if back is None or back.op != "DequantizeLinear" or not back.input(0).is_constant:
            return "its weights are not quantized constants"
        if not counterpart.input(1).is_constant or counterpart.input(1).shape != back.input(0).shape:
            return "its float weights are not constants of the same shape"
        if node.op == "MatMul":
            return "it has no bias"
        x = counterpart.input(0).name
        if x not in self.means:
            return f"the mean of {x!r} is not known"
        delta = params_of(back).dequantize(back.input(0).array()) - counterpart.input(1).array().astype(np.float64)
        shift = mean_output(node, delta, np.asarray(self.means[x], np.float64))
        if shift is None:
            return f"the mean of {x!r} has {len(self.means[x])} channels"
        beta = float(node.attrs.get("beta", 1.0)) or 1.0
        return self._set(graph, node, shift * float(node.attrs.get("alpha", 1.0)) / beta)

    @staticmethod
    def _set(graph: Graph, node: Node, shift: Floats) -> str | None:
        old: Value | None = node.optional(2)
        before = np.zeros(len(shift)) if old is None else np.broadcast_to(_reals(old).reshape(-1), shift.shape)
        stem = old.name if old is not None else f"{node.name}.bias"
        with np.errstate(over="ignore"):
            after = (before - shift).astype(node.output.dtype.numpy)
        if not np.isfinite(after).all():
            return "the correction does not fit its dtype"
        graph.set_input(node, 2, graph.add_constant(f"{stem}.corrected", after))
        return None


def _reals(bias: Value) -> Array:
    """A bias as reals: a float constant, or integers behind a DequantizeLinear."""
    if bias.data is not None:
        return bias.data.astype(np.float64)
    assert bias.producer is not None
    return params_of(bias.producer).dequantize(bias.producer.input(0).array())


def mean_output(node: Node, w: Array, mean: Floats) -> Floats | None:
    """sum over inputs and taps of w E[x]: the mean output of a layer with weights w, padding left aside.

    None where the number of means does not fit.
    """
    if node.op == "Gemm":
        rows = w if node.attrs.get("transB", 0) else w.T
        return rows @ mean if rows.shape[1] == len(mean) else None
    group = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        taps = w.reshape(group, w.shape[0] // group, w.shape[1], -1).sum(-1)
    else:  # ConvTranspose: (C_in, M/group, taps); each output position meets one tap in prod(strides)
        spread = max(int(np.prod(node.attrs.get("strides") or [1])), 1)
        flat = w.reshape(group, w.shape[0] // group, w.shape[1], -1).sum(-1) / spread
        taps = np.swapaxes(flat, 1, 2)
    if taps.shape[0] * taps.shape[2] != len(mean):
        return None
    return np.einsum("gmc,gc->gm", taps, mean.reshape(group, -1)).reshape(-1)
