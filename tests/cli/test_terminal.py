"""What reaches a terminal: no control character of a file, ASCII where it knows no more, one line after Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import qir
from qir.__main__ import main
from qir.errors import DataError, escaped
from qir.models import bundled_path, digits

MODEL = str(bundled_path("digits_residual"))
EVIL = "a\x1b]0;owned\x07\x1b[2J\u202egnp\nok"


def evil_model(path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, 1, ["N", 2]) for n in (EVIL, "y" + EVIL))
    node = helper.make_node("Relu", [EVIL], ["y" + EVIL], name=EVIL)
    onnx.save(helper.make_model(helper.make_graph([node], EVIL, [x], [y])), path)


def harmless(text: str) -> bool:
    return all(c == "\n" or (c.isprintable() and c != "\u202e") for c in text)


def test_control_characters_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil_model(tmp_path / "e.onnx")
    np.save(tmp_path / "x.npy", np.ones((2, 2), np.float32))
    assert main(["inspect", str(tmp_path / "e.onnx"), "--layers"]) == 0
    out = capsys.readouterr().out
    assert harmless(out) and r"\x1b]0;owned\x07" in out and "\nok" not in out
    assert main(["run", str(tmp_path / "e.onnx"), "--data", str(tmp_path / "x.npy")]) == 0
    assert harmless(capsys.readouterr().out)
    np.save(tmp_path / "bad.npy", np.ones((2, 3), np.float32))
    assert main(["run", str(tmp_path / "e.onnx"), "--data", str(tmp_path / "bad.npy")]) == 1
    err = capsys.readouterr().err
    assert harmless(err) and err.count("\n") == 1
    assert harmless(str(DataError("no", where=EVIL, hint=EVIL)))
    assert escaped("plain äöü 漢\n", lines=True) == "plain äöü 漢\n"


def test_an_ascii_terminal_gets_every_message(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(n, 1, ["N", 2]) for n in ("größe", "y"))
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["größe"], ["y"])], "g", [x], [y]))
    onnx.save(model, tmp_path / "ä.onnx")
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "qir", "inspect", str(tmp_path / "ä.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and r"gr\xf6\xdfe" in done.stdout, done.stderr


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# delays over imports, the work and its processes; before the interpreter itself is up nobody can listen
@pytest.mark.parametrize("delay", [0.5, 1.0, 2.0])
def test_ctrl_c_is_one_line_and_130(delay: float, tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", np.concatenate([digits().calibration] * 40))
    command = [sys.executable, "-m", "qir", "quantize", MODEL, "-o", "out.onnx", "--data", "calib.npy"]
    process = subprocess.Popen(
        [*command, "--recipe", "w4a8", "--jobs", "2"], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    deadline = time.monotonic() + 5
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(process.pid), "a worker is left"
    assert not (tmp_path / "out.onnx").exists()


def test_dir_shows_what_there_is() -> None:
    assert {"Graph", "load", "save", "quantize", "passes", "models", "runtime"} <= set(dir(qir))
    for name in qir.__all__:
        assert getattr(qir, name) is not None
