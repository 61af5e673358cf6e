"""The CPU kernels of every kind that this processor has, not only of the one that it takes by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

from qir.runtime.cpu.kernels.intrinsics import KIND, KINDS, host_kinds

RARE = ("vnni256", "generic")
"""Each kind takes half a minute to compile: these only in the long suite."""

PROGRAM = """
import sys
import numpy as np
import qir
from qir.models import bundled_path, digits
from qir.runtime import Session
from qir.runtime.cpu.kernels.intrinsics import KIND

assert KIND == sys.argv[1]
for net, recipe in (("digits_residual", "w8a8"), ("digits_mobile", "w8a8"), ("digits_inception", "w4a8")):
    graph = qir.quantize(qir.load(bundled_path(net)), digits().calibration[:64], recipe=recipe)[0]
    names = [v.name for v in graph.values if v.data is None and v.producer is not None]
    feeds = {graph.inputs[0].name: digits().test[:5]}
    want, got = (Session(graph, backend).run(feeds, outputs=names) for backend in ("reference", "cpu"))
    for name in names:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
print("equal")
"""


def run(kind: str, tmp_path: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "QIR_CPU_KIND": kind, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, env=environment, timeout=600, check=False
    )


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow if k in RARE else ()) for k in KINDS if k != KIND]
)
def test_other_kinds_give_the_reference_s_bits(kind: str, tmp_path: object) -> None:
    """Once only `avx2` had ever run, and no session could be made on a processor with VNNI."""
    if kind not in host_kinds():
        pytest.skip(f"this processor has no {kind}")
    done = run(kind, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


def test_a_kind_that_does_not_exist_is_named(tmp_path: object) -> None:
    done = run("avx1024", tmp_path)
    assert done.returncode != 0 and "QIR_CPU_KIND='avx1024'; this CPU has" in done.stderr
