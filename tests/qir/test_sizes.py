"""Open sizes: expressions, how they are found, how a file's open axes are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qir
from qir.errors import ModelError, TypeInferenceError
from qir.graph import Graph
from qir.io import to_onnx
from qir.runtime import Session
from qir.sizes import Symbol, canonical, dim_at, floor_divide, multiply, solve, value_of
from qir.sizes.fitting import FEW, MANY, probe
from qir.types import DType, TensorType

SIZES = {"N": 3, "S": 5, "H": 37, "W": 41}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4*N", "4*N"),
        ("N*S*12", "12*N*S"),
        ("(H-1)//2+1", "(H+1)//2"),
        ("((H+1)//2+1)//2", "(H+3)//4"),
        ("(2*H+2)//4", "(H+1)//2"),
        ("((H+31)//32)*32", "32*((H+31)//32)"),
        ("S-S+7", 7),
        ("(3*H)//2", "(H//2)+H"),
    ],
)
def test_equal_sizes_have_one_text(text: str, expected: str | int) -> None:
    dim = canonical(text)
    assert dim == expected
    assert value_of(dim, SIZES) == eval(text, dict(SIZES))


@pytest.mark.parametrize("text", ["", "N+", "(N", "N//S", "N;S", "1//", "*" * 500, "N" * 500])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(TypeInferenceError):
        canonical(text)


def test_symbols_are_solved_for() -> None:
    assert solve("4*N", 20) == ("N", 5)
    assert solve("4*N", 21) is None
    assert solve("(H+1)//2", 4) is None


def test_points_tell_symbols_apart() -> None:
    symbols = {s: Symbol() for s in "NST"}
    points = [probe(symbols, p) for p in range(MANY)]
    for point in points[:FEW]:
        assert len(set(point.values())) == 3


def image(*steps: tuple[str, list[Any], dict[str, Any]], shape: tuple[int | str, ...] = ("N", 4, "H", "W")) -> Graph:
    g = Graph()
    x = g.add_input("x", TensorType(DType.FLOAT32, shape))
    for op, rest, attrs in steps:
        constants = [g.add_constant("c", np.asarray(c)) if c is not None else None for c in rest]
        x = g.add_node(op, [x, *constants], attrs).output
    g.set_outputs([x])
    return g


KERNEL = np.zeros((6, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("steps", "shape"),
    [
        ([("Conv", [KERNEL], {"strides": [2, 3], "pads": [1, 1, 1, 1]})], ("N", 6, "(H+1)//2", "(W+2)//3")),
        ([("Conv", [KERNEL], {"dilations": [2, 1]})], ("N", 6, "H-4", "W-2")),
        ([("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1})], ("N", 4, "H//2", "(W+1)//2")),
        ([("Conv", [np.zeros((6, 4, 16, 14), np.float32)], {"strides": [16, 14]})], ("N", 6, "H//16", "W//14")),
        ([("ConvTranspose", [np.zeros((4, 2, 2, 2), np.float32)], {"strides": [2, 2]})], ("N", 2, "2*H", "2*W")),
        ([("Resize", [None, np.asarray([1, 1, 1.5, 2], np.float32)], {})], ("N", 4, "(H//2)+H", "2*W")),
        ([("Reshape", [np.asarray([0, 4, -1])], {})], ("N", 4, "H*W")),
        ([("Flatten", [], {"axis": 3})], ("4*H*N", "W")),
        ([("Slice", [np.asarray([1]), np.asarray([-2]), np.asarray([2])], {})], ("N", 4, "H-3", "W")),
        ([("Pad", [np.asarray([0, 0, 1, 2, 0, 0, 1, 3])], {})], ("N", 4, "H+2", "W+5")),
    ],
)  # fmt: skip
def test_sizes_of_operators(steps: list[tuple[str, list[Any], dict[str, Any]]], shape: tuple[int | str, ...]) -> None:
    g = image(*steps)
    assert g.outputs[0].shape == shape
    assert str(Graph.parse(str(g), {c.name: c.array() for c in g.constants})) == str(g)
    for sizes in ({"N": 1, "H": 200, "W": 301}, {"N": 2, "H": 257, "W": 96}):
        x = np.zeros((sizes["N"], 4, sizes["H"], sizes["W"]), np.float32)
        y = Session(g, "reference").run({"x": x})[g.outputs[0].name]
        assert y.shape == tuple(dim_at(d, sizes) for d in g.outputs[0].shape)


def test_a_deep_network_of_halves() -> None:
    kernel = np.zeros((4, 4, 3, 3), np.float32)
    g = image(*[("Conv", [kernel], {"strides": [2, 2], "pads": [1, 1, 1, 1]})] * 5)
    assert g.outputs[0].shape == ("N", 4, "(H+31)//32", "(W+31)//32")
    assert multiply(32, floor_divide("H", 32)) == "32*(H//32)"


def model(nodes: list[onnx.NodeProto], constants: dict[str, Any] | None = None, **inputs: list[Any]) -> onnx.ModelProto:
    kinds = {"i": TensorProto.INT64}
    values = [
        helper.make_tensor_value_info(n, kinds.get(n[0], TensorProto.FLOAT), shape) for n, shape in inputs.items()
    ]
    held = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", values, outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def node(op: str, inputs: list[str], output: str = "y", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attrs)


def test_names_of_open_axes_stay() -> None:
    g = qir.load(model([node("Relu", ["x"])], x=["batch_size", 3, "rows", "rows.2"]))
    assert g.inputs[0].shape == ("N", 3, "rows", "rows_2")
    saved = to_onnx(g).graph.input[0].type.tensor_type.shape
    assert [d.dim_param or d.dim_value for d in saved.dim] == ["batch_size", 3, "rows", "rows.2"]


def test_batches_of_two_names_are_one_where_they_meet() -> None:
    meet = qir.load(model([node("Add", ["x", "z"])], x=["s1", 4], z=["s2", 4]))
    assert [v.shape for v in meet.inputs] == [("N", 4)] * 2
    apart = qir.load(model([node("MatMul", ["x", "z"])], x=["texts", 4], z=[4, "images"]))
    assert apart.outputs[0].shape == ("N", "images")


def test_a_batch_on_another_axis_and_none() -> None:
    states = qir.load(model([node("Add", ["x", "h"])], x=[1, "batch", 4], h=[2, "batch", 4]))
    assert states.outputs[0].shape == (2, "N", 4)
    assert qir.load(model([node("Relu", ["x"])], x=["num_nodes", 4])).inputs[0].shape == ("num_nodes", 4)


def test_multiples_are_found_and_kept() -> None:
    """A skip connection over a pool and an upsampling takes even sizes only."""
    nodes = [
        node("MaxPool", ["x"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["p", "", "scales"], "u"),
        node("Concat", ["x", "u"], axis=1),
    ]
    g = qir.load(model(nodes, {"scales": np.asarray([1, 1, 2, 2], np.float32)}, x=["N", 3, "H", "W"]))
    assert g.outputs[0].shape == ("N", 6, "H", "W") and g.symbols["H"].step == 2
    run = Session(g, "reference").run
    assert run({"x": np.zeros((1, 3, 6, 8), np.float32)})["y"].shape == (1, 6, 6, 8)
    with pytest.raises(qir.errors.DataError, match="size 7 on axis 2 is no multiple of 2"):
        run({"x": np.zeros((1, 3, 7, 8), np.float32)})


def test_a_size_that_cannot_be_open_is_named() -> None:
    nodes = [node("Reshape", ["x", "shape"], "r"), node("MatMul", ["r", "w"])]
    held = {"shape": np.asarray([0, 48]), "w": np.zeros((48, 2), np.float32)}
    with pytest.raises(ModelError, match=r"cannot stay open: Reshape .* --input-shape x:Nx3x...x..."):
        qir.load(model(nodes, held, x=["N", 3, "H", "W"]))
    assert qir.load(model(nodes, held, x=["N", 3, "H", "W"]), input_shapes={"x": ["N", 3, 4, 4]}).outputs[0].shape == (
        "N",
        2,
    )


def test_sizes_that_do_not_fold_are_computed_from_the_inputs() -> None:
    """(N, S, 8) -> (N*2, S, 4) -> (N, 2, S, 4): two open sizes that do not keep their places."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "zero"], "n"),
        node("Gather", ["s", "one"], "l"),
        node("Concat", ["n", "two", "l", "four"], "target", axis=0),
        node("Reshape", ["x", "flat"], "f"),
        node("Reshape", ["f", "target"]),
    ]
    held = {"zero": np.asarray([0]), "one": np.asarray([1]), "two": np.asarray([2]), "four": np.asarray([4]),
            "flat": np.asarray([-1, 4])}  # fmt: skip
    g = qir.load(model(nodes, held, x=["N", "S", 8]))
    assert g.outputs[0].shape == ("N", 2, "S", 4)
    assert {n.op for n in g.nodes} == {"Reshape", "Shape", "Concat"}
    for shape in ((1, 3, 8), (4, 7, 8)):
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        y = Session(g, "onnxruntime").run({"x": x})["y"]
        assert np.array_equal(y, x.reshape(shape[0], 2, shape[1], 4))


def test_comparisons_with_a_size_are_not_folded() -> None:
    """The sizes that are tried all pass a comparison that others do not."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "one"], "l"),
        node("Less", ["l", "four"], "short"),
        node("Where", ["short", "x", "z"]),
    ]
    held = {"one": np.asarray(1), "four": np.asarray(4), "z": np.zeros((), np.float32)}
    g = qir.load(model(nodes, held, x=["N", "S"]))
    x = np.ones((1, 3), np.float32)
    assert np.array_equal(Session(g, "reference").run({"x": x})["y"], x)


def test_sizes_are_divided_as_they_are() -> None:
    """Two sizes that are fed, divided: no expression says it, and it is computed on int64."""
    nodes = [
        node("Shape", ["x"], "s"),
        node("Gather", ["s", "zero"], "n"),
        node("Gather", ["s", "one"], "l"),
        node("Div", ["l", "n"], "each"),
        node("Relu", ["x"], "r"),
        node("Gather", ["r", "each"], axis=1),
    ]
    held = {"zero": np.asarray([0]), "one": np.asarray([1])}
    g = qir.load(model(nodes, held, x=["N", "S", 4]))
    x = np.random.default_rng(0).normal(size=(4, 12, 4)).astype(np.float32)
    integer, _ = qir.quantize(g, x)
    for backend in ("reference", "onnxruntime", "cpu"):
        y = Session(integer, backend).run({"x": x})["y"]
        assert y.shape == (4, 1, 4) and np.allclose(y, np.maximum(x[:, 3:4], 0), atol=0.02)
