"""Binding inputs, propagating types, folding shape subgraphs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir import DType, Graph, TensorType, Value
from qir.errors import MemoryLimitError, TypeInferenceError
from qir.io import load
from qir.runtime import Session
from qir.shapes import bind, fold_shapes, propagate

FLOAT = DType.FLOAT32


def constant(g: Graph, *values: int, scalar: bool = False) -> Value:
    return g.add_constant("k", np.asarray(values[0] if scalar else values, dtype=np.int64))


def batch_of(g: Graph, x: Value) -> Value:
    """Shape -> Gather(0) -> Unsqueeze, as PyTorch writes x.size(0)."""
    shape = g.add_node("Shape", [x]).output
    size = g.add_node("Gather", [shape, constant(g, 0, scalar=True)]).output
    return g.add_node("Unsqueeze", [size, constant(g, 0)]).output


def same_before_and_after(g: Graph) -> int:
    """Folds a graph and checks that nothing it computes changes, at three batch sizes."""
    before = g.clone()
    removed = fold_shapes(g)
    types = {v.name: v.type for v in g.outputs}
    propagate(g)
    assert types == {v.name: v.type for v in g.outputs}
    for n in (1, 2, 4):
        rng = np.random.default_rng(n)
        feeds: dict[str, Any] = {}
        for v in g.inputs:
            feeds[v.name] = rng.normal(size=[n if isinstance(d, str) else d for d in v.shape]).astype(np.float32)
        a, b = Session(before, "reference").run(feeds), Session(g, "reference").run(feeds)
        c = Session(g, "onnxruntime", threads=1).run(feeds)
        for name, want in a.items():
            np.testing.assert_array_equal(b[name], want)
            np.testing.assert_allclose(c[name], want, rtol=1e-4, atol=1e-4)
    return removed


def test_pytorch_view() -> None:
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 4, 3, 3)))
    target = g.add_node("Concat", [batch_of(g, x), constant(g, -1)], {"axis": 0}).output
    y = g.add_node("Reshape", [x, target], outputs=["y"]).output
    g.set_outputs([y])
    assert y.shape == ("N", 36)
    assert same_before_and_after(g) == 4
    assert [n.op for n in g.nodes] == ["Reshape"]
    assert g.nodes[0].input(1).array().tolist() == [0, 36]


def test_channel_shuffle() -> None:
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 6, 4, 4)))
    n = batch_of(g, x)
    split = g.add_node("Reshape", [x, g.add_node("Concat", [n, constant(g, 2, 3, 4, 4)], {"axis": 0}).output]).output
    turned = g.add_node("Transpose", [split], {"perm": [0, 2, 1, 3, 4]}).output
    joined = g.add_node("Reshape", [turned, g.add_node("Shape", [x]).output], outputs=["y"]).output
    g.set_outputs([joined])
    same_before_and_after(g)
    assert [n.op for n in g.nodes] == ["Reshape", "Transpose", "Reshape"]
    assert joined.shape == ("N", 6, 4, 4)


def test_batch_that_moves_becomes_minus_one() -> None:
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 4, 6)))
    turned = g.add_node("Transpose", [x], {"perm": [1, 0, 2]}).output  # (4, N, 6)
    target = g.add_node("Concat", [constant(g, 8), batch_of(g, x), constant(g, 3)], {"axis": 0}).output
    g.set_outputs([g.add_node("Reshape", [turned, target], outputs=["y"]).output])
    same_before_and_after(g)
    assert g.nodes[-1].input(1).array().tolist() == [8, 0, 3]
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 4, 6)))
    target = g.add_node("Concat", [constant(g, 4), batch_of(g, x), constant(g, 6)], {"axis": 0}).output
    g.set_outputs([g.add_node("Reshape", [x, target], outputs=["y"]).output])
    same_before_and_after(g)
    assert g.nodes[-1].input(1).array().tolist() == [4, -1, 6]


def test_expand_slice_and_resize_follow_the_batch() -> None:
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 1, 4, 4)))
    n = batch_of(g, x)
    wide = g.add_node("Expand", [x, g.add_node("Concat", [n, constant(g, 3, 4, 4)], {"axis": 0}).output]).output
    cut = g.add_node("Slice", [wide, constant(g, 0), n, constant(g, 0)]).output
    sizes = g.add_node("Concat", [n, constant(g, 3, 8, 6)], {"axis": 0}).output
    y = g.add_node("Resize", [cut, None, None, sizes], {"mode": "linear"}, outputs=["y"]).output
    g.set_outputs([y])
    assert y.shape == ("N", 3, 8, 6)
    same_before_and_after(g)
    assert [n.op for n in g.nodes] == ["Expand", "Slice", "Resize"]
    assert g.nodes[-1].attrs["axes"] == [2, 3]


def test_constant_grids_are_folded() -> None:
    """Anchors of detectors: Range, Expand, Stack over fixed sizes."""
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 2, 4, 5)))
    width = g.add_node("Gather", [g.add_node("Shape", [x]).output, constant(g, 3, scalar=True)]).output
    steps = g.add_node("Range", [constant(g, 0, scalar=True), width, constant(g, 1, scalar=True)]).output
    real = g.add_node("Cast", [steps], {"to": "float32"}).output
    grid = g.add_node("Expand", [real, constant(g, 4, 5)]).output
    g.set_outputs([g.add_node("Add", [x, grid], outputs=["y"]).output])
    same_before_and_after(g)
    assert [n.op for n in g.nodes] == ["Add"]
    assert g.nodes[0].input(1).name == grid.name.removesuffix(".folded")


def test_what_needs_the_batch_itself_stays() -> None:
    """A constant expanded to the batch (a class token) has no form without the batch size."""
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 3)))
    token = g.add_constant("token", np.ones((1, 3), np.float32))
    shape = g.add_node("Concat", [batch_of(g, x), constant(g, 3)], {"axis": 0}).output
    wide = g.add_node("Expand", [token, shape]).output
    g.set_outputs([g.add_node("Concat", [x, wide], {"axis": 1}, outputs=["y"]).output])
    same_before_and_after(g)
    assert "Expand" in [n.op for n in g.nodes]


def test_bind() -> None:
    g = Graph()
    x = g.add_input("x", TensorType(FLOAT, ("N", 3, 4)))
    y = g.add_node("Transpose", [x], {"perm": [0, 2, 1]}).output
    g.set_outputs([y])
    bind(g, {"x": (2, 3, 4)})
    assert y.shape == (2, 4, 3)
    with pytest.raises(TypeInferenceError, match=r"is no input of the graph .inputs are 'x'"):
        bind(g, {"z": (1,)})
    with pytest.raises(TypeInferenceError, match=r"shape .2, 3. for"):
        bind(g, {"x": (2, 3)})
    with pytest.raises(TypeInferenceError, match="contradicts"):
        bind(g, {"x": (2, 5, 4)})


def test_a_size_that_nobody_could_allocate_is_not_evaluated() -> None:
    g = Graph()
    huge = g.add_node("ConstantOfShape", [constant(g, 1 << 20, 1 << 20)]).output
    g.set_outputs([g.add_node("Transpose", [huge], outputs=["y"]).output])
    with pytest.raises(MemoryLimitError, match="ConstantOfShape node"):
        fold_shapes(g)


def test_linear_time() -> None:
    def seconds(n: int) -> float:
        g = Graph()
        x = g.add_input("x", TensorType(FLOAT, ("N", 8)))
        y = x
        for _ in range(n):
            target = g.add_node("Concat", [batch_of(g, y), constant(g, 8)], {"axis": 0}).output
            y = g.add_node("Reshape", [y, target]).output
        g.set_outputs([y])
        start = time.perf_counter()
        assert fold_shapes(g) == 4 * n
        return time.perf_counter() - start

    seconds(50)
    small, large = min(seconds(150) for _ in range(3)), seconds(600)
    assert large < 12 * small, f"{small:.3f} s for 150, {large:.3f} s for 600"


SHAPES = {"nudenet_yolov8n_320": (3, 320, 320), "ppocr_cls": (3, 48, 192), "ppocrv4_det": (3, 256, 256)}


@pytest.mark.kit
@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20", "mlsd_320x320_tiny", "nudenet_yolov8n_320", "ppocr_cls", "ppocrv4_det", "ultraface_rfb320",
    ],
)  # fmt: skip
def test_no_shape_node_remains(name: str, kit: Path) -> None:
    """Exports of PyTorch, TensorFlow and Paddle; outputs as onnxruntime computes them from the original file."""
    import onnxruntime as ort

    path = kit / "models" / f"{name}.onnx"
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    given = {source.name: ("N", *SHAPES[name])} if name in SHAPES else None
    g = load(path, input_shapes=given)
    fold_shapes(g)
    assert not {n.op for n in g.nodes} & {"Shape", "Size", "ConstantOfShape", "Range", "Expand", "Where"}
    (x,) = g.inputs
    shape = [2 if isinstance(d, str) else d for d in x.shape]
    feed = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = Session(g, "onnxruntime", threads=1).run({x.name: feed})
    expected: list[Any] = list(session.run(None, {source.name: feed}))
    for value, want in zip(g.outputs, expected, strict=True):
        np.testing.assert_allclose(got[value.name], want, atol=1e-3 * float(np.abs(want).max()))
