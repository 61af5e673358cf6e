"""A newcomer's first day: preprocessing asked for and remembered, what is missing said at once, data as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import qir
from qir.__main__ import main
from qir.cli import needs
from qir.errors import ModelError, QirError
from qir.models import bundled_path, digits
from qir.models.bundle import MEAN, STD
from qir.passes.calibration.collect import collect
from qir.passes.recipes import RECIPES, recipe_of
from qir.runtime.measure import compare

MODEL = str(bundled_path("digits_residual"))
DATA = digits()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("calib.npy", DATA.calibration[:32])


def photos(count: int = 12) -> None:
    image = pytest.importorskip("PIL.Image")
    Path("photos").mkdir()
    for i, pixels in enumerate(DATA.test_pixels[:count]):
        image.fromarray(pixels[0]).save(f"photos/{i:02}.png")


def test_preprocessing_is_asked_for_and_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    photos()
    assert main(["quantize", MODEL, "-o", "a.onnx", "--data", "photos"]) == 1
    assert "give --mean and --std" in capsys.readouterr().err and not Path("a.onnx").exists()
    given = ["--mean", str(MEAN), "--std", str(STD), "--crop", "1"]
    assert main(["quantize", MODEL, "-o", "a.onnx", "--data", "photos", *given]) == 0
    kept = json.loads(qir.load("a.onnx").metadata["qir.preprocessing"])
    assert kept["mean"] == [MEAN] and kept["crop"] == 1.0
    assert main(["run", "a.onnx", "--data", "photos", "-o", "a.npz"]) == 0
    assert main(["run", "a.onnx", "--data", "photos", "-o", "b.npz", *given]) == 0
    with np.load("a.npz") as one, np.load("b.npz") as two:
        np.testing.assert_array_equal(one["logits"], two["logits"])
    assert main(["compare", MODEL, "a.onnx", "--data", "photos"]) == 0
    assert main(["diagnose", MODEL, "--like", "a.onnx", "--data", "photos"]) == 0
    # with the normalization inside, the integer model takes pixels, and compare undoes that for the float one
    assert main(["quantize", MODEL, "-o", "f.onnx", "--data", "photos", *given, "--fold-normalization"]) == 0
    capsys.readouterr()
    assert main(["compare", MODEL, "f.onnx", "--data", "photos"]) == 0
    assert "100.00 %" in capsys.readouterr().out


def test_lists_of_files_and_broken_images(capsys: pytest.CaptureFixture[str]) -> None:
    photos()
    Path("photos/05.png").write_bytes(b"no image")
    Path("list.txt").write_text("photos/05.png\nphotos/01.png\n")
    given = ["--mean", str(MEAN), "--std", str(STD)]
    assert main(["run", MODEL, "--data", "list.txt", *given]) == 1
    assert "05.png: is no readable image" in capsys.readouterr().err
    assert main(["run", MODEL, "--data", "list.txt", *given, "--skip-broken"]) == 0
    assert capsys.readouterr().out.startswith("1 samples")
    assert main(["run", MODEL, "--data", "photos", *given, "--skip-broken"]) == 0
    assert capsys.readouterr().out.startswith("11 samples")


@pytest.mark.parametrize(
    ("module", "argv", "line"),
    [
        ("pulp", ["search", MODEL, "--data", "calib.npy", "--size", "0.7x"], "qir[ilp]"),
        ("matplotlib", ["search", MODEL, "--data", "calib.npy", "--size", "0.7x", "--plot", "a.png"], "qir[plot]"),
        ("PIL", ["quantize", MODEL, "-o", "a.onnx", "--data", "photos", "--mean", "0", "--std", "1"], "qir[images]"),
        ("numba", ["run", MODEL, "--data", "calib.npy", "--backend", "cpu"], "qir[cpu]"),
    ],
    ids=["pulp", "matplotlib", "PIL", "numba"],
)
def test_what_is_missing_is_said_before_the_work(
    module: str, argv: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    find = importlib.util.find_spec
    monkeypatch.setattr(needs, "find_spec", lambda name: None if name == module else find(name))

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work had begun")

    for name in ("qir.cli.search.calibrate", "qir.cli.quantize.run_recipe"):
        monkeypatch.setattr(name, work)
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert f"pip install '{line}'" in err, err


def die(*_: object) -> None:
    os._exit(1)


class DyingPool(ProcessPoolExecutor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(die)


def test_a_worker_that_dies_is_an_error_of_ours() -> None:
    with DyingPool(1) as pool, pytest.raises(QirError, match="a worker process died"):
        collect(qir.load(MODEL), [{"image": DATA.calibration[:4]}], executor=pool)


def test_a_generator_serves_a_recipe_that_reads_twice() -> None:
    pairs = ((x, int(y)) for x, y in zip(DATA.calibration[:32], range(32), strict=True))
    one, _ = qir.quantize(MODEL, pairs, "w4a8")
    two, _ = qir.quantize(MODEL, DATA.calibration[:32], "w4a8")
    assert str(one) == str(two)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", MODEL, "-o", "a.onnx", "--data", "calib.npy"]) == 0
    capsys.readouterr()

    def said(*argv: str) -> Any:
        assert main([*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert said("inspect", "a.onnx")["integer_only"] is True and said("inspect", MODEL)["stage"] == "FLOAT"
    compared = said("compare", MODEL, "a.onnx", "--data", "calib.npy")
    assert compared["samples"] == 32 and compared["outputs"][0]["sqnr"] > 30 and len(compared["tensors"]) > 8
    assert said("diagnose", MODEL, "--data", "calib.npy", "--samples", "4")["culprits"]


def test_recipes_as_toml_and_errors_with_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for name in RECIPES:
        assert main(["recipe", name]) == 0
        Path(f"{name}.toml").write_text(capsys.readouterr().out)
        assert recipe_of(f"{name}.toml") == recipe_of(name)
    for text, message in (
        ("base = 'w8a8'\n\nmethod = \n", "bad.toml:3: "),
        ("base = 'w8a8'\nmetod = 'mse'\n", "bad.toml:2: .*did you mean 'method'"),
        ("percentile = 99.9\nmethod = 'best'\n", "bad.toml:2: .*no range method"),
        ("per_channel = 1\n", "bad.toml:1: .*is no bool"),
    ):
        Path("bad.toml").write_text(text)
        with pytest.raises(QirError, match=message):
            recipe_of("bad.toml")


def test_compare_runs_a_batch_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    integer, _ = qir.quantize(MODEL, DATA.calibration[:32])
    feeds = [{"image": DATA.test[:20]}]
    whole = compare.compare_graphs(qir.load(MODEL), integer, feeds)
    monkeypatch.setattr(compare, "AT_ONCE", 1)
    one = compare.compare_graphs(qir.load(MODEL), integer, feeds)
    assert one.samples == whole.samples == 20
    assert [t.name for t in one.tensors] == [t.name for t in whole.tensors]
    np.testing.assert_allclose([t.sqnr for t in one.tensors], [t.sqnr for t in whole.tensors], atol=0.01)


def test_squeeze_without_axes_keeps_a_batch_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = helper.make_tensor_value_info("x", 1, ["N", 4, 1, 1]), helper.make_tensor_value_info("y", 1, ["N", 4])
    node = helper.make_node("Squeeze", ["x"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y])), "squeeze.onnx")
    np.save("x.npy", np.random.default_rng(0).normal(size=(17, 4, 1, 1)).astype(np.float32))
    assert main(["run", "squeeze.onnx", "--data", "x.npy", "--batch", "16", "-o", "y.npz"]) == 0, capsys.readouterr()
    with np.load("y.npz") as found:
        np.testing.assert_array_equal(found["y"], np.load("x.npy")[..., 0, 0])


AT_HOME = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("where", ["-", "/dev/stdout"])
def test_a_model_goes_down_a_pipe(where: str, tmp_path: Path) -> None:
    """Nothing but the model on stdout; what is said goes to stderr."""
    command = [sys.executable, "-m", "qir", "quantize", str(bundled_path("digits_mobile")), "--recipe", "data_free"]
    done = subprocess.run([*command, "-o", where], capture_output=True, check=True, cwd=tmp_path, env=AT_HOME)
    assert qir.load(done.stdout).stage.name == "INTEGER" and b"wrote /dev/stdout: integers only" in done.stderr
    with (tmp_path / "kept.onnx").open("wb") as file:
        subprocess.run(
            [*command, "-o", where], stdout=file, stderr=subprocess.DEVNULL, check=True, cwd=tmp_path, env=AT_HOME
        )
    assert (tmp_path / "kept.onnx").read_bytes() == done.stdout
    assert {p.name for p in tmp_path.iterdir()} - {"calib.npy"} == {"kept.onnx"}


def test_a_pipe_has_no_data_beside_it() -> None:
    with pytest.raises(ModelError, match="is no file that could have data beside it"):
        qir.save(qir.load(bundled_path("digits_mobile")), "/dev/stdout", external_data=True)
