"""4-bit weights: as ONNX INT4 in the file, half the size, the same bits from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import qir
from qir import DType, Graph, QuantParams
from qir.errors import StageError
from qir.models import bundled_path, digits
from qir.passes import PackInt4
from qir.runtime import Session


def initializers(path: Path) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load(path).graph.initializer}


def narrowed(graph: Graph, lo: int, hi: int) -> Graph:
    """The graph with 8-bit weights that have only values of [lo, hi]."""
    again = graph.clone()
    for node in again.nodes:
        if node.op in ("qir.Conv", "qir.MatMul"):
            w = node.input(1)
            data = (w.array().astype(int) % (hi - lo + 1) + lo).astype(np.int8 if lo < 0 else np.uint8)
            q = QuantParams.make(0.01, 0, DType.INT8 if lo < 0 else DType.UINT8)
            again.set_input(node, 1, again.add_constant(f"{w.name}.narrow", data, q.dtype, q))
    again.prune()
    return again


@pytest.mark.parametrize(("lo", "hi", "kind"), [(-8, 7, DType.INT4), (0, 15, DType.UINT4)])
def test_packs_what_fits(two_convs: Callable[..., Graph], tmp_path: Path, lo: int, hi: int, kind: DType) -> None:
    graph = narrowed(two_convs(), lo, hi)
    packed, report = PackInt4().apply(graph)
    weights = [n.input(1) for n in packed.nodes if n.op == "qir.Conv"]
    assert [w.dtype for w in weights] == [kind, kind] and len(report.passes[0].rewrites) > 0
    assert all(n.input(1).dtype.bits == 8 for n in graph.nodes if n.op == "qir.Conv")  # the graph given is as it was
    names = [v.name for n in graph.nodes for v in n.outputs]
    feeds = {graph.inputs[0].name: np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)}
    want = Session(graph, "reference").run(feeds, outputs=names)
    qir.save(packed, tmp_path / "m.onnx")
    for g, backend in ((packed, "reference"), (packed, "onnxruntime"), (qir.load(tmp_path / "m.onnx"), "reference")):
        got = Session(g, backend).run(feeds, outputs=names)
        for name in names:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    stored = initializers(tmp_path / "m.onnx")
    wire = onnx.TensorProto.INT4 if kind is DType.INT4 else onnx.TensorProto.UINT4
    for w in weights:
        tensor, data = stored[w.name], w.array().reshape(-1)
        assert tensor.data_type == wire
        nibbles = (data & 15).astype(np.uint8)
        pairs = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8)).reshape(-1, 2)
        assert tensor.raw_data == (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()  # low nibble first


def test_leaves_what_does_not_fit(two_convs: Callable[..., Graph]) -> None:
    packed, report = PackInt4().apply(two_convs())
    assert {n.input(1).dtype for n in packed.nodes if n.op == "qir.Conv"} == {DType.INT8}
    assert not report.passes[0].rewrites
    again, _ = PackInt4(least=10**6).apply(narrowed(two_convs(), -8, 7))
    assert {n.input(1).dtype for n in again.nodes if n.op == "qir.Conv"} == {DType.INT8}


def test_takes_integer_graphs_only() -> None:
    with pytest.raises(StageError):
        PackInt4().apply(qir.load(bundled_path("digits_mobile")))


def test_recipes_with_four_bit_weights_store_them_so(tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    wide: dict[str, int] = {}
    for recipe in ("w8a8", "w4a8"):
        graph, _ = qir.quantize(bundled_path("digits_residual"), digits().calibration[:64], recipe=recipe)
        path = tmp_path / f"{recipe}.onnx"
        qir.save(graph, path)
        kinds: dict[int, int] = {onnx.TensorProto.INT4: 0, onnx.TensorProto.INT8: 0, onnx.TensorProto.UINT8: 0}
        for tensor in initializers(path).values():
            if tensor.data_type in kinds:
                kinds[tensor.data_type] += int(np.prod(tensor.dims))
                if tensor.data_type == onnx.TensorProto.INT4:
                    assert len(tensor.raw_data) == (int(np.prod(tensor.dims)) + 1) // 2
        sizes[recipe], wide[recipe] = path.stat().st_size, kinds[onnx.TensorProto.INT4]
        assert {v.dtype for v in qir.load(path).constants} == {v.dtype for v in graph.constants}
    assert wide["w8a8"] == 0 < wide["w4a8"]
    assert abs(sizes["w8a8"] - sizes["w4a8"] - wide["w4a8"] / 2) < 0.1 * sizes["w8a8"]  # half a byte for each
