"""The kit's real networks: integer-only, and the same bits from the reference and onnxruntime on every tensor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def measure(kit: Path) -> Any:
    """`run` of benchmarks/exactness.py, which does all networks and recipes with 16 samples."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "exactness.py"
    spec = importlib.util.spec_from_file_location("exactness_benchmark", path)
    assert spec and spec.loader and kit
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.run


RECIPES = ("w8a8", "w8a8_per_tensor", "w4a8", "w4a4")
CASES = [
    *((net, recipe) for net in ("mlperf_resnet8", "mlperf_dscnn_kws_tfl") for recipe in RECIPES),
    *((net, "w8a8") for net in ("mlperf_ad", "mlperf_vww", "ppocr_cls")),
]


@pytest.mark.kit
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the kit leaves a file open
@pytest.mark.parametrize(("net", "recipe"), CASES)
def test_exactness(measure: Any, net: str, recipe: str) -> None:
    row = measure(net, recipe, samples=4, step=4)
    assert row["offences"] == []
    assert row["differing"] == 0 and row["values"] > 0 and row["tensors"] > 10
