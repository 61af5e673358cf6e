"""Depthwise convolutions by rows: packing of the weights, how far a thread walks, epilogues of every kind."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from qir import DType
from qir.runtime.cuda.instances import WALKS
from qir.runtime.cuda.operators import depthwise
from qir.runtime.cuda.operators.packing import pack_depthwise
from qir.runtime.session import Session
from qir.testing.integer import IntegerCase as Case
from qir.testing.integer_cases import depthwise_walks

emulated = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def same(case: Case, order: int) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    want = Session(case.graph, "reference").run(case.feeds)
    got = Session(case.graph, "cuda", device=EmulatedDevice(order)).run(case.feeds)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


@emulated
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_segments_of_any_height(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A thread that walks further than its window is high finds every row of it in its place."""
    monkeypatch.setattr(depthwise, "depthwise_rows", lambda height, others: rows)
    case = Case(rows, 2)
    depthwise_walks(case)
    same(case, 1)


@emulated
@pytest.mark.parametrize("channels", [32, 36])
def test_epilogues(channels: int) -> None:
    """Residuals of 8 and 16 bits, a second result, a table; in words, and where channels end within one."""
    case = Case(channels, 2)
    x = case.input(DType.UINT8, channels, 6, 9)
    for kind in (DType.INT16, DType.INT8, DType.UINT8):
        y = case.conv(x, channels, (3, 3), group=channels, pads=[1, 1, 1, 1])
        total = case.add(case.requantize(y, kind, channels=channels), case.input(kind, channels, 6, 9), DType.INT16)
        case.requantize(total, DType.UINT8, ratios=(1e-3, 0.9))
    y = case.conv(x, channels, (5, 5), group=channels, strides=[2, 2], pads=[2, 2, 2, 2])
    case.table(case.requantize(y, DType.INT8, channels=channels))
    same(case, 0)


def test_words_of_weights() -> None:
    """dp4a of a word of columns with a word of weights is the sum over the window's part that begins at the shift."""
    rng = np.random.default_rng(0)
    for side, stride in WALKS:
        w = rng.integers(-128, 128, (16, side, side)).astype(np.int8)
        words = pack_depthwise(w, side, stride)
        x = rng.integers(0, 256, (side, 12, 16)).astype(np.int64)  # rows, columns, channels
        taps = words[..., None].view(np.int8).astype(np.int64)  # row, shift, part, channel, byte
        for shift in range(words.shape[1]):
            got = sum(
                np.einsum("rbc,rcb->c", x[:, 4 * part : 4 * part + 4], taps[:, shift, part])
                for part in range(words.shape[2])
            )
            want = np.einsum("rkc,crk->c", x[:, shift : shift + side], w.astype(np.int64))
            np.testing.assert_array_equal(got, want)


def test_a_gpu_is_filled() -> None:
    assert depthwise.depthwise_rows(112, 10**6) == 16
    assert depthwise.depthwise_rows(7, 480) == 2
    assert depthwise.depthwise_rows(1, 1) == 1
    assert depthwise.depthwise_rows(20, 10**6) == 10
