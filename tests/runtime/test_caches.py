"""What is kept between processes: whole or not at all; what is damaged is thrown away with a warning and made anew."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

from qir.runtime.cpu.threads import kernel_cache
from qir.runtime.cpu.threads.kernel_cache import KEPT, LIST, SETTINGS, KernelCache

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SETTINGS, "CACHE_DIR", "")


def filled(root: Path, digest: int = 7) -> KernelCache:
    """A cache as a process leaves it that compiled two files."""
    cache = KernelCache(root, digest)
    with cache.used() as folder:
        assert folder is not None and str(folder) == SETTINGS.CACHE_DIR
        (folder / "kernels").mkdir()
        (folder / "kernels" / "code.nbc").write_bytes(bytes(range(256)))
        (folder / "kernels" / "index.nbi").write_bytes(b"index")
    assert SETTINGS.CACHE_DIR == "" and not cache.folder.exists()
    cache.publish()
    return cache


def test_a_later_process_finds_what_was_compiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = filled(tmp_path)
    again = KernelCache(tmp_path, 7)
    with again.used() as folder:
        assert folder == first.folder and (first.folder / "kernels" / "code.nbc").exists()
    again.publish()
    assert {p.name for p in tmp_path.iterdir()} == {first.folder.name} and not caplog.messages


@pytest.mark.parametrize("damage", ["a byte", "cut", "gone", "list gone", "list broken", "more"])
def test_damaged_kernels_are_made_anew(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = filled(tmp_path)
    code, listed = cache.folder / "kernels" / "code.nbc", cache.folder / LIST
    whole = code.read_bytes()
    {
        "a byte": lambda: code.write_bytes(whole[:50] + b"\x00" + whole[51:]),
        "cut": lambda: code.write_bytes(whole[:100]),
        "gone": code.unlink,
        "list gone": listed.unlink,
        "list broken": lambda: listed.write_text("[" * 9000),
        "more": lambda: (cache.folder / "other").write_text("x"),
    }[damage]()
    with KernelCache(tmp_path, 7).used() as folder:
        assert folder is not None and folder != cache.folder and not list(folder.iterdir())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "are damaged; they are made anew" in caplog.text
    filled(tmp_path)
    assert kernel_cache.is_whole(cache.folder)


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".kernels.{dead.pid}.abc").mkdir()
    (tmp_path / f".kernels.{os.getpid()}.abc").mkdir()
    filled(tmp_path)
    assert {p.name for p in tmp_path.glob(".kernels.*")} == {f".kernels.{os.getpid()}.abc"}


def test_a_process_that_compiles_nothing_leaves_nothing(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path, 7)
    with cache.used() as folder:
        assert folder is not None and folder.is_dir()
    cache.drop()
    assert not list(tmp_path.iterdir())


def test_only_so_many_folders_are_kept(tmp_path: Path) -> None:
    for digest in range(KEPT + 3):
        cache = filled(tmp_path, digest)
        os.utime(cache.folder, (digest, digest))
    kept = sorted(p.name[8:20] for p in tmp_path.glob("kernels-*"))
    assert kept == [f"{d:012x}" for d in range(3, KEPT + 3)]


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with KernelCache(tmp_path / "file", 7).used() as folder:
        assert folder is None and SETTINGS.CACHE_DIR == ""


def test_the_users_own_wish_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SETTINGS, "CACHE_DIR", "/elsewhere")
    with KernelCache(tmp_path, 7).used() as folder:
        assert folder is None and SETTINGS.CACHE_DIR == "/elsewhere"


SESSION = """
import logging
logging.basicConfig()
import numpy as np, qir
from qir import models
from qir.runtime import Session
graph, _ = qir.quantize(qir.load(models.bundled_path("digits_mobile")), models.digits().calibration[:8])
feeds = {"image": models.digits().calibration[:2]}
same = [Session(graph, b).run(feeds) for b in ("cpu", "reference")]
print(all(np.array_equal(same[0][k], same[1][k]) for k in same[0]))
"""


@pytest.mark.slow  # compiles the kernels twice
def test_kernels_live_in_the_users_cache_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_CACHE_DIR", None)
    before = set(ROOT.rglob("*.nb?"))

    def run() -> Any:
        return subprocess.run(
            [sys.executable, "-c", SESSION], env=environment, capture_output=True, text=True, check=True
        )  # fmt: skip

    assert run().stdout == "True\n"
    (code,) = (p for p in tmp_path.rglob("*execute*.nbc"))
    assert set(ROOT.rglob("*.nb?")) == before
    code.write_bytes(code.read_bytes()[:-1000] + bytes(1000))
    again = run()
    assert again.stdout == "True\n" and again.stderr.count("damaged") == 1
    assert not run().stderr


class Compiler:
    """Counts what it compiles."""

    def __init__(self) -> None:
        self.calls = 0

    def version(self) -> tuple[int, int]:
        return (13, 0)

    def compile(self, source: str, kernels: list[Any], architecture: str) -> Any:
        self.calls += 1
        return b"\n\x7fELF" + bytes(100), {kernels[0].expression: "lowered"}, ""


def test_damaged_cubins_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from qir.runtime.cuda.device.cupy_modules import cubin
    from qir.runtime.cuda.instances import INSTANCES

    compiler: Any = Compiler()
    first = cubin(INSTANCES[0], "90", compiler, tmp_path)
    assert cubin(INSTANCES[0], "90", compiler, tmp_path) == first and compiler.calls == 1 and not caplog.messages
    (kept,) = tmp_path.iterdir()
    for content in (b"", kept.read_bytes()[:-1], b"\xff" * 200, kept.read_bytes().replace(b"lowered", b"lowerex")):
        kept.write_bytes(content)
        assert cubin(INSTANCES[0], "90", compiler, tmp_path) == first
    assert compiler.calls == 5
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"device": 1}'])
def test_damaged_tuning_results_are_measured_anew(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from qir.runtime.cuda.tuning import TuningTable

    table = TuningTable("some device", tmp_path)
    table.update({"layer": {"choice": "a", "seconds": {"a": 1.0}}})
    assert "layer" in TuningTable("some device", tmp_path) and not caplog.messages
    table.path.write_bytes(content)
    if content == b'{"device": 1}':
        assert "layer" not in TuningTable("some device", tmp_path) and not caplog.messages
        return
    again = TuningTable("some device", tmp_path)
    assert "layer" not in again and "are damaged; layers are measured anew" in caplog.text
    again.update({"other": {"choice": "a", "seconds": {"a": 1.0}}})
    assert set(json.loads(table.path.read_text())["entries"]) == {"other"}
