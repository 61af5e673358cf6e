"""Cross-layer equalization and bias absorption: same function, better ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir.errors import StageError
from qir.graph import Graph, Stage, Value
from qir.passes.calibration.data_free import BATCH_NORM_TABLE
from qir.passes.layers import Layer
from qir.passes.prepare.absorb_bias import AbsorbBias, channel_minima
from qir.passes.prepare.equalize import Equalize
from qir.runtime import Session
from qir.types import DType, TensorType


class Net:
    """Writes small networks."""

    def __init__(self, seed: int, stage: Stage = Stage.FOLDED) -> None:
        print(f"seed {seed}")
        self.rng = np.random.default_rng(seed)
        self.graph = Graph("net", stage)
        self.x = self.graph.add_input("x", TensorType(DType.FLOAT32, ("N", 3, 8, 8)))

    def const(self, *shape: int, spread: float = 1.5) -> Value:
        """Weights whose channels differ by orders of magnitude."""
        scale = np.exp(self.rng.normal(scale=spread, size=(shape[0], *[1] * (len(shape) - 1))))
        return self.graph.add_constant("c", (self.rng.normal(size=shape) * scale).astype(np.float32))

    def op(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.graph.add_node(op, list(inputs), attrs).output

    def conv(self, x: Value, channels: int, k: int = 1, *, group: int = 1, pad: int = 0) -> Value:
        w = self.const(channels, int(x.shape[1]) // group, k, k)
        return self.op("Conv", x, w, self.const(channels), group=group, pads=[pad] * 4)

    def clip(self, x: Value, hi: float = 6.0) -> Value:
        limits = [self.graph.add_constant("limit", np.asarray(v, np.float32)) for v in (0.0, hi)]
        return self.op("Clip", x, *limits)

    def done(self, y: Value) -> Graph:
        self.graph.set_outputs([y])
        return self.graph

    def feeds(self) -> dict[str, Any]:
        return {"x": self.rng.normal(size=(3, 3, 8, 8)).astype(np.float32)}


def outputs(graph: Graph, feeds: dict[str, Any]) -> Any:
    return Session(graph, "reference").run(feeds)[graph.outputs[0].name]


def depthwise_triple(seed: int, *, relu6: bool) -> Net:
    net = Net(seed)
    x = net.conv(net.x, 8)
    x = net.clip(x) if relu6 else net.op("Relu", x)
    x = net.conv(x, 8, 3, group=8, pad=1)
    x = net.clip(x) if relu6 else net.op("Relu", x)
    net.done(net.conv(x, 5))
    return net


@pytest.mark.parametrize("seed", range(4))
def test_a_depthwise_triple_converges(seed: int) -> None:
    """Ranges on both sides of each link become equal, and the function stays."""
    net = depthwise_triple(seed, relu6=False)
    feeds = net.feeds()
    after, report = Equalize(limit=1e9, iterations=200, tolerance=1e-6).apply(net.graph)
    np.testing.assert_allclose(outputs(after, feeds), outputs(net.graph, feeds), rtol=1e-4, atol=1e-5)
    assert len(report["equalize"].rewrites["equalize"]) == 2
    first, depthwise, last = (Layer(n) for n in after.nodes if n.op == "Conv")
    np.testing.assert_allclose(first.output_range(), depthwise.input_range(), rtol=1e-4)
    np.testing.assert_allclose(depthwise.output_range(), last.input_range(), rtol=1e-4)


@pytest.mark.parametrize("clip", ["keep", "clip", "relu"])
def test_relu6(clip: str) -> None:
    """`clip` is exact, `keep` does nothing, `relu` only drops the limit."""
    net = depthwise_triple(1, relu6=True)
    feeds = net.feeds()
    after, report = Equalize(clip=clip).apply(net.graph)
    ops = {n.op for n in after.nodes}
    if clip == "relu":
        assert "Clip" not in ops and "Min" not in ops
        unclipped = depthwise_triple(1, relu6=False)
        np.testing.assert_allclose(outputs(after, feeds), outputs(unclipped.graph, feeds), rtol=1e-4, atol=1e-5)
        return
    np.testing.assert_allclose(outputs(after, feeds), outputs(net.graph, feeds), rtol=1e-4, atol=1e-5)
    assert ("Min" in ops) == (clip == "clip")
    assert bool(report["equalize"].count) == (clip == "clip")


def test_through_pools_pads_slopes_and_a_flatten() -> None:
    net = Net(3)
    x = net.op("PRelu", net.conv(net.x, 4, 3), net.graph.add_constant("s", np.full((4, 1, 1), 0.2, np.float32)))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    pads = net.graph.add_constant("p", np.asarray([0, 0, 1, 0, 0, 0, 0, 1]))
    x = net.op("LeakyRelu", net.conv(net.op("Pad", x, pads), 6), alpha=0.1)
    x = net.op("AveragePool", x, kernel_shape=[2, 2])
    x = net.op("Flatten", x)
    w = net.const(7, int(x.shape[1]))
    graph = net.done(net.op("Gemm", x, w, net.const(7), transB=1))
    feeds = net.feeds()
    after, report = Equalize().apply(graph)
    assert len(report["equalize"].rewrites["equalize"]) == 2
    np.testing.assert_allclose(outputs(after, feeds), outputs(graph, feeds), rtol=1e-4, atol=1e-4)


def test_near_misses_are_sentences() -> None:
    """Residuals, activations that do not scale, shared weights, graph outputs."""
    net = Net(4)
    a = net.op("Relu", net.conv(net.x, 4))
    b = net.conv(a, 4)
    c = net.op("Sigmoid", net.op("Add", a, b))
    graph = net.done(net.conv(c, 4))
    after, report = Equalize().apply(graph)
    reasons = [m.reason for m in report["equalize"].misses]
    assert any("2 uses" in r for r in reasons) and any("does not scale" in r for r in reasons)
    assert not report["equalize"].count and len(after) == len(graph)


def test_the_wrong_stage_is_an_error() -> None:
    net = Net(5, Stage.FLOAT)
    graph = net.done(net.conv(net.x, 4))
    with pytest.raises(StageError, match="stage FOLDED"):
        Equalize().apply(graph)


def biased(seed: int, *, pad: int = 0) -> Net:
    """The first layer's output is far above zero in half of its channels."""
    net = Net(seed)
    w = net.graph.add_constant("w", net.rng.normal(scale=0.1, size=(6, 3, 1, 1)).astype(np.float32))
    bias = np.asarray([5, 0, 9, 0, 7, 0], np.float32)
    x = net.op("Conv", net.x, w, net.graph.add_constant("b", bias))
    net.graph.tables[BATCH_NORM_TABLE] = {x.name: (bias.astype(np.float64), np.full(6, 0.3))}
    net.done(net.conv(net.op("Relu", x), 4, 3, pad=pad))
    return net


def test_absorb_bias_from_statistics_and_from_data() -> None:
    net = biased(6)
    feeds = net.feeds()
    before = outputs(net.graph, feeds)
    for option in (AbsorbBias(), AbsorbBias(minima=channel_minima(net.graph, [feeds], backend="reference"))):
        after, report = option.apply(net.graph)
        assert report["absorb_bias"].count == 1
        np.testing.assert_allclose(outputs(after, feeds), before, rtol=1e-3, atol=1e-3)
        bias = next(n for n in after.nodes if n.op == "Conv").input(2).array()
        assert bias.max() < 1.5, "the large biases have moved"
        beta, _ = after.tables[BATCH_NORM_TABLE][next(iter(after.tables[BATCH_NORM_TABLE]))]
        assert beta.max() < 1.5
        assert net.graph.tables[BATCH_NORM_TABLE][next(iter(after.tables[BATCH_NORM_TABLE]))][0].max() == 9


def test_absorb_bias_minds_padding() -> None:
    """A padded second layer is a near miss, or, where asked for, wrong at the border only."""
    net = biased(7, pad=1)
    feeds = net.feeds()
    _, report = AbsorbBias().apply(net.graph)
    assert not report["absorb_bias"].count and "pads" in report["absorb_bias"].misses[0].reason
    after, report = AbsorbBias(padded=True).apply(net.graph)
    a, b = outputs(after, feeds), outputs(net.graph, feeds)
    np.testing.assert_allclose(a[:, :, 1:-1, 1:-1], b[:, :, 1:-1, 1:-1], rtol=1e-3, atol=1e-3)
    assert not np.allclose(a, b, atol=0.1)
