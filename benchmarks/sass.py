#!/usr/bin/env python3
"""A static model of the convolutions on sm_90a: `python benchmarks/sass.py [NETWORK] [BATCH]`; no GPU is needed.

Every layer's kernel is compiled for its epilogue by NVRTC and disassembled (nvidia-cuda-nvdisasm of PyPI); counted are
the instructions of the epilogue per output element: those of a line (what lies between one line's last store and the
next one's), and what a warp does once (staging, constants), shared by its outputs.  Beside them the three limits of a
layer: bytes at 4.3 TB/s, products at 1,600 TOP/s, instructions at 132 x 2.3 a cycle of 1.98 GHz, which fitted layers
bound by instructions within 10 % when last measured on an H200.  A layer is given the largest of the three: products of
one block and the epilogue of another are taken to overlap.  Depthwise convolutions, pooling and whatever else is not on
tensor cores is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

import qir
from qir import models
from qir.errors import BackendError
from qir.runtime.cuda.compiler import compile_plan
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.cuda.device.nvrtc import Nvrtc, usage
from qir.runtime.cuda.instances import ConvTile
from qir.runtime.cuda.planner.choices import Choice
from qir.runtime.cuda.planner.constants import Constants
from qir.runtime.cuda.program import Program

DRAM, TENSOR, ISSUE = 4.3e12, 1.6e15, 132 * 2.3 * 1.98e9
"""Bytes, operations and warp instructions a second."""

INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)")


def disassembler() -> str:
    """Path of nvdisasm.  Raises BackendError where the package is absent."""
    try:
        for file in metadata.files("nvidia-cuda-nvdisasm") or []:
            if Path(str(file)).name == "nvdisasm":
                return str(file.locate())
    except metadata.PackageNotFoundError:
        pass
    raise BackendError("nvdisasm is not installed", hint="pip install nvidia-cuda-nvdisasm")


@cache
def instructions(tile: ConvTile) -> tuple[tuple[str, ...], int, int]:
    """(opcodes of a compiled tile in order, registers, bytes of spills)."""
    binary, lowered, log = Nvrtc().compile(tile.source, [tile], "90a")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = usage(log, lowered[tile.expression])
    opcodes = tuple(m[1] for line in text.splitlines() if (m := INSTRUCTION.match(line)))
    return opcodes, found.registers, found.spill_stores


def per_output(tile: ConvTile) -> tuple[float, float]:
    """Instructions of the epilogue an output element of a specialised warpgroup tile: (of the line alone, in all)."""
    program = Program(tile.program)
    width = 16 if program & Program.NARROW else 8
    step = 32 // (tile.columns // width)
    lines = min(4, 16 // step)  # GROUP of conv_wgmma.cu
    opcodes = instructions(tile)[0]
    stores = [i for i, name in enumerate(opcodes) if name.startswith("STG")]
    each = len(stores) // lines
    line = (stores[-1] - stores[each - 1]) / (lines - 1)
    last = max(i for i, name in enumerate(opcodes) if name.endswith("GMMA") or "GMMA" in name)
    once = max(0.0, stores[each - 1] - last - line)
    return line / width, line / width + once / (tile.columns / 2)


KEY = re.compile(
    r"(\w+)x(\w+) (\d+)x(\d+)x(\d+)x(\d+) pitch \d+ k(\d+)x(\d+) \S+ \S+ "
    r"-> (\d+)x(\d+)x(\d+) (\w+?)(?:\+(\w+))?(\+table)?$"
)
"""What operators/linear.py calls a layer."""


class Modelled(EmulatedDevice):
    """A device that plans are made for and nothing runs on."""

    specialises = True


def choose(key: str, candidates: Sequence[Choice]) -> Choice:
    """What tuning is expected to find at large batches: tensor maps, the widest tile that fits, K in one piece."""
    match = KEY.match(key)
    channels = int(match[11]) if match else 128

    def rank(choice: Choice) -> tuple[bool, bool, int, int]:
        tile = choice.tile
        return tile.tensor_map or tile.patch, tile.warpgroup, min(tile.columns, channels, 128), -tile.columns

    return max((c for c in candidates if c.splits == 1), key=rank)


def main() -> None:
    net = sys.argv[1] if len(sys.argv) > 1 else "resnet50"
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 256
    graph = models.PAPERS[net](0)
    value = graph.inputs[0]
    shape = [1, *(int(d) for d in value.shape[1:])]
    data = [{value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}]
    integer, _ = qir.quantize(graph, data, method="minmax", equalize="none", correct_bias="none")
    device = Modelled(architecture="90a")
    plan = compile_plan(integer, device, {"N": batch}, integer.outputs, Constants(device), choose)
    size = {"int8": 1, "uint8": 1, "int16": 2, "int32": 4}
    print(f"# {net}, batch {batch}: static model, sm_90a\n")
    print("| layer | tile | program | registers | line | epilogue | DRAM, us | products, us | issue, us | us |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    total = 0.0
    for key, _, choice in plan.choices.values():
        match = KEY.match(key)
        if match is None:
            print(f"| {key} | not modelled |")
            continue
        x, _, *numbers, out, residual, _ = match.groups()
        n, h, w, c, kh, kw, oh, ow, m = map(int, numbers)
        outputs = n * oh * ow * m
        second = int(bool(Program(choice.program) & Program.SECOND))
        moved = n * h * w * c * size.get(x, 1) + kh * kw * c * m
        moved += outputs * (size.get(out, 1) + second + (size.get(residual, 1) if residual else 0))
        tile = choice.kernel
        line, whole = per_output(tile) if tile.warpgroup else (float("nan"), 40.0)
        registers = instructions(tile)[1]
        times = (moved / DRAM, 2 * outputs * kh * kw * c / TENSOR, outputs * whole / 32 / ISSUE)
        total += max(times)
        cells = " | ".join(f"{t * 1e6:.1f}" for t in (*times, max(times)))
        print(f"| {key} | `{choice.name}` | {choice.program} | {registers} | {line:.1f} | {whole:.1f} | {cells} |")
    print(f"\nsum {total * 1e3:.2f} ms, {batch / total:,.0f} images/s, without what is not on tensor cores")


if __name__ == "__main__":
    main()
