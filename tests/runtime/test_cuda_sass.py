"""Budgets of machine instructions: what an output element costs on sm_90a, by the disassembler."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from qir.errors import BackendError
from qir.runtime.cuda.instances import specialised, wgmma_tile
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
