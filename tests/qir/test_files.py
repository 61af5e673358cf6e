"""Writing: aside and renamed, never onto what is no regular file; models and their data are never mixed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import qir
from qir import models
from qir.errors import ModelError, OutputError
from qir.files import aside, write_text
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.quantization.ranges import Ranges

ROOT = Path(__file__).parents[2]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    writing = aside(target)
    writing.__enter__().write_text("half")
    assert len(os.listdir(tmp_path)) == 2
    assert not writing.__exit__(RuntimeError, RuntimeError(), None)
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    """`-o /dev/null` once replaced the device by a file."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "pipe", tmp_path / "to_pipe")
    for name in ("pipe", "to_pipe"):
        with pytest.raises(OutputError, match="no regular file"):
            write_text(tmp_path / name, "x")
    with pytest.raises(ModelError, match="no regular file"):
        qir.save(qir.load(models.bundled_path("digits_mobile")), "/dev/null")
    assert not Path("/dev/null").is_file()
    with pytest.raises(OutputError, match="is a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(OutputError, match="its folder does not exist"):
        write_text(tmp_path / "no" / "file", "x")


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    os.symlink("file", tmp_path / "link")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"file '.*a\.txt': cannot be written: No space left"),
        aside(tmp_path / "a.txt"),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)
    assert os.listdir(tmp_path) == []


def test_the_data_of_a_replaced_model_go_and_foreign_files_stay(tmp_path: Path) -> None:
    path, graph = tmp_path / "m.onnx", qir.load(models.bundled_path("digits_mobile"))
    (tmp_path / "m.onnx.mine.data").write_text("mine")
    qir.save(graph, path, external_data=True)
    first = {p.name for p in tmp_path.iterdir()}
    other = qir.load(models.bundled_path("digits_residual"))
    qir.save(other, path, external_data=True)
    second = {p.name for p in tmp_path.iterdir()}
    assert len(first) == len(second) == 3 and first & second == {"m.onnx", "m.onnx.mine.data"}
    assert str(qir.load(path)) == str(other)
    qir.save(graph, path)
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.onnx.mine.data"}


def test_data_of_killed_saves_go_with_the_next(tmp_path: Path) -> None:
    path, graph = tmp_path / "m.onnx", qir.load(models.bundled_path("digits_mobile"))
    orphan, old = tmp_path / "m.onnx.0123456789abcdef.data", tmp_path / "m.onnx.data"
    for file in (orphan, old):
        file.write_text("left")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    writing = tmp_path / f".m.onnx.{other.pid}.abcdefgh.part"
    writing.write_text("")
    qir.save(graph, path, external_data=True)
    assert orphan.exists()  # the data, it may be, of a model that comes next
    other.communicate(b"\n")
    qir.save(graph, path, external_data=True)
    assert not orphan.exists() and not writing.exists() and old.exists()
    assert str(qir.load(path)) == str(graph) and len(list(tmp_path.iterdir())) == 3


WRITER = """
import sys
import json
import qir
from qir import models
from qir.files import write_text
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.quantization.ranges import Ranges, TensorRange
from qir.runtime.cuda.tuning import TuningTable
table = TuningTable("device", __import__("pathlib").Path(sys.argv[1]))
one, two = (qir.load(models.bundled_path(n)) for n in ("digits_mobile", "digits_residual"))
print("ready", flush=True)
while True:
    for graph, text in ((one, "a" * 500_000), (two, "b" * 500_000)):
        qir.save(graph, sys.argv[1] + "/outside.onnx", external_data=True)
        qir.save(graph, sys.argv[1] + "/inside.onnx")
        write_text(sys.argv[1] + "/text", text)
        number = float(len(text[0].encode()) + ord(text[0]))
        Ranges({f"t{i}": TensorRange((-number, number)) for i in range(300)}, "minmax", 1).save(sys.argv[1] + "/ranges")
        layers = {f"l{i}": {(4, 8): number} for i in range(300)}
        Sensitivity("fisher", layers).save(sys.argv[1] + "/sensitivity")
        table.update({f"l{i}": {"choice": "a", "seconds": {"a": number}} for i in range(300)})
"""


@pytest.mark.parametrize("kills", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_writers_leave_old_or_new(tmp_path: Path, kills: int) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    whole = {str(qir.load(models.bundled_path(n))) for n in ("digits_mobile", "digits_residual")}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for _ in range(kills):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            time.sleep(0.1 + rng.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
        for name in ("inside.onnx", "outside.onnx"):
            if (tmp_path / name).exists():
                assert str(qir.load(tmp_path / name)) in whole
        if (tmp_path / "ranges").exists():
            assert len({t.seen for t in Ranges.load(tmp_path / "ranges").tensors.values()}) == 1
        if (tmp_path / "sensitivity").exists():
            assert len({row[4, 8] for row in Sensitivity.load(tmp_path / "sensitivity").layers.values()}) == 1
        for table in tmp_path.glob("tuning-*.json"):
            assert len({e["seconds"]["a"] for e in json.loads(table.read_text())["entries"].values()}) == 1
        if (tmp_path / "text").exists():
            text = (tmp_path / "text").read_text()
            assert len(text) == 500_000 and len(set(text)) == 1
    for graph in (qir.load(models.bundled_path("digits_mobile")),):
        qir.save(graph, tmp_path / "outside.onnx", external_data=True)
        qir.save(graph, tmp_path / "inside.onnx")
    write_text(tmp_path / "text", "end")
    assert not list(tmp_path.glob(".*onnx*.part")) and len(list(tmp_path.glob("outside.onnx.*.data"))) == 1


def test_nothing_in_the_library_writes_in_place() -> None:
    """Every file a user asks for goes through qir/files.py; caches rename by themselves."""
    writes = re.compile(r"open\([^)\n]*[\"'](w|a|x)b?[\"']|\.write_(text|bytes)\(|savez|savefig\(|np\.save\(")
    known = {
        "qir/files.py", "qir/io/save.py", "qir/cli/run.py", "passes/mixed_precision/plots.py",
        "passes/calibration/stepper.py", "passes/hooks.py", "runtime/onnxruntime_session.py",  # folders of their own
        "runtime/cuda/device/emulated.py", "runtime/cuda/tuning.py", "runtime/cuda/device/compile_report.py",
        "runtime/cuda/device/cupy_modules.py", "runtime/cpu/threads/kernel_cache.py",  # caches: renamed
        "models/train_digits.py",
    }  # fmt: skip
    found = {
        str(path.relative_to(ROOT))
        for room in ("qir", "passes", "runtime", "models")
        for path in (ROOT / room).rglob("*.py")
        if not any(part.is_symlink() for part in path.parents) and writes.search(path.read_text())
    }
    assert found <= known, f"writes in place: {sorted(found - known)}"
    assert np.all([(ROOT / name).exists() for name in known])
