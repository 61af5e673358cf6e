"""Other people's quantized models (the kit's): integer-only, exact across backends, near what they were before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import qir
from qir import passes
from qir.io import audit, to_onnx
from qir.runtime import Session
from qir.runtime.measure.exactness import exactness
from qir.verify import is_integer_only, verify

MODELS = {
    "TFC_2W2A": (1, 1, 28, 28), "kwsmlp_w3a3": (1, 1, 10, 49), "mlperf_ad_int8_qdq": (2, 640),
    "mlperf_dscnn_kws_int8_qdq": (2, 1, 49, 10), "mlperf_resnet8_int8_qdq": (2, 3, 32, 32),
    "mlperf_vww_int8_qdq": (1, 3, 96, 96), "tflite_mobilenetv1_025_128_qat_u8_qdq": (1, 3, 128, 128),
    "tflite_person_detect_int8_qdq": (1, 1, 96, 96),
}  # fmt: skip
"""Model -> shape of a feed; the larger ones are benchmarks/third_party.py's."""


def lowered(path: Path) -> qir.Graph:
    graph, _ = passes.LowerToDyadic().apply(qir.load(path))
    return graph


@pytest.mark.kit
@pytest.mark.parametrize("name", MODELS)
def test_lowers_to_an_exact_integer_network(name: str, kit: Path) -> None:
    graph = lowered(kit / "quantized" / f"{name}.onnx")
    verify(graph, qir.Stage.INTEGER)
    model = to_onnx(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [*is_integer_only(graph), *audit(model)] == []
    x = np.random.default_rng(5).normal(size=MODELS[name]).astype(np.float32)
    result = exactness(graph, {graph.inputs[0].name: x})
    assert result.exact, result.differing


@pytest.mark.kit
@pytest.mark.parametrize("name", ["mlperf_ad_int8_qdq", "mlperf_dscnn_kws_int8_qdq", "mlperf_vww_int8_qdq"])
def test_outputs_within_one_step_of_the_original(name: str, kit: Path) -> None:
    path = kit / "quantized" / f"{name}.onnx"
    graph = lowered(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    original = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = (16, *MODELS[name][1:])
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    want = np.asarray(original.run(None, {original.get_inputs()[0].name: x})[0], dtype=np.float64)
    end = graph.outputs[0]
    got = Session(graph, "reference").run({graph.inputs[0].name: x})[end.name]
    assert end.producer is not None
    quant = end.producer.input(0).quant
    assert quant is not None
    near = np.abs(got.astype(np.float64) - want) < 1.5 * quant.scale[0]
    assert near.mean() >= 0.99
