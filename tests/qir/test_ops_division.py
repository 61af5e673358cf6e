"""Quotients of two activations, functions of 16 bits, and what real numbers a tensor can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper as oh

import qir
from qir import Graph, QuantParams, Stage, TensorType
from qir.errors import LoweringError
from qir.lowering import FREE, Lowering
from qir.ops.division import emit_quotient
from qir.ops.reals import real_interval
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness
from qir.types import DType
from qir.verify import verify

KINDS = [DType.INT8, DType.UINT8, DType.INT16, DType.INT32]


def quotient(seed: int) -> tuple[Graph, dict[str, Any], Any, QuantParams]:
    """(a graph of one qir.Div on random grids, feeds, the real quotient, the output's grid)."""
    rng = np.random.default_rng(seed)
    target = Graph("div", Stage.INTEGER)
    low = Lowering(Graph("source"), target)
    values: list[Any] = []
    feeds: dict[str, Any] = {}
    reals: list[Any] = []
    for name in "ab":
        kind = KINDS[int(rng.integers(4 if name == "b" else 3))]
        span = min(kind.hi - kind.lo, 1 << 30)
        zero = 0 if kind is DType.INT32 else int(rng.integers(kind.lo, kind.hi + 1))
        if name == "b" and zero == kind.hi:
            zero -= 1
        q = QuantParams.make(float(np.float32(10.0 ** rng.uniform(-1, 1) * 8 / span)), zero, kind)
        lo = zero if name == "b" else max(kind.lo, -(1 << 29))
        ints = rng.integers(lo, min(kind.hi, 1 << 29) + 1, size=(6, 50)).astype(kind.numpy)
        if name == "b":
            ints[0, :4] = min(zero + 1, kind.hi)
        values.append(target.add_input(name, TensorType(kind, ("N", 50), q)))
        feeds[name] = ints
        reals.append(q.dequantize(ints))
    floor = float(rng.choice([0.0, 0.05, 0.5])) * float(reals[1].max())
    real = reals[0] / np.maximum(reals[1], values[1].quant.scale[0])
    kind = [DType.INT8, DType.UINT8, DType.INT16][int(rng.integers(3))]
    middle = float(np.quantile(np.abs(real), 0.9)) or 1.0
    grid = QuantParams.make(float(np.float32(middle / (kind.hi - kind.lo) * 2)), (kind.hi + kind.lo + 1) // 2, kind)
    target.set_outputs([emit_quotient(low, values[0], values[1], floor, grid, FREE, "y")])
    return target, feeds, real, grid


@pytest.mark.parametrize("seed", range(24))
def test_quotients_are_exact_to_a_step(seed: int) -> None:
    graph, feeds, real, grid = quotient(seed)
    verify(graph, Stage.INTEGER)
    got = Session(graph, "reference").run(feeds)["y"].astype(np.int64)
    least = graph.nodes[0].attrs["least"] * graph.inputs[1].quant.scale[0]  # type: ignore[union-attr]
    b = graph.inputs[1].quant.dequantize(feeds["b"])  # type: ignore[union-attr]
    want = np.clip(np.rint(real / grid.scale[0]) + grid.zero_point[0], grid.dtype.lo, grid.dtype.hi)
    inside = b >= least
    assert np.abs(got - want)[inside].max(initial=0) <= 1
    assert (got != want)[inside].mean() < 0.02 + (0.1 if grid.dtype.bits == 16 else 0)
    for backend in ("onnxruntime", "cpu"):
        assert exactness(graph, feeds, backends=("reference", backend)).exact


def test_quotients_on_a_gpu() -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    device = EmulatedDevice()
    for seed in range(6):
        graph, feeds, _, _ = quotient(seed)
        want = Session(graph, "reference").run(feeds)["y"]
        np.testing.assert_array_equal(Session(graph, "cuda", device=device).run(feeds)["y"], want)


def model(nodes: list[Any], shapes: list[list[Any]], constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    """x0, x1, ... -> nodes -> y."""
    kind = onnx.TensorProto.FLOAT
    graph = oh.make_graph(
        nodes, "g", [oh.make_tensor_value_info(f"x{i}", kind, s) for i, s in enumerate(shapes)],
        [oh.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)])


def minmax() -> onnx.ModelProto:
    """(x - min x) / (max x - min x + eps)"""
    axes = {"ax": np.asarray([1]), "eps": np.float32(1e-3)}
    nodes = [
        oh.make_node("ReduceMin", ["x0", "ax"], ["lo"]), oh.make_node("ReduceMax", ["x0", "ax"], ["hi"]),
        oh.make_node("Sub", ["x0", "lo"], ["a"]), oh.make_node("Sub", ["hi", "lo"], ["r"]),
        oh.make_node("Abs", ["r"], ["d"]), oh.make_node("Add", ["d", "eps"], ["b"]),
        oh.make_node("Div", ["a", "b"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12]], axes)


def weighted_mean() -> onnx.ModelProto:
    """sum(sigmoid(w) x) / sum(sigmoid(w))"""
    nodes = [
        oh.make_node("Sigmoid", ["x1"], ["w"]), oh.make_node("Mul", ["x0", "w"], ["p"]),
        oh.make_node("ReduceSum", ["p", "ax"], ["s"]), oh.make_node("ReduceSum", ["w", "ax"], ["t"]),
        oh.make_node("Div", ["s", "t"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12, 3], ["N", 12, 3]], {"ax": np.asarray([1])})


def ratio_of_squares() -> onnx.ModelProto:
    """x0 / (x1^2 + 0.5)"""
    nodes = [
        oh.make_node("Mul", ["x1", "x1"], ["q"]), oh.make_node("Add", ["q", "c"], ["b"]),
        oh.make_node("Div", ["x0", "b"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12], ["N", 12]], {"c": np.float32(0.5)})


def reciprocal() -> onnx.ModelProto:
    """1 / (exp(x0) + 1) x1"""
    nodes = [
        oh.make_node("Exp", ["x0"], ["e"]), oh.make_node("Add", ["e", "one"], ["b"]),
        oh.make_node("Reciprocal", ["b"], ["r"]), oh.make_node("Mul", ["r", "x1"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12], ["N", 12]], {"one": np.float32(1.0)})


def log_energy() -> onnx.ModelProto:
    """log(max(sum x^2, 1e-4))"""
    nodes = [
        oh.make_node("Mul", ["x0", "x0"], ["q"]), oh.make_node("ReduceSum", ["q", "ax"], ["s"]),
        oh.make_node("Clip", ["s", "c"], ["m"]), oh.make_node("Log", ["m"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12, 3]], {"ax": np.asarray([2]), "c": np.float32(1e-4)})


def root_mean_square() -> onnx.ModelProto:
    """sqrt(mean x^2)"""
    nodes = [
        oh.make_node("Pow", ["x0", "two"], ["q"]), oh.make_node("ReduceMean", ["q", "ax"], ["s"]),
        oh.make_node("Sqrt", ["s"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12, 3]], {"ax": np.asarray([2]), "two": np.float32(2)})


def norm_of_gates() -> onnx.ModelProto:
    """sqrt(sum relu(x)^2 sigmoid(x1)): products of what is never negative"""
    nodes = [
        oh.make_node("Relu", ["x0"], ["p"]), oh.make_node("Sigmoid", ["x1"], ["g"]),
        oh.make_node("Mul", ["p", "p"], ["q"]), oh.make_node("Mul", ["q", "g"], ["t"]),
        oh.make_node("ReduceSum", ["t", "ax"], ["s"]), oh.make_node("Sqrt", ["s"], ["y"]),
    ]  # fmt: skip
    return model(nodes, [["N", 12, 3], ["N", 12, 3]], {"ax": np.asarray([1])})


NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], float]] = {
    "min-max": (minmax, 33), "weighted mean": (weighted_mean, 33), "squares": (ratio_of_squares, 35),
    "reciprocal": (reciprocal, 30), "log of energies": (log_energy, 30), "root mean square": (root_mean_square, 33),
    "products of positive numbers": (norm_of_gates, 33),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_with_quotients_and_wide_functions(name: str) -> None:
    build, bar = NETWORKS[name]
    graph = qir.load(build())
    calib, test = (
        {v.name: np.random.default_rng((s, i)).normal(size=(64, *map(int, v.shape[1:]))).astype(np.float32)
         for i, v in enumerate(graph.inputs)} for s in (0, 1)
    )  # fmt: skip
    integer, _ = qir.quantize(graph, calib)
    want, got = (Session(g, "reference").run(test)["y"].astype(np.float64) for g in (graph, integer))
    decibels = 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())
    assert decibels > bar, decibels
    few = {k: v[:4] for k, v in test.items()}
    for backend in ("onnxruntime", "cpu"):
        result = exactness(integer, few, backends=("reference", backend))
        assert result.exact, (backend, result.differing)


def test_a_divisor_that_may_be_zero_is_refused_before_calibration() -> None:
    nodes = [oh.make_node("Tanh", ["x1"], ["t"]), oh.make_node("Div", ["x0", "t"], ["y"], name="q")]
    with pytest.raises(LoweringError, match=r"Div node 'q': divides by 't.*anything from -0.8.*provably positive"):
        qir.quantize(model(nodes, [["N", 4], ["N", 4]]), iter([]))


INTERVALS: dict[str, tuple[str, tuple[float, float]]] = {
    "sigmoid": ("Sigmoid(%x)", (0, 1)), "square": ("Mul(%x, %x)", (0, np.inf)), "shifted": ("Add(%s, %c)", (0.5, 1.5)),
    "difference": ("Sub(%c, %s)", (-0.5, 0.5)), "quotient": ("Div(%c, %u)", (1 / 3, 1.0)),
    "exp": ("Exp(%s)", (1, np.e)), "negative": ("Neg(%u)", (-1.5, -0.5)), "clipped": ("Clip(%x, %c)", (0.5, np.inf)),
    "anything": ("Tanh(%x)", (-1, 1)), "sum": ("ReduceSum(%u, %axes)", (2.0, 6.0)),
    "mean": ("ReduceMean(%u, %axes)", (0.5, 1.5)), "root": ("Sqrt(%u)", (0.5**0.5, 1.5**0.5)),
    "moved": ("Transpose(%u)", (0.5, 1.5)), "soft": ("Softmax(%x)", (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERVALS)
def test_real_intervals(name: str) -> None:
    text, want = INTERVALS[name]
    shape = {"sum": "[N,1]", "mean": "[N,1]", "moved": "[4,N]"}.get(name, "[N,4]")
    graph = Graph.parse(f"""
graph "g" stage=FLOAT {{
  input %x: float32[N,4]
  const %c: float32[] = 0.5
  const %axes: int64[1] = [1]
  %s: float32[N,4] = Sigmoid(%x)
  %u: float32[N,4] = Add(%s, %c)
  %y: float32{shape} = {text}
  return %y
}}
""")
    assert real_interval(graph.outputs[0]) == pytest.approx(want)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 3
    y = Session(graph, "reference").run({"x": x})["y"]
    assert y.min() >= want[0] - 1e-6 and y.max() <= want[1] + 1e-6
