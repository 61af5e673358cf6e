"""Every invariant is broken on purpose once, and `verify` says which and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qir.errors import StageError, VerifyError
from qir.graph import Graph, Stage
from qir.ops import REGISTRY, Op
from qir.ops.intervals import weighted
from qir.types import DType, QuantParams, TensorType
from qir.verify import INVARIANTS, is_integer_only, verify, violations


def node(graph: Graph, name: str) -> Any:
    return next(n for n in graph.nodes if n.name == name)


def wrong_use(g: Graph) -> None:
    g.value("c0")._uses.clear()


def wrong_producer(g: Graph) -> None:
    g.value("c0").output_of = node(g, "c1")


def two_names(g: Graph) -> None:
    node(g, "c1").name = "c0"


def cycle(g: Graph) -> None:
    g.set_input(node(g, "c0.acc"), 0, g.value("c1"))


def no_outputs(g: Graph) -> None:
    g.set_outputs([])


def wrong_shape(g: Graph) -> None:
    g.value("c1").type = replace(g.value("c1").type, shape=("N", 4, 8, 7))


def wrong_dtype(g: Graph) -> None:
    g.value("c0.acc").type = TensorType(DType.INT16, g.value("c0.acc").shape)


def wrong_data(g: Graph) -> None:
    g.value("c0.bias").data = np.zeros(5, np.int32)


def unknown_attribute(g: Graph) -> None:
    node(g, "c0").attrs["colour"] = 1


def wrong_axis(g: Graph) -> None:
    q = QuantParams((0.1,) * 5, (0,) * 5, DType.UINT8, 1)
    g.value("c1").type = replace(g.value("c1").type, quant=q)


def not_four_bits(g: Graph) -> None:
    value = g.value("c0.w")
    value.type = TensorType(DType.INT4, value.shape)
    value.data = np.full(value.array().shape, 9, np.int8)


def zero_scale(g: Graph) -> None:
    g.value("s").data = np.asarray(0, np.float32)


def limits(g: Graph) -> None:
    node(g, "c1").attrs["hi"] = 256


def shift(g: Graph) -> None:
    g.value("sh").data = np.full((4, 1, 1), 63, np.int32)


def negative_multiplier(g: Graph) -> None:
    g.value("m").data = np.full((4, 1, 1), -5, np.int32)


def overflow(g: Graph) -> None:
    g.value("c0.bias").data = np.full(4, 2**31 - 10, np.int32)


def pad_value(g: Graph) -> None:
    node(g, "c0.acc").attrs["pad_value"] = [-1]


def float_inside(g: Graph) -> None:
    scale, zero = g.value("s1"), g.value("z1")
    g.set_outputs([*g.outputs, g.add_node("DequantizeLinear", [g.value("c0"), scale, zero], outputs=["mid"]).output])
    g.set_outputs([*g.outputs, g.add_node("Relu", [g.value("mid")], outputs=["r"]).output])


def integer_operator_too_early(g: Graph) -> None:
    g.stage = Stage.QDQ


BREAKS: list[tuple[Callable[[Graph], None], str, str]] = [
    (wrong_use, "uses and definitions agree", "does not know of its use"),
    (wrong_producer, "uses and definitions agree", "names a producer that does not produce it"),
    (two_names, "the nodes are a directed acyclic graph", "two nodes have one name"),
    (cycle, "the nodes are a directed acyclic graph", "cycle"),
    (no_outputs, "the nodes are a directed acyclic graph", "has no outputs"),
    (wrong_shape, "types are what the operators infer", "the operator gives uint8"),
    (wrong_dtype, "types are what the operators infer", "the operator gives int32"),
    (wrong_data, "types are what the operators infer", r"holds int32\[5\]"),
    (unknown_attribute, "types are what the operators infer", "unknown attribute 'colour'"),
    (wrong_axis, "quantization parameters are possible", "5 scales along axis 1"),
    (not_four_bits, "quantization parameters are possible", "do not fit int4"),
    (zero_scale, "quantization parameters are possible", "scale is not positive"),
    (limits, "quantization parameters are possible", "limits 0..256 are not an interval of uint8"),
    (shift, "quantization parameters are possible", r"a shift is outside 1\.\.62"),
    (negative_multiplier, "quantization parameters are possible", "a multiplier is negative"),
    (overflow, "accumulators cannot overflow", r"qir.Conv node 'c0.acc': channel \d can reach"),
    (pad_value, "quantization parameters are possible", r"pad_value \[-1\] is outside uint8"),
    (float_inside, "the stage is what it says", "node 'mid': 's1' is float32"),
    (integer_operator_too_early, "the stage is what it says", "an integer operator in stage QDQ"),
]


@pytest.mark.parametrize(("break_it", "invariant", "message"), BREAKS, ids=lambda v: getattr(v, "__name__", ""))
def test_each_invariant_finds_its_violation(
    two_convs: Any, break_it: Callable[[Graph], None], invariant: str, message: str
) -> None:
    graph: Graph = two_convs()
    verify(graph, Stage.INTEGER)
    assert violations(graph) == []
    break_it(graph)
    with pytest.raises(VerifyError, match=message) as caught:
        verify(graph)
    assert f"(invariant: {invariant})" in str(caught.value)


def test_every_invariant_is_broken_above() -> None:
    assert {i.name for i in INVARIANTS} == {name for _, name, _ in BREAKS}


def test_stage_is_checked(two_convs: Any) -> None:
    with pytest.raises(StageError, match="is in stage INTEGER, not FLOAT"):
        verify(two_convs(), Stage.FLOAT)


def test_integer_only(two_convs: Any) -> None:
    graph: Graph = two_convs()
    assert is_integer_only(graph) == []
    float_inside(graph)
    assert any("'mid' is float32" in line for line in is_integer_only(graph))


def test_division_is_an_offence() -> None:
    g = Graph("d", Stage.INTEGER)
    x = g.add_input("x", TensorType(DType.INT32, ("N", 2)))
    two = g.add_constant("two", np.asarray(2, np.int32))
    g.set_outputs([g.add_node("Div", [x, two], outputs=["y"]).output])
    assert is_integer_only(g) == ["Div node 'y': Div in an integer graph"]


# -- the overflow proof -----------------------------------------------------------------------
def test_interval_of_an_accumulator_is_exact() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        w = rng.integers(-8, 8, (3, 4)).astype(np.int8)
        lo, hi = sorted(rng.integers(-20, 20, 2).tolist())
        zero = int(rng.integers(-3, 4))
        low, high = weighted(w, zero, 0, (lo, hi))
        centred = w.astype(int) - zero
        best = np.where(centred > 0, hi, lo)
        worst = np.where(centred > 0, lo, hi)
        np.testing.assert_array_equal(high, (centred * best).sum(1))  # reached by these inputs
        np.testing.assert_array_equal(low, (centred * worst).sum(1))


def one(op: str, kinds: list[str], shapes: list[tuple[Any, ...]], attrs: dict[str, Any], **constants: Any) -> Graph:
    g = Graph("one", Stage.INTEGER)
    inputs = [g.add_input(f"x{i}", TensorType(DType(k), s)) for i, (k, s) in enumerate(zip(kinds, shapes, strict=True))]
    inputs += [g.add_constant(k, v) for k, v in constants.items()]
    g.set_outputs([g.add_node(op, inputs, attrs, outputs=["y"]).output])
    return g


GRID = {"zero_point": 0, "lo": 0, "hi": 255, "dtype": "uint8"}


@pytest.mark.parametrize(("size", "fits"), [(66_000, True), (66_400, False)])
def test_matmul_sums(size: int, fits: bool) -> None:
    g = one("qir.MatMul", ["uint8"], [("N", size)], {}, w=np.full((size, 1), 127, np.int8))
    assert bool(violations(g)) is not fits


@pytest.mark.parametrize(("size", "fits"), [(33_025, True), (33_100, False)])
def test_products_of_activations(size: int, fits: bool) -> None:
    attrs = {"a_zero_point": 0, "b_zero_point": 0}
    g = one("qir.MatMulActivations", ["uint8", "uint8"], [("N", 2, size), ("N", size, 2)], attrs)
    assert bool(violations(g)) is not fits


@pytest.mark.parametrize(("a", "b", "fits"), [("uint8", "int16", True), ("int16", "int16", True),
                                              ("uint16", "int16", True), ("uint16", "uint16", False)])  # fmt: skip
def test_elementwise_products(a: str, b: str, fits: bool) -> None:
    g = one("qir.Mul", [a, b], [("N", 2), ("N", 2)], {"multiplier": 1 << 30, "shift": 40, **GRID})
    assert bool(violations(g)) is not fits


def test_every_accumulating_operator_has_a_proof() -> None:
    accumulating = {n for n, op in REGISTRY.items() if op.is_integer_op and op.outputs.split()[0] == "acc"}
    assert {n for n in accumulating if type(REGISTRY[n]).overflows is Op.overflows} == set()
