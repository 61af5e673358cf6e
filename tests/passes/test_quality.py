"""Collapse is noticed: warnings by name where an output or a tensor is lost, none where nothing is."""

from __future__ import annotations

import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.__main__ import main
from qir.errors import CollapseError
from qir.graph import Graph
from qir.io import load
from qir.passes import pipeline
from qir.passes.calibration.data import batches
from qir.passes.diagnose import diagnose
from qir.passes.pipeline import run_recipe
from qir.passes.quality import First, measure
from qir.passes.recipes import recipe_of
from qir.types import Array, DType, TensorType

RNG = np.random.default_rng(0)


def tabular(scales: Array) -> tuple[Graph, Array]:
    """Standardized features of different units, and a small network; (graph, data)."""
    n = len(scales)
    x = (RNG.normal(size=(64, n)) * scales + 3 * scales).astype(np.float32)
    g = Graph("tabular")
    v = g.add_input("x", TensorType(DType.FLOAT32, ("N", n)))
    c = lambda name, value: g.add_constant(name, np.asarray(value, np.float32))  # noqa: E731
    for op, name, value in (("Sub", "centred", 3 * scales), ("Div", "standard", scales)):
        v = g.add_node(op, [v, c(f"{name}.c", value)], outputs=[name]).output
    for i, (rows, columns) in enumerate(((n, 16), (16, 4))):
        w, b = c(f"w{i}", RNG.normal(size=(rows, columns))), c(f"b{i}", RNG.normal(size=columns))
        v = g.add_node("Gemm", [v, w, b], outputs=[f"gemm{i}"]).output
        v = g.add_node("Relu", [v], outputs=["hidden"]).output if i == 0 else v
    g.set_outputs([v])
    return g, x


MANY = np.asarray([1e-3, 1e-2, 0.1, 1, 1, 10, 1e3, 1e4])


@pytest.fixture
def one_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs have one grid for all their features, as they had before they were given one each."""
    monkeypatch.setattr(pipeline, "center_inputs", lambda *_: None)


def logmel() -> tuple[Graph, Array]:
    """A spectrum's squares, their logarithm, and a classifier."""
    x = (RNG.normal(size=(64, 32)) * np.geomspace(1e-3, 3, 32)).astype(np.float32)
    g = Graph("logmel")
    v = g.add_input("x", TensorType(DType.FLOAT32, ("N", 32)))
    power = g.add_node("Mul", [v, v], outputs=["power"]).output
    floor = g.add_node("Add", [power, g.add_constant("floor", np.asarray(1e-9, np.float32))], outputs=["safe"]).output
    log = g.add_node("Log", [floor], outputs=["log"]).output
    w = g.add_constant("w", RNG.normal(size=(32, 4)).astype(np.float32))
    g.set_outputs([g.add_node("MatMul", [log, w], outputs=["y"]).output])
    return g, x


def test_features_in_different_units_collapse_under_one_grid(one_grid: None, caplog: pytest.LogCaptureFixture) -> None:
    g, x = tabular(MANY)
    with caplog.at_level(logging.WARNING):
        _, report = qir.quantize(g, x)
    assert "output 'gemm1' has" in caplog.text and "breaks at input 'x'" in caplog.text
    assert "standardize its features" in caplog.text
    found = report["quality"]
    assert found.data["outputs"][0]["sqnr"] < 10 and json.loads(report.to_json())
    assert found.data["warnings"] and any(note.startswith("warning: output") for note in found.notes)
    with pytest.raises(CollapseError, match="output 'gemm1'"):
        qir.quantize(g, x, strict=True)


def test_one_element_decides_a_grid(one_grid: None, caplog: pytest.LogCaptureFixture) -> None:
    g, x = tabular(np.ones(64))
    x[0, 0] = 1e5
    with caplog.at_level(logging.WARNING):
        qir.quantize(g, x, method="minmax")
    assert "its largest value is" in caplog.text and "method='percentile'" in caplog.text


def test_what_is_well_has_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for g, x in (tabular(np.ones(8)), tabular(MANY)):
            _, report = qir.quantize(g, x, strict=True)
            assert "on 32 calibration samples: gemm1" in report["quality"].notes[0]
    assert not caplog.text


def test_the_first_place_is_named_in_the_order_of_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    g, x = logmel()
    done = run_recipe(recipe_of("w8a8"), g, [{"x": x}])
    squeezed = done.ranges.updated({"log": (-1000.0, 1000.0)})
    done = run_recipe(recipe_of("w8a8"), g, [{"x": x}], ranges=squeezed, check=True)
    assert done.quality is not None
    assert any("'log'" in w and "Log" in w for w in done.quality.warnings)


@pytest.mark.parametrize("data", ["array", "generator"])
def test_a_sample_of_any_source_is_looked_at(data: str) -> None:
    g, x = tabular(np.ones(8))
    source: Any = x if data == "array" else ({"x": part} for part in np.split(x, 8))
    feeds = First(batches(source, g))
    done = run_recipe(recipe_of("w8a8"), g, feeds)
    found = measure(done.prepared, done.graph, feeds.first())
    assert found is not None and found.samples == 32 and found.outputs[0].sqnr > 30
    assert found.outputs[0].agreement == 1.0 and found.outputs[0].column is not None
    assert found.tensors[0].name == "x"


def test_a_convolutional_network_has_no_warning() -> None:
    g = load(str(files("qir.models") / "digits_residual.onnx"))
    x = np.clip(RNG.normal(size=(32, *map(int, g.inputs[0].shape[1:]))), 0, 1).astype(np.float32)
    done = run_recipe(recipe_of("w8a8"), g, [{g.inputs[0].name: x}], check=True)
    assert done.quality is not None and not done.quality.warnings


def test_commands_say_it(one_grid: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for scales, words in ((np.ones(8), "on 32 calibration samples: gemm1"), (MANY, "warning: output 'gemm1' has")):
        g, x = tabular(scales)
        qir.save(g, tmp_path / "f.onnx")
        np.save(tmp_path / "x.npy", x)
        out = tmp_path / "q.onnx"
        command = ["quantize", str(tmp_path / "f.onnx"), "-o", str(out), "--data", str(tmp_path / "x.npy")]
        assert main(command) == 0 and words in capsys.readouterr().out
        out.unlink()
        assert main([*command, "--strict"]) == (1 if "warning" in words else 0)
        assert out.exists() == ("warning" not in words)
    found = diagnose(g, batches(x, g), recipe_of("w8a8"))
    assert found.warnings and found.text().startswith("warning: output 'gemm1'")
