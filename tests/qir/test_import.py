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
    """At most 0.5 s; processor time, the best of three, so that a busy machine does not count."""
    code = "import time; import qir; print(time.process_time())"
    seconds = min(float(python(code)) for _ in range(3))
    assert seconds < 0.5


def test_one_copy_of_each_class() -> None:
    """The folders at the top are the packages inside qir, and refuse any other name."""
    for name in ("passes", "runtime", "models"):
        code = f"import sys; sys.path.insert(0, '.')\ntry:\n import {name}\nexcept ImportError as e:\n print(e)"
        assert f"import qir.{name}" in python(code)
