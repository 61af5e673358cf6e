"""Budgets of machine instructions: what an output element costs on sm_90a, by the disassembler."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from qir.errors import BackendError
from qir.runtime.cuda.instances import kernel, patch_tile, specialised, wgmma_tile
from qir.runtime.cuda.program import PLAIN, STREAM, Program

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
sass: Any = import_module("sass")


@pytest.mark.slow
@pytest.mark.parametrize(("program", "budget"), [(PLAIN, 8), (STREAM, 22)], ids=["plain", "stream"])
@pytest.mark.parametrize("span", [0, 64, 128])
def test_instructions_of_a_line(program: Program, budget: int, span: int) -> None:
    try:
        sass.disassembler()
    except BackendError as error:
        pytest.skip(str(error))
    tile = specialised(wgmma_tile(False, 128, 3, span), int(program))
    line, _ = sass.per_output(tile)
    assert line <= budget
    assert not sass.instructions(tile)[2]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "stride", "budget"), [(3, 1, 11), (3, 2, 17), (5, 1, 24), (5, 2, 30)])
def test_instructions_of_depthwise_convolutions(side: int, stride: int, budget: int) -> None:
    """Of the loop over rows, an output."""
    try:
        sass.disassembler()
    except BackendError as error:
        pytest.skip(str(error))
    which = specialised(kernel(f"conv_depthwise_rows<false, {side}, {stride}>"), int(PLAIN))
    assert sass.depthwise_per_output(which, side, 4, 10**9) <= budget
    assert not sass.instructions(which)[2]


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "steps", "rows", "budget"), [(64, 7, 21, 19), (32, 2, 17, 19)])
def test_instructions_of_first_convolutions(columns: int, steps: int, rows: int, budget: int) -> None:
    """7x7 as in ResNet, 3x3 as in MobileNet."""
    try:
        sass.disassembler()
    except BackendError as error:
        pytest.skip(str(error))
    which = specialised(patch_tile(False, columns), int(PLAIN))
    assert sass.patch_per_output(which, columns, steps, rows) <= budget


@pytest.mark.slow
@pytest.mark.parametrize(("net", "most"), [("resnet50", 4.8e-3), ("mobilenet_v2", 2.2e-3)])
def test_predicted_times(net: str, most: float) -> None:
    """Of batches of 256 on an H200; a model, not a measurement."""
    try:
        sass.disassembler()
    except BackendError as error:
        pytest.skip(str(error))
    assert sum(seconds for _, seconds in sass.rows(net, 256)) < most
