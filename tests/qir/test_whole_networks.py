"""Small trained networks, quantized: saved, loaded, audited, and run in both profiles by onnx.reference, bit by bit."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import pytest

import qir
from qir.graph import Graph, Stage
from qir.io import audit, strip_border, to_onnx
from qir.runtime import Session
from qir.text import elided
from qir.verify import is_integer_only, verify

NETWORKS = ["digits_residual", "digits_mobile", "digits_inception"]


def shipped(name: str) -> Path:
    return Path(str(resources.files("qir.models"))) / name


@cache
def pixels() -> Any:
    with np.load(shipped("digits.npz")) as arrays:
        return arrays["calibration_pixels"].astype(np.float32)


@cache
def quantized(network: str, recipe: str) -> Graph:
    graph, _ = qir.quantize(shipped(f"{network}.onnx"), pixels()[:64], recipe=recipe)
    return graph


@pytest.mark.parametrize("opset", [21, 28])
@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_reference_gives_the_same_bits_in_both_profiles(network: str, recipe: str, opset: int) -> None:
    graph = quantized(network, recipe)
    names = [v.name for n in graph.nodes for v in n.outputs]
    model = to_onnx(graph, opset, names)
    onnx.checker.check_model(model, full_check=True)
    feeds = {graph.inputs[0].name: pixels()[64:68]}
    want = Session(graph, "reference").run(feeds, outputs=names)
    fetch = [o.name for o in model.graph.output]
    got = dict(zip(fetch, onnx.reference.ReferenceEvaluator(model).run(fetch, feeds), strict=True))
    for name in names:
        np.testing.assert_array_equal(np.asarray(got[name]).astype(want[name].dtype), want[name], err_msg=name)


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("network", NETWORKS)
def test_two_opinions_on_integer_only(network: str, recipe: str) -> None:
    graph = quantized(network, recipe)
    verify(graph, Stage.INTEGER)
    assert is_integer_only(graph) == []
    for opset in (21, 28):
        assert audit(to_onnx(graph, opset)) == []
    assert audit(onnx.load(shipped(f"{network}.onnx"))) != []


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("network", NETWORKS)
def test_file_and_text_give_the_graph_back(network: str, recipe: str, tmp_path: Path) -> None:
    graph = quantized(network, recipe)
    for stage in (qir.load(shipped(f"{network}.onnx")), graph):
        qir.save(stage, tmp_path / "m.onnx")
        again = qir.load(tmp_path / "m.onnx")
        assert str(again) == str(stage)
        for name, array in elided(stage).items():
            np.testing.assert_array_equal(elided(again)[name], array)
        assert str(Graph.parse(str(stage), elided(stage))) == str(stage)


@pytest.mark.parametrize("network", NETWORKS)
def test_without_its_border_the_network_computes_the_same_integers(network: str, tmp_path: Path) -> None:
    graph = quantized(network, "w8a8")
    bare = strip_border(graph)
    assert not any(v.dtype.is_float for v in bare.values)
    qir.save(graph, tmp_path / "m.onnx", io="integer")
    (source,), (end,) = graph.inputs, graph.outputs
    (first,) = {n for n, _ in source.uses()}
    integers = graph.value(end.name).producer
    assert integers is not None
    names = [first.output.name, integers.input(0).name]
    got = Session(graph, "reference").run({source.name: pixels()[:4]}, outputs=names)
    for backend in ("reference", "onnxruntime"):
        y = Session(tmp_path / "m.onnx", backend).run({source.name: got[names[0]]})
        np.testing.assert_array_equal(y[end.name], got[names[1]])
