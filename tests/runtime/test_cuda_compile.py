"""Every kernel instance compiles for every architecture, without spills that matter; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from qir.errors import BackendError
from qir.runtime.cuda.device import nvrtc
from qir.runtime.cuda.device.compile_report import compile_all, complaints, table
from qir.runtime.cuda.device.nvrtc import Nvrtc, Usage
from qir.runtime.cuda.instances import ARCHITECTURES, Kernel, compiled

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "kernels.md"


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    try:
        return Nvrtc()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def found(compiler: Nvrtc) -> dict[tuple[str, str], Usage]:
    """All of them, in parallel processes: minutes when nothing is cached."""
    return compile_all()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instances_compile(found: dict[tuple[str, str], Usage], architecture: str) -> None:
    bad = {
        k.expression: why
        for k in compiled(architecture)
        if (why := complaints(architecture, k, found[architecture, k.expression]))
    }
    assert not bad


@pytest.mark.slow
def test_committed_table_is_what_the_compiler_says(found: dict[tuple[str, str], Usage], compiler: Nvrtc) -> None:
    text = COMMITTED.read_text()
    if "NVRTC {}.{} ".format(*compiler.version()) not in text:
        pytest.skip("the table was made with another version of NVRTC")
    told, known = (t.splitlines() for t in (table(found, compiler.version()), text))
    assert len(told) == len(known)
    for said, row in zip(told, known, strict=True):
        cells = zip(said.split("|"), row.split("|"), strict=True)
        assert all(b in (a, " ? ") for a, b in cells), f"{row}: run python benchmarks/kernels.py"


def test_committed_table_names_every_instance() -> None:
    rows = [line for line in COMMITTED.read_text().splitlines() if line.startswith("| `")]
    made = {k.expression.replace("qir::", "") for a in ARCHITECTURES for k in compiled(a)}
    assert {r.split("`")[1] for r in rows} == made, "run python benchmarks/kernels.py"


def test_the_compiler_is_no_later_than_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code of a later CUDA does not load: an older compiler beside it is taken, or the message names one."""
    paths = ["/a/libnvrtc.so.13", "/b/libnvrtc.so.12"]
    monkeypatch.setattr(nvrtc, "_libraries", lambda: iter(paths))
    assert [nvrtc.find_library(n) for n in (None, 14, 13, 12)] == [paths[0]] * 3 + [paths[1]]
    paths.pop()
    with pytest.raises(BackendError, match=r"libnvrtc\.so\.13.*CUDA 12 .*nvidia-cuda-nvrtc-cu12<13"):
        nvrtc.find_library(12)
    paths.clear()
    for newest in (None, 13):
        with pytest.raises(BackendError, match="not installed"):
            nvrtc.find_library(newest)


def test_an_error_names_the_file(compiler: Nvrtc) -> None:
    with pytest.raises(BackendError, match="elementwise"):
        compiler.compile("elementwise.cu", [Kernel("elementwise.cu", "qir::no_such_kernel")], "80")


def test_what_is_too_large_is_told() -> None:
    kernel = Kernel("elementwise.cu", "qir::clip_elements", threads=1024)
    assert not complaints("75", kernel, Usage(64, 1024, 0, 0))
    assert len(complaints("75", kernel, Usage(65, 65 << 10, 68, 0, True))) == 4
