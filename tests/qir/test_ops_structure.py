"""Data movement over accumulators, sums and activations that still wait for their grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, QuantParams, Stage, TensorType, Value
from qir.errors import LoweringError

A = QuantParams.make(0.03, 120, DType.UINT8)
B = QuantParams.make(0.05, -3, DType.INT8)
W = QuantParams.make(0.0004, 11, DType.INT16)
RNG = np.random.default_rng(11)


class Net:
    """A QDQ graph with one quantized input x (N, 4, 6, 6)."""

    def __init__(self, quantize_dequantize: Any, shape: tuple[int | str, ...] = ("N", 4, 6, 6)) -> None:
        self.g, self.pair = Graph(stage=Stage.QDQ), quantize_dequantize
        self.raw = self.g.add_input("x", TensorType(DType.FLOAT32, shape))
        self.x = self.q(self.raw, A)
        self.feeds = {"x": RNG.normal(size=[2 if isinstance(d, str) else d for d in shape]).astype(np.float32)}

    def q(self, value: Value, grid: QuantParams) -> Value:
        return self.pair(self.g, value, grid)

    def op(self, op: str, *inputs: Any, **attrs: Any) -> Value:
        values = [v if v is None or isinstance(v, Value) else self.g.add_constant("k", np.asarray(v)) for v in inputs]
        return self.g.add_node(op, values, attrs, outputs=[f"{op.lower()}{len(self.g)}"]).output

    def conv(self, x: Value, channels: int = 6) -> Value:
        """A 3x3 convolution with per-channel weights: an int32 accumulator with a scale a channel."""
        w = RNG.normal(size=(channels, int(x.shape[1]), 3, 3)) * 0.2
        grid = QuantParams.make(np.abs(w).reshape(channels, -1).max(axis=1) / 127, 0, DType.INT8, axis=0)
        ints = self.g.add_constant("w", grid.quantize(w), DType.INT8)
        scale = self.g.add_constant("s", np.asarray(grid.scale, np.float32))
        zero = self.g.add_constant("z", np.zeros(channels, np.int8))
        weights = self.g.add_node("DequantizeLinear", [ints, scale, zero], {"axis": 0}).output
        return self.op("Conv", x, weights, pads=[1, 1, 1, 1])

    def done(self, check: Any, *outputs: tuple[Value, QuantParams], steps: float = 1) -> Graph:
        self.g.set_outputs([self.q(v, grid) for v, grid in outputs])
        return check(self.g, self.feeds, [grid for _, grid in outputs], steps)


@pytest.fixture
def net(quantize_dequantize: Any) -> Net:
    return Net(quantize_dequantize)


MOVES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Reshape", [[0, 3, -1]], {}),
    ("Flatten", [], {}),
    ("Unsqueeze", [[1]], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Slice", [[1], [5], [1]], {}),
    ("Pad", [[0, 0, 1, 1, 0, 0, 1, 1], np.float32(0.7)], {}),
    ("Gather", [[5, 0, 2]], {"axis": 1}),
    ("Resize", [None, np.asarray([1, 1, 2, 2], np.float32)], {"coordinate_transformation_mode": "asymmetric"}),
    ("MaxPool", [], {"kernel_shape": [2, 2]}),
    ("GlobalMaxPool", [], {}),
    ("ReduceMax", [[2]], {}),
    ("Identity", [], {}),
]


@pytest.mark.parametrize("move", MOVES, ids=lambda m: str(m[0]))
@pytest.mark.parametrize("source", ["accumulator", "relu", "sum", "clip after"])
def test_moves_of_what_waits_for_a_grid(move: Any, source: str, net: Net, check_lowering: Any) -> None:
    op, rest, attrs = move
    y = net.conv(net.x)
    if source == "relu":
        y = net.op("Relu", y)
    elif source == "sum":
        y = net.op("Add", net.q(y, W), net.q(net.conv(net.x), W))
    y = net.op(op, y, *rest, **attrs)
    if source == "clip after":
        y = net.op("Relu", y)
    graph = net.done(check_lowering, (y, A), steps=1)
    assert sum(n.op == "qir.Requantize" for n in graph.nodes) <= (2 if source == "sum" else 1)


def test_split_of_an_accumulator_to_two_grids(net: Net, check_lowering: Any) -> None:
    y = net.conv(net.x)
    parts = net.g.add_node("Split", [y, net.g.add_constant("k", np.asarray([2, 4]))], {"axis": 1}, outputs=["a", "b"])
    graph = net.done(check_lowering, (parts.outputs[0], A), (parts.outputs[1], A))
    assert [n.op for n in graph.nodes].count("Split") == 1
    net = Net(net.pair)
    y = net.conv(net.x)
    parts = net.g.add_node("Split", [y, net.g.add_constant("k", np.asarray([2, 4]))], {"axis": 1}, outputs=["a", "b"])
    net.done(check_lowering, (parts.outputs[0], A), (parts.outputs[1], B))


def test_inception_block(quantize_dequantize: Any, check_lowering: Any) -> None:
    """Branches of a concatenation requantize straight to its grid: no Requantize of its own."""
    net = Net(quantize_dequantize, (2, 4, 6, 6))
    branches = [
        net.op("Relu", net.conv(net.x, 3)), net.conv(net.q(net.op("Relu", net.conv(net.x)), A), 2),
        net.op("MaxPool", net.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        net.op("AveragePool", net.x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        np.float32(RNG.normal(size=(2, 1, 6, 6))),
    ]  # fmt: skip
    graph = net.done(check_lowering, (net.op("Concat", *branches, axis=1), B))
    ops = [n.op for n in graph.nodes]
    assert ops.count("qir.Requantize") == 5 and ops.count("Concat") == 1


def test_channel_shuffle_with_any_batch(net: Net, check_lowering: Any) -> None:
    y = net.op("Reshape", net.conv(net.x), [0, 2, 3, 6, 6])
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3, 4]), [-1, 6, 6, 6])
    graph = net.done(check_lowering, (y, A))
    assert graph.outputs[0].shape == ("N", 6, 6, 6)


def test_nhwc_input(quantize_dequantize: Any, check_lowering: Any) -> None:
    """A movement of the graph's input: the border quantizes, then integers move."""
    net = Net(quantize_dequantize, ("N", 5, 5, 3))
    y = net.conv(net.q(net.op("Transpose", net.raw, perm=[0, 3, 1, 2]), A))
    graph = net.done(check_lowering, (y, B))
    assert [n.op for n in graph.nodes][:2] == ["QuantizeLinear", "Transpose"]


def test_moved_weights_stay_integers(net: Net, check_lowering: Any) -> None:
    w = RNG.normal(size=(3, 3, 4, 6)) * 0.2  # HWIO
    grid = QuantParams.make(np.abs(w).reshape(-1, 6).max(axis=0) / 127, 0, DType.INT8, axis=3)
    ints = net.g.add_constant("w", grid.quantize(w), DType.INT8)
    scale = net.g.add_constant("s", np.asarray(grid.scale, np.float32))
    real = net.g.add_node("DequantizeLinear", [ints, scale, None], {"axis": 3}).output
    y = net.op("Conv", net.x, net.op("Transpose", real, perm=[3, 2, 0, 1]), pads=[1, 1, 1, 1])
    graph = net.done(check_lowering, (y, A))
    assert next(n for n in graph.nodes if n.op == "qir.Conv").input(1).dtype is DType.INT8


def test_non_maximum_suppression_by_pooling(net: Net, check_lowering: Any) -> None:
    """heat * (heat == maxpool(heat)), the decoder of keypoint and line detectors."""
    heat = net.x
    peak = net.op("MaxPool", heat, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mask = net.op("Cast", net.op("Equal", heat, peak), to="float32")
    graph = net.done(check_lowering, (mask, QuantParams.make(1 / 255, 0, DType.UINT8)), steps=0)
    assert "Equal" in [n.op for n in graph.nodes]


def test_errors_say_where_a_quantizer_is_missing(net: Net, check_lowering: Any) -> None:
    y = net.op("AveragePool", net.op("Add", net.x, net.x), kernel_shape=[2, 2])
    with pytest.raises(LoweringError, match=r"is not quantized .insert a QuantizeLinear"):
        net.done(check_lowering, (y, A))


def test_sums_are_proved_to_fit_through_the_verifier(quantize_dequantize: Any, check_lowering: Any) -> None:
    """A pooled mean and a bilinear upsampling of wide tensors: the proof knows how far their sums reach."""
    from qir.verify import verify

    for grid in (A, B, W):
        net = Net(quantize_dequantize, ("N", 4, 6, 6))
        x = net.q(net.conv(net.x), grid)
        mean = net.op("GlobalAveragePool", x)
        border = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        scales = np.asarray([1, 1, 2, 2], np.float32)
        up = net.op("Resize", x, None, scales, mode="linear")
        graph = net.done(check_lowering, (mean, A), (border, A), (up, A))
        verify(graph, Stage.INTEGER)
