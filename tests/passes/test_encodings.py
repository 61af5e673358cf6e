"""AIMET's encodings: weights on their grids, activations with their ranges, with data and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.__main__ import main
from qir.errors import ParseError, QuantizationError
from qir.graph import Graph
from qir.runtime import Session
from qir.types import DType, TensorType

RNG = np.random.default_rng(0)
W = RNG.normal(size=(6, 4, 3, 3)).astype(np.float32)
M = RNG.normal(size=(6, 3)).astype(np.float32)
X = RNG.uniform(-1, 1, size=(16, 4, 8, 8)).astype(np.float32)
STEPS = (np.abs(W).reshape(6, -1).max(axis=1) / 127 * RNG.uniform(0.8, 1.2, 6)).tolist()
GRIDS = {"x": (2 / 255, 128), "r": (0.03, 0), "y": (0.05, 100)}
"""Scale and zero point, uint8."""


def network() -> Graph:
    g = Graph("encoded")
    v = g.add_input("x", TensorType(DType.FLOAT32, ("N", 4, 8, 8)))
    v = g.add_node("Conv", [v, g.add_constant("w", W)], {"pads": [1] * 4}, outputs=["c"]).output
    v = g.add_node("Relu", [v], outputs=["r"]).output
    v = g.add_node("GlobalAveragePool", [v], outputs=["p"]).output
    v = g.add_node("Flatten", [v], outputs=["f"]).output
    m = g.add_constant("m", M)
    g.set_outputs([g.add_node("MatMul", [v, m], outputs=["y"]).output])
    return g


def version(number: str) -> dict[str, Any]:
    """The same grids in each of the formats."""
    if number == "2.0.0":
        entries: list[dict[str, Any]] = [
            {"name": n, "output_dtype": "uint8", "y_scale": s, "y_zero_point": z} for n, (s, z) in GRIDS.items()
        ]
        entries.append({"name": "w", "output_dtype": "int8", "y_scale": STEPS, "axis": 0})
        return {"version": number, "encodings": entries}
    if number == "1.0.0":
        seen = [
            {
                "name": n,
                "bw": 8,
                "dtype": "INT",
                "enc_type": "PER_TENSOR",
                "is_sym": False,
                "scale": [s],
                "offset": [-z],
            }
            for n, (s, z) in GRIDS.items()
        ]
        w = {"name": "w", "bw": 8, "dtype": "INT", "enc_type": "PER_CHANNEL", "is_sym": True, "scale": STEPS,
             "offset": [-128] * 6}  # fmt: skip
        return {"version": number, "activation_encodings": seen, "param_encodings": [w]}
    old = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False"}
    return {
        "version": number,
        "activation_encodings": {n: [{**old, "scale": s, "offset": -z}] for n, (s, z) in GRIDS.items()},
        "param_encodings": {"w": [{**old, "is_symmetric": "True", "scale": s, "offset": -128} for s in STEPS]},
    }


@pytest.mark.parametrize("number", ["0.6.1", "1.0.0", "2.0.0"])
def test_grids_are_those_of_the_file(tmp_path: Path, number: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps(version(number)))
    integer, report = qir.quantize(network(), X, encodings=path)
    conv = next(n for n in integer.nodes if n.op == "qir.Conv")
    w = np.clip(np.rint(W / np.asarray(STEPS, np.float32).reshape(-1, 1, 1, 1)), -128, 127)
    assert np.array_equal(conv.input(1).array(), w)
    grid = integer.value("x.q").quant
    assert grid is not None and grid.zero_point == (128,) and grid.scale[0] == pytest.approx(2 / 255, rel=1e-6)
    relu = integer.value("r").quant
    assert relu is not None and relu.scale[0] == pytest.approx(0.03, rel=1e-6)
    assert report["encodings"].notes == ["4 encodings"]
    expected = Session(network(), "reference").run({"x": X})["y"]
    assert np.abs(Session(integer, "reference").run({"x": X})["y"] - expected).max() < 0.4  # scales clip a fifth


def test_without_data_all_ranges_are_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = version("1.0.0")
    for n, scale in (("c", 0.03), ("p", 0.01), ("f", 0.01)):
        given["activation_encodings"].append({"name": n, "bw": 8, "dtype": "INT", "is_sym": False, "scale": [scale],
                                              "offset": [0]})  # fmt: skip
    given["activation_encodings"].append({"name": "elsewhere", "bw": 8, "dtype": "INT", "scale": [1.0], "offset": [0]})
    (tmp_path / "e.json").write_text(json.dumps(given))
    qir.save(network(), tmp_path / "f.onnx")
    command = ["quantize", str(tmp_path / "f.onnx"), "-o", str(tmp_path / "q.onnx")]
    assert main([*command, "--encodings", str(tmp_path / "e.json")]) == 0
    assert "no tensor of the network: elsewhere" in capsys.readouterr().out
    assert qir.load(tmp_path / "q.onnx").value("x.q").quant is not None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", ParseError), ("[]", ParseError), ('{"version": "3.0", "encodings": []}', ParseError),
        ('{"version": "2.0.0", "encodings": [{"name": "w"}]}', ParseError),
        ('{"version": "2.0.0", "encodings": [{"name": "x", "output_dtype": "uint6", "y_scale": 1}]}', ParseError),
        ('{"version": "2.0.0", "encodings": [{"name": "w", "output_dtype": "int8", "y_scale": [1, 1]}]}',
         QuantizationError),
    ],
)  # fmt: skip
def test_what_is_no_encoding(tmp_path: Path, text: str, error: type[Exception]) -> None:
    (tmp_path / "e.json").write_text(text)
    with pytest.raises(error):
        qir.quantize(network(), X, encodings=tmp_path / "e.json")
    with pytest.raises(ParseError, match="cannot be read"):
        qir.quantize(network(), X, encodings=tmp_path / "none.json")
