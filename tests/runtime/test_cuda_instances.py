"""Every kernel instance runs in the emulation: the tiles of the convolution, and the rest somewhere."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from qir import DType
from qir.runtime.cuda.instances import CONV_TILES, INSTANCES, ConvTile, Kernel
from qir.runtime.cuda.planner.plan import Plan
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase
from qir.testing.integer_cases import BUILDERS

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)

TILES = [(key, tile) for key, tiles in CONV_TILES.items() for tile in tiles]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels that plans ask for while the test runs."""
    names: set[str] = set()
    launch = Plan.launch

    def recorded(self: Plan, which: Kernel, *arguments: Any) -> None:
        names.add(which.expression)
        launch(self, which, *arguments)

    monkeypatch.setattr(Plan, "launch", recorded)
    return names


def compare(case: IntegerCase, order: int = 0, architecture: str = "80") -> None:
    """Every value, then the outputs alone (fused), against the reference."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    values = [v for n in case.graph.nodes for v in n.outputs]
    case.graph.set_outputs([v for v in values if not v.uses()])
    expected = Session(case.graph, "reference").run(case.feeds, outputs=[v.name for v in values])
    session = Session(case.graph, "cuda", device=EmulatedDevice(order, architecture=architecture))
    for outputs in ([v.name for v in values], None):
        for name, got in session.run(case.feeds, outputs=outputs).items():
            np.testing.assert_array_equal(got, expected[name], err_msg=name)


def convolutions(case: IntegerCase, signed: bool, cell: int, packed: bool, four: bool) -> None:
    """Pixels past one tile of rows, channels past one of columns, K past the stages; a residual of another width."""
    kind = DType.INT8 if signed else DType.UINT8
    narrow = DType.INT4 if signed else DType.UINT4
    x = case.input(narrow if four else kind, 3 if cell == 4 else 21, 9, 15)
    weight = DType.INT4 if packed else DType.INT8
    y = case.conv(x, 140, (3, 3), weight, pads=[1, 0, 1, 2], pad_value=[-5 if signed else 7])
    wide = case.requantize(case.conv(x, 140, (1, 1), weight), DType.INT16, channels=140)
    case.add(case.requantize(y, kind, channels=140), wide, DType.INT8)
    case.conv(x, 20, (5, 5), weight, pads=[2, 2, 2, 2])
    z = case.conv(x, 33, (3, 2), weight, strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1])
    case.requantize(z, channels=33)


def mapped_convolutions(case: IntegerCase, signed: bool, span: int) -> None:
    """What tensor maps take: zeros for padding, channels near a multiple of the span; several images, strides."""
    kind = DType.INT8 if signed else DType.UINT8
    x = case.input(kind, span - 8, 7, 9)
    y = case.conv(x, 140, (3, 3), pads=[1, 1, 1, 1], pad_value=[0])
    short = case.requantize(case.conv(case.input(kind, 21, 7, 9), 140, (1, 1), pad_value=[9]), DType.INT16)
    case.add(case.requantize(y, kind, channels=140), short, DType.INT8)
    case.requantize(case.conv(x, 33, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1], pad_value=[0]), channels=33)
    case.conv(x, 20, (2, 2), dilations=[2, 2], pad_value=[5])
    rows = case.input(kind, 11, 300)
    w = case.graph.add_constant("w", case.ints(DType.INT8, (300, 70)))
    case.requantize(case.node("qir.MatMul", rows, w, None, weight_zero_point=0), kind)


@pytest.mark.parametrize(("key", "tile"), TILES, ids=[t.expression[5:] for _, t in TILES])
def test_tile(
    key: tuple[bool, int, bool], tile: ConvTile, monkeypatch: pytest.MonkeyPatch, launched: set[str]
) -> None:  # fmt: skip
    monkeypatch.setitem(CONV_TILES, key, (tile,))
    for order in (1, 6, 7) if tile.warpgroup else (1, 6):  # 6: what is asynchronous at once; 1, 7: late
        case = IntegerCase(seed=order, batch=3 if tile.tensor_map else 1)
        if tile.tensor_map:
            mapped_convolutions(case, key[0], tile.cell)
        else:
            convolutions(case, *key, tile.four)
        compare(case, order, tile.architectures[-1])
    assert tile.expression in launched


def test_every_instance_runs_somewhere(launched: set[str]) -> None:
    """Tiles: above. Digests: in test_cuda_tuning. Everything else: in the graphs of test_cuda_emulation."""
    for build in BUILDERS:
        case = IntegerCase(seed=3, batch=2)
        build(case)
        compare(case)
    expected = {k.expression for k in INSTANCES if not isinstance(k, ConvTile)}
    assert sorted(expected - launched - {"qir::digest_elements"}) == []
