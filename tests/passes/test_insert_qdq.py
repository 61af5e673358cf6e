"""Relations, placement of quantizers, weight grids, InsertQdq."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qir
from qir.errors import QuantizationError, StageError
from qir.graph import Graph, Node, Stage, Value
from qir.passes.quantization.align_scales import Derived, Shared, Solution
from qir.passes.quantization.insert_qdq import InsertQdq
from qir.passes.quantization.lower_to_dyadic import LowerToDyadic
from qir.passes.quantization.placement import Widths, first_and_last, observed, place
from qir.passes.quantization.ranges import Ranges
from qir.passes.quantization.weight_grids import quantize_weights, weight_grid
from qir.runtime import Session
from qir.types import DType, QuantParams, TensorType

KEYS = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([8, 16]))


@given(st.lists(st.tuples(KEYS, KEYS), max_size=20))
def test_union_find_is_reachability(pairs: list[tuple[tuple[str, int], tuple[str, int]]]) -> None:
    solution = Solution([Shared(a, b) for a, b in pairs])
    for a in {k for p in pairs for k in p}:
        reached, grown = {a}, True
        while grown:
            more = {k for p in pairs for k in p if reached & set(p)} - reached
            reached, grown = reached | more, bool(more)
        assert set(solution.members(a)) == reached
        assert len({solution.root(k) for k in reached}) == 1


def test_derived_reaches_its_class() -> None:
    solution = Solution([Derived(("a", 8), -1, 0), Shared(("a", 8), ("b", 8)), Derived(("b", 8), 0, 3)])
    assert solution.reach(("a", 8)) == (-1, 3)
    assert solution.reach(("c", 8)) is None
    assert [sorted(c) for c in solution.classes()] == [[("a", 8), ("b", 8)]]


# -- graphs ---------------------------------------------------------------------------------------
class Net:
    """Builds small float graphs."""

    def __init__(self, channels: int = 4) -> None:
        self.rng = np.random.default_rng(0)
        self.graph = Graph("net", Stage.FOLDED)
        self.x = self.graph.add_input("x", TensorType(DType.FLOAT32, ("N", channels, 6, 6)))

    def conv(self, x: Value, name: str, channels: int = 4, k: int = 3) -> Value:
        w = self.rng.normal(size=(channels, int(x.shape[1]), k, k)).astype(np.float32) * 0.3
        b = self.rng.normal(size=channels).astype(np.float32)
        inputs = [x, self.graph.add_constant(f"{name}.w", w), self.graph.add_constant(f"{name}.b", b)]
        return self.graph.add_node("Conv", inputs, {"pads": [k // 2] * 4}, outputs=[name]).output

    def op(self, kind: str, *inputs: Value, name: str, **attrs: object) -> Value:
        return self.graph.add_node(kind, list(inputs), attrs, outputs=[name]).output

    def done(self, *outputs: Value) -> Graph:
        self.graph.set_outputs(outputs)
        return self.graph

    def ranges(self) -> Ranges:
        values = [v.name for v in self.graph.values if not v.is_constant]
        return Ranges.of({name: (-2.0 - i, 3.0 + i) for i, name in enumerate(values)})


def quantizers(graph: Graph) -> dict[str, list[QuantParams]]:
    """Float tensor -> the grids of the QuantizeLinear nodes that read it."""
    found: dict[str, list[QuantParams]] = {}
    for node in graph.nodes:
        if node.op == "QuantizeLinear":
            assert node.output.quant is not None
            found.setdefault(node.input(0).name, []).append(node.output.quant)
    return found


def kinds(graph: Graph) -> dict[str, list[str]]:
    return {k: [str(q.dtype) for q in v] for k, v in quantizers(graph).items()}


def node_of(graph: Graph, name: str) -> Node:
    return next(n for n in graph.nodes if n.name == name)


def residual() -> Net:
    net = Net()
    stem = net.op("Relu", net.conv(net.x, "stem"), name="stem.relu")
    branch = net.conv(net.op("Relu", net.conv(stem, "a"), name="a.relu"), "b")
    total = net.op("Relu", net.op("Add", branch, stem, name="sum"), name="sum.relu")
    net.done(net.conv(total, "head"))
    return net


def test_residual_stream_is_wide_and_convolutions_are_narrow() -> None:
    net = residual()
    result, report = InsertQdq(net.ranges()).apply(net.graph)
    assert result.stage is Stage.QDQ
    found = kinds(result)
    assert found["x"] == ["uint8"]
    assert found["stem.relu"] == ["int16"]  # then narrowed, from the wide one
    assert found["stem.relu.int16.dq"] == ["uint8"]
    assert found["b"] == ["int16"]
    assert found["a.relu"] == ["uint8"]
    assert found["sum.relu"] == ["uint8"]
    assert found["head.q"] == ["int16"]
    for fused in ("stem", "a", "sum"):
        assert fused not in found
    assert [v.name for v in result.outputs] == ["head"]
    assert "insert_qdq" in str(report)


def test_int8_everywhere() -> None:
    net = residual()
    result, _ = InsertQdq(net.ranges(), residual="int8", output="int8").apply(net.graph)
    assert {k for found in kinds(result).values() for k in found} == {"uint8"}
    result, _ = InsertQdq(net.ranges(), residual="int8", output="int8", symmetric=True).apply(net.graph)
    assert {k for found in kinds(result).values() for k in found} == {"int8"}
    assert all(q.zero_point == (0,) for found in quantizers(result).values() for q in found)


def test_the_graph_given_is_left_alone_and_computes_nearly_the_same() -> None:
    net = residual()
    x = np.random.default_rng(1).normal(size=(3, 4, 6, 6)).astype(np.float32)
    before = Session(net.graph, "onnxruntime").run({"x": x})["head"]
    names = observed(net.graph)
    values = Session(net.graph, "onnxruntime").run({"x": x}, outputs=names)
    ranges = Ranges.of({n: (float(v.min()), float(v.max())) for n, v in values.items()})
    result, _ = InsertQdq(ranges).apply(net.graph)
    after = Session(result, "onnxruntime").run({"x": x})["head"]
    assert (Session(net.graph, "onnxruntime").run({"x": x})["head"] == before).all()
    assert 10 * np.log10(np.square(before).sum() / np.square(before - after).sum()) > 30


def test_concatenation_shares_a_grid() -> None:
    net = Net()
    a, b = (net.op("Relu", net.conv(net.x, n), name=f"{n}.relu") for n in "ab")
    pooled = net.op("MaxPool", a, name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = net.op("Concat", pooled, b, name="cat", axis=1)
    net.done(net.conv(joined, "head"))
    ranges = Ranges.of({k: v for k, v in net.ranges().items() if k != "cat"})
    result, _ = InsertQdq(ranges).apply(net.graph)
    found = quantizers(result)
    assert found["a.relu"] == found["b.relu"]
    assert "cat" not in found
    assert "pool" not in found  # it passes through
    lo, hi = min(ranges["a.relu"][0], ranges["b.relu"][0]), max(ranges["a.relu"][1], ranges["b.relu"][1])
    grid = found["a.relu"][0]
    assert grid.scale[0] == pytest.approx((hi - lo) / 255, rel=1e-6)
    joint = quantizers(InsertQdq(ranges.updated({"cat": (0, 2.55)})).apply(net.graph)[0])
    assert joint["a.relu"] == joint["b.relu"] == [QuantParams.make(0.01, 0, DType.UINT8)]


def test_concatenation_with_an_operand_used_elsewhere() -> None:
    """The wide operand of a sum is narrowed to the concatenation's grid only for the concatenation."""
    net = Net()
    a, b = net.conv(net.x, "a"), net.conv(net.x, "b")
    total = net.op("Add", a, b, name="sum")
    joined = net.op("Concat", a, total, name="cat", axis=1)
    net.done(net.conv(joined, "head"))
    result, _ = InsertQdq(net.ranges()).apply(net.graph)
    found = quantizers(result)
    assert str(found["a"][0].dtype) == "int16"
    assert found["a.int16.dq"] == found["sum"]


def test_softmax_has_its_fixed_grid_and_reads_16_bits() -> None:
    net = Net()
    net.done(net.conv(net.op("Softmax", net.conv(net.x, "a"), name="soft", axis=1), "head"))
    found = quantizers(InsertQdq(net.ranges()).apply(net.graph)[0])
    assert found["soft"] == [QuantParams.make(2.0**-8, 0, DType.UINT8)]
    assert str(found["a"][0].dtype) == "int16"


def test_four_bits_but_for_the_ends() -> None:
    net = residual()
    result, _ = InsertQdq(net.ranges(), weight_bits=4, activation_bits=4).apply(net.graph)
    found = kinds(result)
    assert found["x"] == ["uint8"]
    assert found["a.relu"] == ["uint4"]
    assert found["stem.relu.int16.dq"] == ["uint4"]
    assert found["sum.relu"] == ["uint8"]  # read by the last layer
    weights = {n.name: str(n.input(1).producer.input(0).dtype) for n in result.nodes if n.op == "Conv"}  # type: ignore[union-attr]
    assert weights == {"stem": "int8", "a": "int4", "b": "int4", "head": "int8"}
    four, _ = InsertQdq(net.ranges(), weight_bits=4, first_last_bits=4).apply(net.graph)
    assert {str(v.dtype) for v in four.constants if v.quant} == {"int4"}


def test_layers_override_everything() -> None:
    net = residual()
    result, _ = InsertQdq(net.ranges(), layers={"a": (4, 4)}).apply(net.graph)
    assert str(node_of(result, "a").input(1).producer.input(0).dtype) == "int4"  # type: ignore[union-attr]
    assert kinds(result)["stem.relu.int16.dq"] == ["uint4"]


def test_ends_and_observed() -> None:
    net = residual()
    assert {n.name for n in first_and_last(net.graph)} == {"stem", "head"}
    assert observed(net.graph) == ["x", "stem.relu", "a.relu", "b", "sum.relu", "head"]


def test_pass_through_output_and_shared_weights() -> None:
    net = Net()
    a = net.conv(net.x, "a")
    twin = net.graph.add_node("Conv", node_of(net.graph, "a").inputs, {"pads": [1] * 4}, outputs=["twin"]).output
    flat = net.op("Flatten", a, name="flat")
    net.done(flat, twin)
    result, _ = InsertQdq(net.ranges()).apply(net.graph)
    assert [v.name for v in result.outputs] == ["flat", "twin"]
    assert kinds(result)["a"] == ["int16"]
    assert node_of(result, "a").input(1) is node_of(result, "twin").input(1)


def test_activation_after_a_move_keeps_what_the_clamp_cuts() -> None:
    net = Net()
    moved = net.op("Flatten", net.conv(net.x, "a"), name="flat")
    net.done(net.op("Relu", moved, name="y"))
    plan = place(net.graph, Widths())
    assert plan.width[net.graph.value("a")] == 16


def test_missing_range_is_named() -> None:
    net = residual()
    ranges = Ranges.of({k: v for k, v in net.ranges().items() if k != "a.relu"})
    with pytest.raises(QuantizationError, match=r"'a\.relu': has no range"):
        InsertQdq(ranges).apply(net.graph)


def test_wrong_stage_and_options() -> None:
    net = residual()
    done, _ = InsertQdq(net.ranges()).apply(net.graph)
    with pytest.raises(StageError):
        InsertQdq(net.ranges()).apply(done)
    for wrong in ({"residual": "int4"}, {"weight_bits": 5}, {"headroom": 0.5}):
        with pytest.raises(QuantizationError):
            InsertQdq(net.ranges(), **wrong)  # type: ignore[arg-type]


# -- weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_mse_weights_are_never_worse(bits: int, axis: int | None) -> None:
    rng = np.random.default_rng(4)
    w = (rng.standard_t(3, size=(6, 5, 3, 3)) * rng.uniform(0.01, 5, size=(6, 1, 1, 1))).astype(np.float32)
    errors = []
    for method in ("minmax", "mse"):
        q = weight_grid(w, bits, axis, method)
        ints = quantize_weights(w, q)
        assert int(np.abs(ints.astype(int)).max()) <= q.dtype.hi
        errors.append(float(np.square(q.dequantize(ints) - w).sum()))
    assert errors[1] <= errors[0] * (1 + 1e-6)
    assert bits == 8 or errors[1] < errors[0]


def test_zero_channels_and_bad_weights() -> None:
    w = np.zeros((2, 3), np.float32)
    w[1] = 1
    q = weight_grid(w, 8, 0)
    assert np.allclose(q.dequantize(quantize_weights(w, q)), w)
    for bad in (("minmax", 5), ("other", 8)):
        with pytest.raises(QuantizationError):
            weight_grid(w, bad[1], 0, bad[0])
    with pytest.raises(QuantizationError, match="finite"):
        weight_grid(np.full((2, 3), np.inf, np.float32), 8, 0)


def concatenated(scales: tuple[float, float]) -> tuple[Graph, Ranges]:
    """a, b -> Concat, and an AveragePool of a, with the operands' magnitudes."""
    net = Net()
    small, large = net.conv(net.x, "small"), net.conv(net.x, "large")
    both = net.op("Concat", small, large, name="both", axis=1)
    pool = net.op("AveragePool", small, name="pool", kernel_shape=[2, 2])
    graph = net.done(both, pool)
    reach = dict.fromkeys(("small", "pool"), scales[0]) | dict.fromkeys(("large", "both"), scales[1]) | {"x": 1.0}
    for name, conv in (("small", 0), ("large", 1)):
        for constant in (graph.value(f"{name}.w"), graph.value(f"{name}.b")):
            constant.data = (constant.array() * scales[conv]).astype(np.float32)
    return graph, Ranges.of({k: (-8 * v, 8 * v) for k, v in reach.items()})


def test_operand_far_below_its_concatenation_keeps_a_grid_of_its_own() -> None:
    graph, ranges = concatenated((1e-5, 1e5))
    qdq, _ = InsertQdq(ranges).apply(graph)
    own, joint = quantizers(qdq)["small"], quantizers(qdq)["small.int16.dq"]
    assert len(own) == len(joint) == 1
    assert joint == quantizers(qdq)["large"]
    assert joint[0].scale[0] > 1e9 * own[0].scale[0]
    integer, _ = LowerToDyadic().apply(qdq)  # the pool had no dyadic ratio on the joint grid
    x = np.random.default_rng(3).normal(size=(2, 4, 6, 6)).astype(np.float32)
    want, got = (Session(g, "reference").run({"x": x})["pool"] for g in (graph, integer))
    assert np.any(want)
    assert np.abs(want - got).max() < 0.05 * np.abs(want).max()


def test_operands_of_like_size_share_their_concatenation_s_grid() -> None:
    graph, ranges = concatenated((1.0, 100.0))
    qdq, _ = InsertQdq(ranges).apply(graph)
    assert quantizers(qdq)["small"] == quantizers(qdq)["large"]
    assert "small.int16.dq" not in quantizers(qdq)


def test_what_a_position_is_added_to_is_as_wide_as_the_stream() -> None:
    """A class token beside patches: on 8 bits little would be left of the smaller one."""
    rng = np.random.default_rng(0)
    g = Graph()
    x = g.add_input("x", TensorType(DType.FLOAT32, ("N", 5, 8)))

    def const(*shape: int) -> Value:
        return g.add_constant("c", rng.normal(size=shape).astype(np.float32))

    def op(name: str, *inputs: Value, **attrs: Any) -> Value:
        return g.add_node(name, inputs, attrs, outputs=[g.fresh("t")]).output

    token = op("Slice", op("Mul", x, const()), *(g.add_constant("i", np.asarray([i])) for i in (0, 1, 1)))
    both = op("Concat", token, op("MatMul", x, const(8, 8)), axis=1)
    stream = op("Add", both, const(1, 6, 8))
    normal = op("LayerNormalization", stream, const(8), const(8), axis=-1)
    g.set_outputs([op("Add", stream, op("MatMul", normal, const(8, 8)))])
    integer, _ = qir.quantize(g, [{"x": rng.normal(size=(8, 5, 8)).astype(np.float32)}])
    assert str(next(n for n in integer.nodes if n.op == "Concat").output.dtype) == "int16"
