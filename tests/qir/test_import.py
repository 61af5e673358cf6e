"""`import qir` is light: fast, and without the heavy optional packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("cupy", "numba", "matplotlib", "onnxruntime", "onnx", "sklearn", "scipy", "torch", "pulp", "PIL", "rich")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["qir", "qir.passes", "qir.runtime", "qir.models"])
def test_heavy_packages_stay_out(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code).split() == []


def test_import_time() -> None:
    """The best of three, against the 0.5 s that the README promises."""
    code = "import time; t = time.perf_counter(); import qir; print(time.perf_counter() - t)"
    seconds = min(float(python(code)) for _ in range(3))
    assert seconds < 0.5


def test_one_copy_of_each_class() -> None:
    """The folders at the top are the packages inside qir, and refuse any other name."""
    for name in ("passes", "runtime", "models"):
        code = f"import sys; sys.path.insert(0, '.')\ntry:\n import {name}\nexcept ImportError as e:\n print(e)"
        assert f"import qir.{name}" in python(code)
