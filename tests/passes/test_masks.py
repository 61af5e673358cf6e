"""Masks of attention in every spelling: recognised, kept from grids, and as precise as attention without one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qir
from qir import DType, TensorType
from qir.errors import RefusedError, UnsupportedError
from qir.graph import Value
from qir.io import to_onnx
from qir.passes.masks.recognise import RecogniseMasks
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness
from qir.testing.attention import SPELLINGS, AttentionBuilder, padding_mask


def spelled(name: str) -> tuple[AttentionBuilder, qir.Graph]:
    builder = AttentionBuilder()
    return builder, builder.build(SPELLINGS[name])


def of_opset(graph: qir.Graph, opset: int) -> onnx.ModelProto:
    """The graph as that opset writes it."""
    model = to_onnx(graph)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        for attribute in [a for a in node.attribute if a.name not in known]:
            node.attribute.remove(attribute)
        if node.op_type == "Unsqueeze" and opset < 13:
            axes = constants[node.input[1]].tolist()
            del node.input[1]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
    model.opset_import[0].version = opset
    onnx.checker.check_model(model)
    return model


def kept_rows(name: str, feeds: dict[str, Any], y: Any) -> Any:
    """Where a row keeps nothing, the least number gives all positions the same weight, and a mask none."""
    return y[feeds["mask"] == 1] if name == "outer product" else y


def sqnr(want: Any, got: Any) -> float:
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / ((want - got) ** 2).sum()))


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_recognised(name: str) -> None:
    """One MaskedSoftmax, nothing of -1e4 or less, and what it computes is what the network computed."""
    builder, graph = spelled(name)
    after, report = RecogniseMasks().apply(graph)
    assert [n.op for n in after.nodes if "Softmax" in n.op] == ["Softmax" if name == "none" else "MaskedSoftmax"]
    assert not any("IsNaN" in n.op for n in after.nodes)
    assert not any(
        v.dtype.is_float and v.data.size and v.data.min() < -1e3 for v in after.constants if v.data is not None
    )
    assert bool(report["recognise_masks"].notes) == (name in ASSUMING)
    feeds = builder.feeds(4, 1)
    (want,) = Session(graph, "onnxruntime").run(feeds).values()
    (got,) = Session(after, "reference").run(feeds).values()
    np.testing.assert_allclose(*(kept_rows(name, feeds, y) for y in (got, want)), atol=2e-5)


ASSUMING = {
    "(1 - m) -1e4", "(1 - m) least", "(1 - float m) least", "filled", "integers", "outer product",
    "one after the other", "limited, reshaped", "(m - 1) 9999", "where zero", "product behind", "subtracted",
}  # fmt: skip
"""Spellings that multiply an input by a large number: it is taken to hold zeros and ones, and the report says so."""


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_precise_and_exact(name: str) -> None:
    builder, graph = spelled(name)
    integer, _ = qir.quantize(graph, [builder.feeds(8, i) for i in range(2)])
    feeds = builder.feeds(8, 9)
    (want,) = Session(graph, "onnxruntime").run(feeds).values()
    (got,) = Session(integer, "reference").run(feeds).values()
    assert sqnr(*(kept_rows(name, feeds, y) for y in (want, got))) > 25
    for other in ("onnxruntime", "cpu"):
        assert exactness(integer, feeds, backends=("reference", other)).exact


@pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)
@pytest.mark.parametrize("name", ["causal -inf", "(1 - float m) least", "sdpa", "one after the other", "indexed"])
def test_masks_on_the_emulated_gpu(name: str) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    builder, graph = spelled(name)
    integer, _ = qir.quantize(graph, [builder.feeds(8, 1)])
    feeds = builder.feeds(3, 2)
    (want,) = Session(integer, "reference").run(feeds).values()
    (got,) = Session(integer, "cuda", device=EmulatedDevice(1)).run(feeds).values()
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("opset", [11, 13, 18, 23])
@pytest.mark.parametrize("name", ["causal -inf", "sdpa", "limited, reshaped", "product behind"])
def test_opsets(name: str, opset: int) -> None:
    builder, graph = spelled(name)
    graph = qir.load(of_opset(graph, opset))
    integer, _ = qir.quantize(graph, [builder.feeds(8, 1)])
    feeds = builder.feeds(8, 9)
    (want,), (got,) = (Session(g, "reference").run(feeds).values() for g in (graph, integer))
    assert sqnr(want, got) > 25
    assert sum(n.op == "qir.Softmax" and n.optional(3) is not None for n in integer.nodes) == 1


def test_a_row_that_keeps_nothing_gives_zeros() -> None:
    """Where SDPA cleans up its NaN: the mask of a whole sample is empty."""
    builder, graph = spelled("sdpa")
    integer, _ = qir.quantize(graph, [builder.feeds(8, 1)])
    feeds = builder.feeds(4, 2)
    feeds["mask"][1] = 0
    (want,) = Session(graph, "onnxruntime").run(feeds).values()
    (got,) = Session(integer, "onnxruntime").run(feeds).values()
    assert np.isfinite(want).all() and sqnr(want, got) > 24
    weights = next(n.output.name for n in integer.nodes if n.op == "qir.Softmax")
    assert not Session(integer, "reference").run(feeds, outputs=[weights])[weights][1].any()


def test_an_unknown_mask_is_refused_by_name() -> None:
    """-10000 times something that is no boolean: quantized, nothing would be left of the scores."""

    def soft_mask(m: AttentionBuilder, scores: Value) -> Value:
        gate = m.op("Sigmoid", m.padding(DType.FLOAT32))
        return m.op("Softmax", m.op("Add", scores, m.op("Mul", gate, m.const(-1e5))), axis=-1)

    builder = AttentionBuilder()
    graph = builder.build(soft_mask)
    with pytest.raises(UnsupportedError, match=r"mask that is not recognised"):
        qir.quantize(graph, [builder.feeds(2, 1)])
    second = AttentionBuilder(x=graph.outputs[0])
    second.build(soft_mask)
    with pytest.raises(RefusedError, match="2 nodes cannot become integers"):
        qir.quantize(graph, [builder.feeds(2, 1)])


def test_a_mask_that_is_an_input_of_large_numbers_is_refused_after_calibration() -> None:
    """Nothing in the graph says that it is one; the data do."""

    def given(m: AttentionBuilder, scores: Value) -> Value:
        bias = m.graph.add_input("bias", TensorType(DType.FLOAT32, ("N", 1, m.length, m.length)))
        return m.op("Softmax", m.op("Add", scores, bias), axis=-1)

    builder = AttentionBuilder()
    graph = builder.build(given)
    feeds = builder.feeds(4, 1)
    feeds["bias"] = np.where(builder.triangle(), 0, -1e9).astype(np.float32) + np.zeros((4, 1, 1, 1), np.float32)
    with pytest.raises(UnsupportedError, match=r"'bias', which is added to its scores, reaches -1e\+09"):
        qir.quantize(graph, [feeds])
    feeds["bias"] = np.clip(feeds["bias"], -2, 0)
    qir.quantize(graph, [feeds])


def test_index_arithmetic_is_computed_as_it_is() -> None:
    """A mask found by indices: (positions + offset) mod length, by comparisons and products of int64."""

    def windowed(m: AttentionBuilder, scores: Value) -> Value:
        first = m.graph.add_input("first", TensorType(DType.INT64, ("N",)))
        start = m.op("Max", m.op("Mul", m.spread(first, 1, 2, 3), m.const(2, np.int64)), m.const([[[[1]]]], np.int64))
        offset = m.op("Sub", m.const(np.arange(m.length), np.int64), start)
        near = m.op(
            "And", m.op("GreaterOrEqual", offset, m.const(0, np.int64)), m.op("Less", offset, m.const(4, np.int64))
        )
        return m.op("Softmax", m.op("Where", near, scores, m.const(-np.inf)), axis=-1)

    builder = AttentionBuilder()
    graph = builder.build(windowed)
    feeds = {**builder.feeds(4, 1), "first": np.asarray([0, 1, 2, 3])}
    integer, _ = qir.quantize(graph, [feeds])
    (want,), (got,) = (Session(g, "reference").run(feeds).values() for g in (graph, integer))
    assert sqnr(want, got) > 25
    assert exactness(integer, feeds).exact


EXPORTS = [
    "bug_att_min",
    "bug_att_causal_1e4",
    "bug_att_causal_inf",
    "mask_where.ts17",
    "mask_sdpa.dy20",
    "mask_add.ts14",
]


@pytest.mark.kit
@pytest.mark.parametrize("name", EXPORTS)
def test_exported_networks(name: str, kit: Path) -> None:
    """The kit's small transformers with masks, random weights: above 25 dB, the same bits everywhere."""
    path = kit / "transformers" / "exports" / f"{name}.onnx"
    open_graph = onnx.load(path)
    shapes = {
        v.name: ["N", *(d.dim_value or 16 for d in v.type.tensor_type.shape.dim[1:])] for v in open_graph.graph.input
    }
    graph = qir.load(str(path), input_shapes=shapes)
    integer, _ = qir.quantize(graph, [exported_feeds(graph, 8, i) for i in range(2)])
    feeds = exported_feeds(graph, 8, 9)
    (want,) = Session(graph, "onnxruntime").run(feeds).values()
    (got,) = Session(integer, "reference").run(feeds).values()
    assert sqnr(want, got) > 25
    for other in ("onnxruntime", "cpu"):
        assert exactness(integer, feeds, backends=("reference", other)).exact


def exported_feeds(graph: qir.Graph, samples: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng((seed, 5))
    feeds: dict[str, Any] = {}
    for value in graph.inputs:
        shape = (samples, *(int(d) for d in value.shape[1:]))
        data = padding_mask(rng, shape) if value.name == "mask" else rng.normal(size=shape)
        feeds[value.name] = (rng.integers(0, 100, shape) if value.name == "ids" else data).astype(value.dtype.numpy)
    return feeds


def test_scores_are_rounded_once_to_16_bits() -> None:
    """The factor of the scores goes into their accumulator's scale."""
    for name in ("none", "sdpa", "causal -inf"):
        builder, graph = spelled(name)
        integer, _ = qir.quantize(graph, [builder.feeds(8, 1)])
        softmax = next(n for n in integer.nodes if n.op == "qir.Softmax")
        rounding = softmax.input(0).producer
        assert rounding is not None and rounding.op == "qir.Requantize" and str(rounding.output.dtype) == "int16"
        product = rounding.input(0).producer
        assert product is not None and product.op == "qir.MatMulActivations"


def test_what_repeats_a_mask_is_left_out() -> None:
    """Expand, and And with what is true everywhere; a mask that keeps everything is none."""
    everything = np.ones((1, 1, 10, 1), bool)

    def repeated(m: AttentionBuilder, scores: Value) -> Value:
        keep = m.op("And", m.const(everything, bool), m.cast(m.padding(), DType.BOOL))
        keep = m.op("Expand", keep, m.const([1, 1, m.length, m.length], np.int64))
        return m.op("Softmax", m.op("Where", keep, scores, m.const(-np.inf)), axis=-1)

    after, _ = RecogniseMasks().apply(AttentionBuilder().build(repeated))
    keep = next(n for n in after.nodes if n.op == "MaskedSoftmax").input(1)
    assert keep.shape == ("N", 1, 1, 10) and not any(n.op in ("And", "Expand") for n in after.nodes)

    def kept(m: AttentionBuilder, scores: Value) -> Value:
        mask = m.op(
            "Where", m.op("Expand", m.const(everything, bool), m.op("Shape", scores)), m.const(0.0), m.const(-1e9)
        )
        return m.op("Softmax", m.op("Add", scores, mask), axis=-1)

    after, _ = RecogniseMasks().apply(AttentionBuilder().build(kept))
    assert [n.op for n in after.nodes if "Softmax" in n.op] == ["Softmax"]
