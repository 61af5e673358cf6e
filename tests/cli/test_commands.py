"""The commands, end to end, on the bundled networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import qir
from qir.__main__ import main
from qir.models import bundled_path, digits
from qir.models.bundle import MEAN, STD
from qir.passes.recipes import recipe_of
from qir.runtime import Session

RESIDUAL, INCEPTION = (str(bundled_path(f"digits_{n}")) for n in ("residual", "inception"))
DATA = digits()
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line that must succeed, in an empty folder with data; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    np.save("calib.npy", DATA.calibration[:64])
    np.save("test.npy", DATA.test[:100])
    np.savez("test.npz", image=DATA.test[:100])

    def command(*argv: str) -> str:
        code = main(argv)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return command


def accuracy(path: str, images: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> float:
    session = Session(path, backend="onnxruntime")
    scores = session.run({session.graph.inputs[0].name: images})["logits"]
    return float((scores.argmax(1) == DATA.test_labels[: len(images)]).mean())


def test_quantize_run_compare_inspect(run: Run) -> None:
    out = run("quantize", RESIDUAL, "-o", "int.onnx", "--data", "calib.npy", "--report", "r.json", "--ranges", "g.json")
    assert "wrote int.onnx: integers only" in out
    assert accuracy("int.onnx", DATA.test) > 0.97
    assert {p["name"] for p in json.loads(Path("r.json").read_text())["passes"]} >= {"insert_qdq", "calibrate"}
    assert "image" in json.loads(Path("g.json").read_text())["tensors"]
    onnx.checker.check_model(onnx.load("int.onnx"), full_check=True)

    assert "100 samples" in run("run", "int.onnx", "--data", "test.npz", "-o", "out.npz", "--backend", "reference")
    with np.load("out.npz") as got:
        want = Session("int.onnx", backend="onnxruntime").run({"image": DATA.test[:100]})["logits"]
        np.testing.assert_array_equal(got["logits"], want)

    out = run("compare", RESIDUAL, "int.onnx", "--data", "test.npy", "--samples", "40")
    assert "40 samples" in out
    figures = [float(line.split()[-1].lstrip("~")) for line in out.splitlines() if "qir." in line]
    assert len(figures) > 8 and figures == sorted(figures) and figures[0] > 20
    assert "100.00 %" in out

    out = run("inspect", "int.onnx", "--layers")
    for word in ("stage INTEGER", "integer-only: yes", "qir.Conv", "int8", "8x8", "MACs", "BOPS", "scale"):
        assert word in out
    assert "stage FLOAT" in run("inspect", RESIDUAL)


def test_options_of_quantize(run: Run) -> None:
    data = ("--data", "calib.npy", "--samples", "32")
    run("quantize", RESIDUAL, "-o", "a.onnx", *data, "--recipe", "w4a8", "--range", "percentile", "--io", "integer")
    graph = qir.load("a.onnx")
    assert graph.inputs[0].dtype.value == "uint8" and graph.outputs[0].dtype.value == "int16"
    assert any(v.dtype.value == "int4" for v in graph.constants)
    run("run", "a.onnx", "--data", "test.npy", "--dequantize", "-o", "a.npz")
    np.save("ints.npy", graph.inputs[0].quant.quantize(DATA.test[:100]) if graph.inputs[0].quant else 0)
    run("run", "a.onnx", "--data", "ints.npy", "--dequantize", "-o", "b.npz")
    with np.load("a.npz") as got, np.load("b.npz") as same:
        np.testing.assert_array_equal(got["logits"], same["logits"])
        assert got["logits"].dtype == np.float32
        assert (got["logits"].argmax(1) == DATA.test_labels[:100]).mean() > 0.95

    run("quantize", RESIDUAL, "-o", "b.onnx", *data, "--per-tensor", "--opset", "28")
    weights = [v for v in qir.load("b.onnx").constants if v.dtype.value == "int8" and v.type.rank == 4]
    assert weights and all(w.quant is not None and not w.quant.per_channel for w in weights)
    assert onnx.load("b.onnx").opset_import[0].version == 28

    run("quantize", RESIDUAL, "-o", "c.onnx", "--recipe", "data_free")
    assert accuracy("c.onnx", DATA.test) > 0.9

    Path("mine.toml").write_text('base = "w8a8"\nmethod = "kl"\n')
    run("quantize", RESIDUAL, "-o", "d.onnx", *data, "--recipe", "mine.toml", "-v")


def test_jobs_give_the_same_bits(run: Run) -> None:
    for jobs in ("1", "2"):
        run("quantize", RESIDUAL, "-o", f"{jobs}.onnx", "--data", "calib.npy", "--jobs", jobs)
    assert Path("1.onnx").read_bytes() == Path("2.onnx").read_bytes()


def test_pixels(run: Run) -> None:
    normal = ("--mean", str(MEAN), "--std", str(STD))
    run("quantize", INCEPTION, "-o", "a.onnx", "--data", "calib.npy", *normal, "--fold-normalization")
    np.save("pixels.npy", DATA.calibration_pixels[:64])
    run("quantize", INCEPTION, "-o", "b.onnx", "--data", "pixels.npy", *normal, "--fold-normalization")
    assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()
    assert "uint8 Nx1x8x8, scale 1 zero point 0" in run("inspect", "a.onnx")
    assert accuracy("a.onnx", DATA.test_pixels) > 0.97
    out = run("compare", INCEPTION, "a.onnx", "--data", "test.npy")
    figures = [float(line.split()[-1].lstrip("~")) for line in out.splitlines() if "qir." in line]
    assert figures[0] > 15
    assert float(out.splitlines()[-1].split()[2]) >= 98  # share of equal answers


def test_image_folder(run: Run) -> None:
    image = pytest.importorskip("PIL.Image")
    Path("photos").mkdir()
    for i, pixels in enumerate(DATA.test_pixels[:20]):
        image.fromarray(pixels[0]).save(f"photos/{i:02}.png")
    options = ("--data", "photos", "--crop", "1", "--mean", str(MEAN), "--std", str(STD))
    run("quantize", RESIDUAL, "-o", "a.onnx", *options)
    run("quantize", RESIDUAL, "-o", "b.onnx", *options, "--io", "integer")
    run("quantize", RESIDUAL, "-o", "c.onnx", *options, "--fold-normalization")
    for model in ("a.onnx", "b.onnx", "c.onnx"):  # float, quantized and pixel inputs: the same options do
        assert "20 samples" in run("run", model, *options, "-o", "out.npz")
        with np.load("out.npz") as got:
            assert (got["logits"].argmax(1) == DATA.test_labels[:20]).mean() > 0.9


def test_strip_softmax_and_qdq_input(run: Run) -> None:
    graph = qir.load(RESIDUAL)
    graph.set_outputs([graph.add_node("Softmax", [graph.outputs[0]], {"axis": 1}, outputs=["p"]).output])
    qir.save(graph, "soft.onnx")
    run("quantize", "soft.onnx", "-o", "a.onnx", "--data", "calib.npy", "--strip-softmax")
    assert not any(n.op == "qir.Softmax" for n in qir.load("a.onnx").nodes)
    assert "100.00 %" in run("compare", "soft.onnx", "a.onnx", "--data", "test.npy", "--strip-softmax")
    said = run("quantize", RESIDUAL, "-o", "c.onnx", "--data", "calib.npy", "--strip-softmax")
    assert "no Softmax was stripped: logits: is not made by a Softmax" in said

    from qir.passes.pipeline import run_recipe
    from qir.passes.recipes import recipe_of

    done = run_recipe(recipe_of("w8a8"), qir.load(RESIDUAL), [{"image": DATA.calibration[:32]}])
    qir.save(done.qdq, "qdq.onnx")
    assert "quantized already" in run("quantize", "qdq.onnx", "-o", "b.onnx")
    results = [Session(g, "reference").run({"image": DATA.test[:16]})["logits"] for g in (done.graph, "b.onnx")]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4", "data_free"])
def test_demo(run: Run, recipe: str) -> None:
    out = run("demo", "--network", "digits_inception", "--recipe", recipe)
    assert "identical bits     yes" in out and "none" in out
    assert Path(f"digits_inception.{recipe}.onnx").is_file()


def test_search_and_what_it_writes(run: Run) -> None:
    Path("own.toml").write_text('base = "w4a8"\nmethod = "percentile"\npercentile = 99.9\nrounding = "nearest"\n')
    options = ["--data", "calib.npy", "--samples", "32", "--recipe", "own.toml"]
    out = run("search", RESIDUAL, *options, "--size", "0.7x", "--save-sensitivity", "s.json", "-o", "mixed.toml")
    assert "wrote mixed.toml" in out
    mixed, own = recipe_of("mixed.toml"), recipe_of("own.toml")
    assert replace(mixed, name="own", layers={}) == own, "a recipe file keeps what its own base was changed by"
    pins = ["--pin", "block2.b.conv=8/8", "--forbid", "block0.a.conv=4/4", "--residual-groups"]
    again = ["search", RESIDUAL, *options, "--sensitivity", "s.json", "--size", "0.9x", *pins]
    run(*again, "-o", "pinned.toml")
    assert recipe_of("pinned.toml").layers["block2.b.conv"] == (8, 8) != mixed.layers["block2.b.conv"]
    run("quantize", RESIDUAL, "-o", "mixed.onnx", "--data", "calib.npy", "--recipe", "mixed.toml")
    layers = [n for n in Session("mixed.onnx", backend="onnxruntime").graph.nodes if n.op in ("qir.Conv", "qir.MatMul")]
    assert sorted(n.input(1).dtype.bits for n in layers) == sorted(w for w, _ in mixed.layers.values())


def test_diagnose(run: Run) -> None:
    out = run(
        "diagnose", RESIDUAL, "--data", "calib.npy", "--samples", "8", "--recipe", "w8a8_per_tensor", "--remedies"
    )
    for words in (
        "1. float check",
        "2. rounded to nearest",
        "3. each quantizer",
        "4. the whole recipe",
        "per_channel=true",
    ):
        assert words in out
