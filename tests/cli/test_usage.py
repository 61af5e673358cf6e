"""The command line teaches: every example in every --help parses; errors are one line; exit codes hold."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.__main__ import main
from qir.cli import parser as cli
from qir.cli import show
from qir.models import bundled_path

EPILOGS = (cli.QUANTIZE, cli.RUN, cli.COMPARE, cli.INSPECT, cli.DEMO)
EXAMPLES = [line.strip() for text in EPILOGS for line in text.splitlines() if line.startswith("  qir ")]


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_of_the_help_parse(line: str) -> None:
    args = cli.build_parser().parse_args(shlex.split(line)[1:])
    assert callable(args.main)


@pytest.mark.parametrize("command", [[], ["quantize"], ["run"], ["compare"], ["inspect"], ["demo"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "usage: qir" in text
    assert command == [] or "examples:" in text


@pytest.mark.parametrize(
    "argv",
    [
        [], ["fly"], ["quantize"], ["quantize", "a.onnx"], ["run", "a.onnx"],
        ["quantize", "a", "-o", "b", "--size", "0"],
        ["quantize", "a", "-o", "b", "--opset", "20"], ["quantize", "a", "-o", "b", "--input-shape", "1x3"],
        ["run", "a", "--data", "b", "--backend", "tpu"], ["run", "a", "--data", "b", "--crop", "2"],
        ["search", "a", "--data", "b", "--pin", "conv"],
        ["run", "a", "--data", "b", "--mean", "x"], ["run", "a", "--data", "b", "--samples", "-1"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2
    assert "usage: qir" in capsys.readouterr().err


def test_values_of_options() -> None:
    line = "quantize m.onnx -o o.onnx --data d --size 240x320 --mean 1,2,3 --std 4 --input-shape a:b:Nx3x8x8"
    args = cli.build_parser().parse_args(shlex.split(line))
    assert args.size == (240, 320) and args.mean == (1.0, 2.0, 3.0) and args.std == (4.0,)
    assert args.input_shape == [("a:b", ("N", 3, 8, 8))]
    assert cli.pair("96") == (96, 96)
    with pytest.raises(argparse.ArgumentTypeError):
        cli.pair("1x2x3")


MODEL = str(bundled_path("digits_residual"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "none.onnx"], "none.onnx"),
        (["inspect", "bad.onnx"], "bad.onnx"),
        (["run", MODEL, "--data", "none.npy"], "no such file or folder"),
        (["run", MODEL, "--data", "bad.npy"], "is no .npy file"),
        (["run", MODEL, "--data", "archive.npy"], "is no .npy file"),
        (["compare", "whole.onnx", MODEL, "--data", "good.npy"], "the float model comes first"),
        (["quantize", MODEL, "-o", "out.onnx", "--data", "signed.npy", "--fold-normalization"], "they are no pixels"),
        (["run", MODEL, "--data", "wrong.npy"], "shape"),
        (["run", MODEL, "--data", "."], "is missing (the data have x)"),
        (["run", MODEL, "--data", "good.npy", "-o", "no/where.npz"], "its folder does not exist"),
        (["run", MODEL, "--data", "good.npy", "-o", "good.npy"], "would overwrite its own input"),
        (["quantize", MODEL, "-o", MODEL, "--data", "good.npy"], "would overwrite its own input"),
        (["quantize", MODEL, "-o", "out.onnx"], "--data"),
        (["quantize", MODEL, "-o", "out.onnx", "--data", "good.npy", "--recipe", "w3a3"], "w3a3"),
        (["quantize", MODEL, "-o", "out.onnx", "--data", "good.npy", "--recipe", "no.toml"], "no.toml"),
        (["search", MODEL, "--data", "good.npy"], "no limit given"),
        (["search", MODEL, "--data", "good.npy", "--size", "much"], "'much' is no limit of size"),
        (["search", MODEL, "--data", "good.npy", "--latency-limit", "3ms"], "give a latency table"),
        (["search", MODEL, "--data", "good.npy", "--size", "1x", "--choices", "4/4,8/16"], "no layer can have 8/16"),
        (["search", MODEL, "--data", "good.npy", "--size", "1x", "--pin", "conf=8/8"], "no such layer"),
        (["search", MODEL, "--data", "good.npy", "--size", "0.9x", "--choices", "8/8"], "nearest that can be met"),
        (["search", MODEL, "--data", "good.npy", "--size", "1x", "--plot", "a.xyz"], "no plot"),
    ],
    ids=lambda v: " ".join(v[:1] + v[2:]) if isinstance(v, list) else v,
)
def test_errors_are_one_line_and_1(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", np.zeros((4, 1, 8, 8), np.float32))
    np.save("wrong.npy", np.zeros((4, 1, 8, 9), np.float32))
    np.save("signed.npy", np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 1, 8, 8))
    for name in ("bad.onnx", "bad.npy"):
        Path(name).write_bytes(b"not a model")
    with Path("archive.npy").open("wb") as file:
        np.savez(file, x=np.zeros((4, 1, 8, 8), np.float32))
    if "whole.onnx" in argv:
        qir.save(qir.quantize(MODEL, recipe="data_free")[0], "whole.onnx")
    before = sorted(p.name for p in tmp_path.iterdir())
    model = Path(MODEL).read_bytes()
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error and "this should not happen" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before and Path(MODEL).read_bytes() == model


def test_debug_shows_the_traceback() -> None:
    for argv in (["--debug", "inspect", "none.onnx"], ["inspect", "none.onnx", "--debug"]):
        done = subprocess.run([sys.executable, "-m", "qir", *argv], capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m qir inspect {shlex.quote(MODEL)} --layers | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("qir.cli.inspect.main", interrupted)
    assert main(["inspect", MODEL]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_fault_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr("qir.cli.inspect.main", broken)
    assert main(["inspect", MODEL]) == 1
    assert capsys.readouterr().err.startswith("error: this should not happen: ZeroDivisionError: oh no (run again")


def test_numbers_for_people() -> None:
    assert show.size(999) == "999 B" and show.size(123456) == "123.5 KB" and show.size(2.5e9) == "2.50 GB"
    assert show.count(7) == "7" and show.count(1.82e9) == "1.82 G"
    assert show.decibels(float("inf")) == "exact"
    assert show.table([("a", 1), ("bb", 22)], ("x", "n"), "lr").splitlines() == ["x    n", "------", "a    1", "bb  22"]
    assert list(show.Shown([1, 2, 3], "walking")) == [1, 2, 3]
