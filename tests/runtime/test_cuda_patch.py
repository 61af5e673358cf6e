"""First convolutions from patches in shared memory: geometries at their ends, and what goes another way."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from qir import DType
from qir.runtime.cuda.instances import PATCH_CELLS, patch_tile
from qir.runtime.cuda.operators.linear import patch_cells
from qir.runtime.cuda.operators.packing import pack_weights
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case


@pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)
@pytest.mark.parametrize("order", [0, 1])
def test_geometries(order: int) -> None:
    """Widths of whole words and not, every number of columns, a patch that has no room, a table."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case = Case(order, 3)
    kind = DType.INT8 if order else DType.UINT8
    wide, odd = case.input(kind, 3, 37, 40), case.input(kind, 4, 11, 33)
    case.requantize(case.conv(wide, 64, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3]), kind, channels=64)
    case.requantize(
        case.conv(wide, 24, (3, 3), strides=[1, 2], pads=[0, 1, 2, 0], pad_value=[-4 if order else 4]),
        kind,
        channels=24,
    )
    case.table(case.requantize(case.conv(odd, 16, (3, 3), pads=[1, 1, 1, 1]), DType.INT8, channels=16))
    case.requantize(case.conv(odd, 70, (2, 5), dilations=[3, 2], pads=[4, 0, 1, 3]), kind, channels=70)
    case.requantize(case.conv(wide, 8, (8, 8), strides=[3, 3]), kind, channels=8)
    case.requantize(case.conv(wide, 8, (11, 11), strides=[4, 4]), kind, channels=8)  # 121 taps
    case.requantize(case.conv(wide, 8, (7, 7), strides=[6, 6], pads=[3, 3, 3, 3]), kind, channels=8)  # no room
    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    want = Session(case.graph, "reference").run(case.feeds)
    session = Session(case.graph, "cuda", device=EmulatedDevice(order))
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    choices = session.executor.runner(3, list(want), session.executor.device.stream()).plan.choices.values()
    assert sum(choice.tile.patch for _, _, choice in choices) == 5


def test_room() -> None:
    side = {"kernel_h": 7, "kernel_w": 7, "stride_h": 2, "stride_w": 2, "dilation_h": 1, "dilation_w": 1}
    assert patch_cells({**side, "pad_left": 3}) == 21 * 40 <= PATCH_CELLS


@pytest.mark.parametrize("columns", [16, 32, 64])
def test_fragments(columns: int) -> None:
    """Column 2q + i of n-tile j of a group is channel q * W + 2 j + i; lane t has k's 4 t and 16 + 4 t on."""
    rng = np.random.default_rng(columns)
    w = rng.integers(-128, 128, (70, 10, 4)).astype(np.int8)
    packed = pack_weights(w, patch_tile(False, columns))
    blocks = -(-70 // columns)
    assert packed.shape == (blocks, 2, columns // 16, 32, 16)
    whole = np.zeros((blocks * columns, 16, 4), np.int8)
    whole[:70, :10] = w
    words = 4 if columns == 16 else 8
    for block, step, pair, lane, half in np.ndindex(blocks, 2, columns // 16, 32, 4):
        tile, t, column = pair * 2 + half // 2, lane % 4, lane // 4
        group, j = divmod(tile, words // 2)
        channel = block * columns + group * 4 * words + column // 2 * words + 2 * j + column % 2
        expected = whole[channel, step * 8 + half % 2 * 4 + t]
        np.testing.assert_array_equal(packed[block, step, pair, lane, half * 4 : half * 4 + 4], expected)
