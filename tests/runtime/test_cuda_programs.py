"""Programs of epilogues: every flag, at scales where constants, clamps and sums are at their ends."""

from __future__ import annotations

import numpy as np
import pytest

from qir import DType
from qir.runtime import Session
from qir.runtime.cuda.program import Program
from qir.testing.integer import IntegerCase

SCALES = {
    "below 2^-40": (2.0**-45, 2.0**-41),
    "usual": (1e-4, 2e-3),
    "near one": (0.3, 0.99),
    "above one": (1.0, 60.0),
    "far above": (2.0**12, 2.0**16),
    "all of them": (2.0**-30, 300.0),
}


def layer(seed: int, scale: tuple[float, float], middle: DType, other: DType, out: DType) -> IntegerCase:
    """A plain layer; one with a residual of each kind and a second result; one with a table."""
    case = IntegerCase(seed, 2)
    x = case.input(DType.UINT8, 24, 3, 5)
    plain = case.requantize(case.conv(x, 32, (1, 1)), out, channels=32, ratios=scale)
    y = case.requantize(case.conv(x, 48, (1, 1)), middle, channels=48, ratios=scale)
    total = case.add(y, case.input(other, 48, 3, 5), DType.INT16, shift=29 if seed % 2 else 33)
    second = case.requantize(total, out, ratios=(1e-3, 0.9))
    index = case.requantize(case.conv(x, 16, (3, 3), pads=[1, 1, 1, 1]), DType.INT8, channels=16, ratios=scale)
    table = case.table(index)
    case.graph.set_outputs([plain, total, second, table])
    return case


def programs(case: IntegerCase, order: int, architecture: str) -> set[Program]:
    """Compares a graph with the reference; the programs of its launches."""
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    want = Session(case.graph, "reference").run(case.feeds)
    session = Session(case.graph, "cuda", device=EmulatedDevice(order, architecture=architecture))
    for name, got in session.run(case.feeds).items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    made = session.executor.runner(2, list(want), session.executor.device.stream())
    records = [a for launch in made.launches for a in launch.arguments if "program" in (a.dtype.names or ())]
    return {Program(int(r["program"])) for r in records}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_scale_and_width(scale: str, seed: int) -> None:
    for architecture in ("80", "90a"):
        for middle, other, out in (
            (DType.INT16, DType.INT16, DType.UINT8),
            (DType.INT8, DType.INT8, DType.INT8),
            (DType.UINT8, DType.UINT8, DType.INT4),
            (DType.INT16, DType.INT32, DType.INT16),
        ):
            found = programs(layer(seed, SCALES[scale], middle, other, out), seed, architecture)
            assert any(p & Program.WORDS for p in found)


def test_the_flags_are_met() -> None:
    """What the graphs above ask for: no flag but those of uint16 goes untested."""
    met = Program(0)
    for scale in SCALES.values():
        for seed in (0, 1):
            for kind in (DType.INT8, DType.UINT8, DType.INT16):
                out = DType.INT4 if seed else DType.UINT8
                for program in programs(layer(seed, scale, kind, kind, out), 0, "80"):
                    met |= program
    missing = ~met & ~(Program.RESIDUAL_U16 | Program.SUM_WIDE)
    assert not missing
