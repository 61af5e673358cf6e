"""Data movement: reference against onnxruntime on floats, integer forms bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qir import DType, QuantParams

A = QuantParams.make(0.05, 120, DType.UINT8)
B = QuantParams.make(0.043, -3, DType.INT8)
W = QuantParams.make(0.0004, 11, DType.INT16)
F = QuantParams.make(0.5, -1, DType.INT4)


def i64(*values: int) -> Any:
    return np.asarray(values, dtype=np.int64)


MOVES: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any], int]] = [
    ("Reshape", (2, 6, 4, 4), [i64(0, 3, -1)], {}, 1),
    ("Reshape", (2, 6, 4, 4), [i64(0, 2, 3, 4, 4)], {}, 1),
    ("Flatten", (2, 6, 4, 4), [], {}, 1),
    ("Flatten", (2, 6, 4, 4), [], {"axis": -1}, 1),
    ("Squeeze", (2, 1, 4, 1), [i64(1, -1)], {}, 1),
    ("Squeeze", (2, 1, 4, 1), [], {}, 1),
    ("Unsqueeze", (2, 4), [i64(1, -1)], {}, 1),
    ("Identity", (2, 3), [], {}, 1),
    ("Transpose", (2, 3, 4, 5), [], {"perm": [0, 2, 3, 1]}, 1),
    ("Transpose", (2, 3, 4), [], {}, 1),
    ("DepthToSpace", (2, 8, 3, 5), [], {"blocksize": 2}, 1),
    ("DepthToSpace", (2, 8, 3, 5), [], {"blocksize": 2, "mode": "CRD"}, 1),
    ("SpaceToDepth", (2, 3, 4, 6), [], {"blocksize": 2}, 1),
    ("Expand", (2, 1, 4), [i64(3, 1)], {}, 1),
    ("Tile", (2, 3, 4), [i64(1, 2, 3)], {}, 1),
    ("Slice", (2, 6, 7), [i64(1, -2), i64(5, -(2**40)), i64(1, 2), i64(2, -1)], {}, 1),
    ("Slice", (2, 6, 7), [i64(-3), i64(2**62), i64(-1)], {}, 1),
    ("Split", (2, 6, 4), [i64(1, 3, 2)], {"axis": 1}, 3),
    ("Split", (2, 7, 4), [], {"axis": 1, "num_outputs": 3}, 3),
    ("Pad", (2, 3, 5, 5), [i64(0, 0, 1, 2, 0, 0, 3, 0)], {}, 1),
    ("Pad", (2, 3, 5, 5), [i64(0, 0, -1, 2, 0, 1, 3, -2), np.float32(1.5)], {}, 1),
    ("Pad", (2, 3, 5, 5), [i64(2, 1, 3, 2), None, i64(3, 2)], {"mode": "reflect"}, 1),
    ("Pad", (2, 3, 5, 5), [i64(0, 0, 1, 2, 0, 0, 3, 4)], {"mode": "edge"}, 1),
    ("Gather", (2, 5, 4), [i64(3, -1, 0)], {"axis": 1}, 1),
    ("Gather", (2, 5, 4), [np.asarray([[0, 1], [2, 2]])], {"axis": -1}, 1),
    ("Gather", (2, 5, 4), [np.asarray(2)], {"axis": 1}, 1),
]


@pytest.mark.parametrize("case", MOVES, ids=lambda c: f"{c[0]}-{list(c[1])}")
def test_float(case: Any, agree_with_onnxruntime: Any) -> None:
    op, shape, rest, attrs, outputs = case
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    agree_with_onnxruntime(op, [x, *rest], attrs, outputs=outputs, tol=0)


@pytest.mark.parametrize("grid", [A, B, W, F], ids=["uint8", "int8", "int16", "int4"])
@pytest.mark.parametrize("case", MOVES, ids=lambda c: f"{c[0]}-{list(c[1])}")
def test_integers_move_as_floats_do(case: Any, grid: QuantParams, integer_case: Any) -> None:
    op, shape, rest, attrs, outputs = case
    x = np.random.default_rng(2).normal(size=shape) * 3
    batch = op not in ("Transpose", "Expand") or attrs.get("perm", [1])[0] == 0
    graph = integer_case(op, [x, *rest], attrs, [grid], [grid] * outputs, batch=batch, steps=0)
    if op != "Identity":
        assert op in {n.op for n in graph.nodes}


@pytest.mark.parametrize("case", [MOVES[0], MOVES[8], MOVES[17], MOVES[20]], ids=lambda c: str(c[0]))
def test_another_grid_after_the_move(case: Any, integer_case: Any) -> None:
    op, shape, rest, attrs, outputs = case
    x = np.random.default_rng(3).normal(size=shape) * 3
    integer_case(op, [x, *rest], attrs, [A], [B] * outputs)


def test_concat_on_floats(agree_with_onnxruntime: Any) -> None:
    rng = np.random.default_rng(4)
    xs = [rng.normal(size=(2, c, 3)).astype(np.float32) for c in (1, 4, 2)]
    agree_with_onnxruntime("Concat", xs, {"axis": 1}, feeds=3)
    agree_with_onnxruntime("Concat", xs, {"axis": -2}, feeds=3)


@pytest.mark.parametrize(("grids", "nodes"), [([A, A], 1), ([A, B], 2), ([W, B], 3)])
def test_concat_brings_branches_to_its_grid(grids: Any, nodes: int, integer_case: Any) -> None:
    rng = np.random.default_rng(5)
    xs = [rng.normal(size=(2, c, 3)) for c in (3, 4)]
    graph = integer_case("Concat", xs, {"axis": 1}, grids, [A], batch=True)
    assert [n.op for n in graph.nodes if n.op != "QuantizeLinear"].count("Concat") == 1
    assert len([n for n in graph.nodes if n.op != "QuantizeLinear"]) == nodes


def test_where_and_comparisons(agree_with_onnxruntime: Any) -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.integers(-2, 3, size=s).astype(np.float32) for s in ((3, 4), (4,)))
    for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"):
        agree_with_onnxruntime(op, [a, b], {}, feeds=2)
    for op in ("And", "Or"):
        agree_with_onnxruntime(op, [a > 0, b > 0], {}, feeds=2)
    agree_with_onnxruntime("Not", [a > 0], {})
    agree_with_onnxruntime("Where", [a > 0, a, b], {}, feeds=3)


def test_equal_on_one_grid_is_exact(integer_case: Any) -> None:
    a, b = np.asarray([[0.1, 0.2, 0.3]]), np.asarray([[0.1, 0.25, 0.3]])
    integer_case("Equal", [a, b], {}, [A, A], [None])
    integer_case("Less", [a, b], {}, [W, W], [None])
    integer_case("Greater", [a, b + 0.5], {}, [A, B], [None])
    integer_case("Greater", [np.asarray([[-1.0, 0.5, 3.0]]), np.float32(0.1)], {}, [A], [None])


@pytest.mark.parametrize("out", [A, B, W], ids=["uint8", "int8", "int16"])
def test_where_chooses_between_grids(out: QuantParams, integer_case: Any, one_node: Any) -> None:
    from qir import Graph, TensorType
    from qir.runtime import Session

    rng = np.random.default_rng(7)
    g = Graph()
    c = g.add_input("c", TensorType(DType.BOOL, (3, 4)))
    x, y = (g.add_input(n, TensorType(q.dtype, (3, 4), q)) for n, q in (("x", out), ("y", out)))
    g.set_outputs([g.add_node("Where", [c, x, y], quant=out).output])
    feeds = {"c": rng.random((3, 4)) < 0.5}
    for n in "xy":
        feeds[n] = out.quantize(rng.normal(size=(3, 4)))
    a, b = (Session(g, s).run(feeds)["where"] for s in ("reference", "onnxruntime"))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, np.where(feeds["c"], feeds["x"], feeds["y"]))


def test_shape_operators(agree_with_onnxruntime: Any) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    agree_with_onnxruntime("Shape", [x], {"start": -2})
    agree_with_onnxruntime("Size", [x], {})
    agree_with_onnxruntime("Cast", [np.asarray([1.7, -2.3], np.float32)], {"to": "int64"})
    agree_with_onnxruntime("Range", [np.float32(1), np.float32(7.5), np.float32(2)], {}, feeds=0)
    agree_with_onnxruntime("Range", [np.asarray(10), np.asarray(1), np.asarray(-4)], {}, feeds=0)
    agree_with_onnxruntime("ConstantOfShape", [i64(2, 3)], {"value": np.asarray([7])}, feeds=0)
    agree_with_onnxruntime("Dropout", [x], {}, outputs=2)
