"""Profiles: work, bytes and shares of the ceilings by layer; latency tables that the mixed-precision search reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qir
from qir import DType
from qir.passes.mixed_precision.cost_model import format_bits
from qir.passes.mixed_precision.search import load_latency
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.cuda.device.interface import Launch
from qir.runtime.cuda.session import Cuda
from qir.runtime.measure.latency import latency_table
from qir.runtime.session import Session
from qir.testing import Dice, random_network
from qir.testing.integer import IntegerCase as Case

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def clock(launch: Launch) -> float:
    """A microsecond a launch; packed weights take half of it."""
    return 1e-6 * (0.5 if getattr(launch.kernel, "packed", False) else 1.0)


def test_work_bytes_and_roofline() -> None:
    case = Case(0, 2)
    x = case.input(DType.UINT8, 16, 5, 5)
    y = case.requantize(case.conv(x, 8, (3, 3)), channels=8)
    flat = case.node("Flatten", y, axis=1)
    w = case.graph.add_constant("w", case.ints(DType.INT8, (72, 20)))
    case.node("qir.MatMul", flat, w, None, weight_zero_point=0)
    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    session = Session(case.graph, "cuda", device=EmulatedDevice(clock=clock))
    profile = session.profile(case.feeds, repeat=1)
    rows = {r.name: r for r in profile.rows if r.macs}
    conv, product = rows.values()
    assert conv.macs == 2 * 8 * 9 * 16 * 9 and product.macs == 2 * 72 * 20
    assert conv.bytes == 2 * 16 * 25 + (8 * 16 * 9 + 8 * 4) + 2 * 8 * 4 + 2 * 8 * 9  # x, weights and bias, pairs, y
    assert conv.seconds == pytest.approx(1e-6 * len(conv.kernels))
    assert 2e-3 * conv.gmacs == pytest.approx(2 * conv.macs / conv.seconds / 1e12)
    # the emulation's ceilings are 1 TOP/s and 1 GB/s
    assert conv.roofline == pytest.approx(max(2 * conv.macs / 1e12, conv.bytes / 1e9) / conv.seconds)
    assert "conv_igemm" in str(profile) and json.loads(profile.to_json())["rows"][0]["nodes"]
    assert profile.seconds == pytest.approx(sum(r.seconds for r in profile.rows))


def test_split_sums_are_one_layer() -> None:
    case = Case(0, 2)
    w = case.graph.add_constant("w", case.ints(DType.INT8, (2100, 90)))
    y = case.node("qir.MatMul", case.input(DType.UINT8, 2100), w, None, weight_zero_point=0)
    case.graph.set_outputs([y])
    profile = Cuda(case.graph, EmulatedDevice(clock=clock)).profile(case.feeds)
    (row,) = profile.rows
    assert [k.partition("<")[0] for k in row.kernels][-2:] == ["conv_igemm", "finish_splits"]
    assert row.macs == 2 * 2100 * 90


def test_latency_table_is_what_the_search_reads(tmp_path: Path) -> None:
    network = random_network(Dice(3))
    graph, _ = qir.quantize(network.graph, [network.feeds(2)], recipe="w8a8")
    table = latency_table(graph, "cuda", batch=2, layers=network.graph, device=EmulatedDevice(clock=clock))
    names = {n.name for n in network.graph.nodes if n.op in ("Conv", "Gemm", "MatMul")}
    assert table and set(table) <= names
    for row in table.values():
        assert set(row) == {(4, 4), (4, 8), (8, 8)} and row[4, 4] == row[4, 8]
    assert any(row[4, 8] < row[8, 8] for row in table.values())
    file = tmp_path / "latency.json"
    plain: dict[str, Any] = {k: {format_bits(b): s for b, s in row.items()} for k, row in table.items()}
    file.write_text(json.dumps(plain))
    assert load_latency(file) == table
