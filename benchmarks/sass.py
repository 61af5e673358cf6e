#!/usr/bin/env python3
"""A static model of whole networks on sm_90a: `python benchmarks/sass.py [NETWORK] [BATCH] [RESIDUAL]`.

No GPU is needed.
Every launch's kernel is compiled for its epilogue by NVRTC and disassembled (nvidia-cuda-nvdisasm of PyPI), and its
instructions an output element are counted:
  warpgroup tiles   those of an epilogue's line (what lies between one line's last store and the next one's), and what
                    a warp does once (staging, constants), shared by its outputs; tiles of 16 and 32 columns, which have
                    no lines: all from the last product to the last store
  patches           the loop over tiles, with as many products and rows of the patch as the layer has
  depthwise         the loop over rows, and what comes before it shared by the rows that a thread walks down
  pooling, borders  the loop over chunks or pixels, with the loops over the window inside
Beside them the three limits of a layer: bytes at 4.3 TB/s, products (tensor cores at 1,600 TOP/s; dp4a, 2 warps a
cycle and multiprocessor), instructions at 132 x 2.3 a cycle of 1.98 GHz, which fitted layers bound by instructions
within 10 % when last measured on an H200.  A layer is given the largest of the three: products of one block and the
epilogue of another are taken to overlap.  Launches and waits between layers are left out; of small layers bytes count.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

import qir
from qir import models
from qir.errors import BackendError
from qir.graph import Value
from qir.runtime.cuda.compiler import compile_plan
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.cuda.device.interface import Launch
from qir.runtime.cuda.device.nvrtc import Nvrtc, usage
from qir.runtime.cuda.instances import WALKS, ConvTile, Kernel
from qir.runtime.cuda.planner.choices import Choice
from qir.runtime.cuda.planner.constants import Constants
from qir.runtime.cuda.planner.plan import Plan
from qir.runtime.cuda.program import Program
from qir.shapes import fixed

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


@dataclass(frozen=True)
class Code:
    """The machine code of a kernel: opcodes in order, and its loops as ranges of them, innermost first."""

    opcodes: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]
    registers: int
    spills: int

    def count(self, opcode: str, start: int = 0, end: int | None = None) -> int:
        return sum(name.startswith(opcode) for name in self.opcodes[start:end])

    def loop(self, opcode: str, largest: bool = False) -> tuple[int, int]:
        """The smallest (or largest) loop with an instruction of that kind."""
        found = [r for r in self.loops if self.count(opcode, *r)]
        return (max if largest else min)(found, key=lambda r: r[1] - r[0])

    def inside(self, outer: tuple[int, int]) -> list[tuple[int, int]]:
        """The loops within a loop that no other one is around."""
        within = [r for r in self.loops if outer[0] <= r[0] and r[1] <= outer[1] and r != outer]
        return [r for r in within if not any(o != r and o[0] <= r[0] and r[1] <= o[1] for o in within)]


def size(r: tuple[int, int]) -> int:
    return r[1] - r[0]


LABEL, BRANCH = re.compile(r"^(\.L_x_\d+):"), re.compile(r"BRA.*`\((\.L_x_\d+)\)")


@cache
def code(kernel: Kernel) -> Code:
    binary, lowered, log = Nvrtc().compile(kernel.source, [kernel], "90a")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = usage(log, lowered[kernel.expression])
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif instruction := INSTRUCTION.match(line):
            opcodes.append(instruction[1])
            back = BRANCH.search(line)
            if back and len(opcodes) - labels.get(back[1], len(opcodes)) > 3:
                loops.append((labels[back[1]], len(opcodes)))
    return Code(tuple(opcodes), tuple(sorted(loops, key=size)), found.registers, found.spill_stores)


def instructions(tile: Kernel) -> tuple[tuple[str, ...], int, int]:
    """(opcodes of a compiled tile in order, registers, bytes of spills)."""
    found = code(tile)
    return found.opcodes, found.registers, found.spills


def depthwise_per_output(kernel: Kernel, side: int, columns: int, rows: int) -> float:
    """Instructions an output of conv_depthwise_rows, where a thread walks down `rows` rows."""
    found = code(kernel)
    loop = found.loop("IDP", largest=True)
    return size(loop) / (side * columns * 4) + loop[0] / (rows * columns * 4)


def patch_per_output(kernel: Kernel, columns: int, steps: int, rows: int) -> float:
    """Instructions an output of conv_patch, with `steps` products along K and a patch of `rows` rows."""
    found = code(kernel)
    tile, step = found.loop("IMMA", largest=True), found.loop("IMMA")
    filling = [r for r in found.inside(tile) if found.count("LDGSTS", *r)]
    rest = size(tile) - size(step) - sum(size(r) for r in filling)
    filled = min(size(r) for r in filling) * -(-rows // 8)
    return (rest + filled + steps * size(step)) / columns  # a thread has 128 / 128 pixels of `columns` channels


def pool_per_output(kernel: Kernel, height: int, width: int) -> float:
    """Instructions an output of pool_bytes: 16 a thread; the window's columns three at a time where they can be."""
    found = code(kernel)
    chunk = max(found.loops, key=size)
    line = max(found.inside(chunk), key=size)
    taps = max(found.inside(line), key=size)
    once = line[0] - chunk[0] + 12  # where the window lies; bytes put together and stored
    row = taps[0] - line[0] + size(taps) * width / 3
    return (once + height * row) / 16


def per_output(tile: ConvTile) -> tuple[float, float]:
    """Instructions of the epilogue an output element of a specialised warpgroup tile: (of the line alone, in all)."""
    opcodes = instructions(tile)[0]
    stores = [i for i, name in enumerate(opcodes) if name.startswith("STG")]
    last = max(i for i, name in enumerate(opcodes) if "GMMA" in name)
    if tile.columns <= 32:
        whole = (stores[-1] - last) / (tile.columns / 2)
        return whole, whole
    program = Program(tile.program)
    width = 16 if program & Program.NARROW else 8
    lines = min(4, 16 // (32 // (tile.columns // width)))  # GROUP of conv_wgmma.cu
    each = len(stores) // lines
    line = (stores[-1] - stores[each - 1]) / (lines - 1)
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

    def rank(choice: Choice) -> tuple[bool, bool, bool, int, int]:
        tile = choice.tile
        fast = tile.tensor_map or tile.patch
        return fast, tile.warpgroup, tile.columns >= min(channels, 64), min(tile.columns, channels, 128), -tile.columns

    return max((c for c in candidates if c.splits == 1), key=rank)


def nbytes(plan: Plan, value: Value) -> int:
    """Bytes of a value's elements, or of a constant."""
    place = plan.placements.get(value)
    if place is None:
        return 0 if value.data is None else value.data.nbytes
    return int(np.prod(place.shape)) * place.dtype.itemsize


def modelled(plan: Plan, launch: Launch) -> tuple[str, float, float, float]:
    """(what the layer is, instructions an output, outputs with what tiles have too much, seconds of its products)."""
    name, fields = launch.kernel.expression.removeprefix("qir::"), {}
    for argument in launch.arguments:
        fields.update({n: int(argument[n]) for n in argument.dtype.names or () if argument[n].ndim == 0})
    outputs = float(np.prod(plan.placements[plan.groups[launch.head].output].shape))
    tile = launch.kernel
    if launch.head in plan.choices and isinstance(tile, ConvTile):
        key = plan.choices[launch.head][0]
        match = KEY.match(key)
        assert match is not None
        taps, channels = int(match[7]) * int(match[8]), int(match[6])
        products = 2 * outputs * taps * channels / TENSOR
        real = outputs / int(match[11])
        columns = -(-int(match[11]) // tile.columns) * tile.columns if tile.columns <= 32 else int(match[11])
        if tile.patch:
            rows = (8 - 1) * fields["stride_h"] + fields["kernel_h"]
            each = patch_per_output(tile, tile.columns, fields["k_padded"] // 32, rows)
            return key, each, real * columns, products
        return key, per_output(tile)[1] if tile.warpgroup else 40.0, real * columns, products
    if name.startswith("conv_depthwise_rows"):
        side, stride = fields["kernel_h"], fields["stride_h"]
        across = WALKS[side, stride]
        each = depthwise_per_output(tile, side, across, fields["rows"])
        shape = f"{fields['batch']}x{fields['height']}x{fields['width']}x{fields['channels']}"
        waste = -(-fields["out_width"] // across) * across / fields["out_width"]
        dots = outputs / 32 * side * -(-side // 4) / (132 * 2 * 1.98e9)
        return f"depthwise {shape} k{side}x{side} s{stride}", each, outputs * waste, dots
    if name.startswith("pool_bytes"):
        each = pool_per_output(tile, fields["kernel_h"], fields["kernel_w"])
        return f"pool {fields['kernel_h']}x{fields['kernel_w']}", each, outputs, 0.0
    if name.startswith("quantize_pixels"):
        loop = code(tile).loop("FFMA", largest=True)
        four = max((r for r in code(tile).loops if code(tile).count("FFMA", *r)), key=size) if loop else loop
        return "pixels at the border", size(four) / 4 / 3, outputs, 0.0
    return launch.head.op, float("nan"), outputs, 0.0


def rows(net: str, batch: int, residual: str = "int16") -> Iterator[tuple[str, float]]:
    """A line of the table, and the seconds, of every launch of a network."""
    graph = models.PAPERS[net](0)
    value = graph.inputs[0]
    shape = [1, *(int(d) for d in value.shape[1:])]
    data = [{value.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}]
    integer, _ = qir.quantize(graph, data, method="minmax", equalize="none", correct_bias="none", residual=residual)
    device = Modelled(architecture="90a")
    graph = fixed(integer, {"N": batch}, [v.name for v in integer.outputs])
    plan = compile_plan(graph, device, {"N": batch}, graph.outputs, Constants(device), choose)
    for launch in plan.build(1 << 20):
        group = plan.groups[launch.head]
        what, each, outputs, products = modelled(plan, launch)
        values = {v: None for v in (*launch.head.inputs, group.residual, group.output) if v is not None}
        if group.second is not None:
            values[group.second.output] = None
        moved = sum(nbytes(plan, v) for v in values)
        issue = 0.0 if np.isnan(each) else outputs * each / 32 / ISSUE
        times = (moved / DRAM, products, issue)
        cells = " | ".join(f"{t * 1e6:.1f}" for t in (*times, max(times)))
        name = launch.kernel.expression.removeprefix("qir::")
        program = "" if launch.kernel.program < 0 else launch.kernel.program
        yield f"| {what} | `{name}` | {program} | {code(launch.kernel).registers} | {each:.1f} | {cells} |", max(times)


def main() -> None:
    net = sys.argv[1] if len(sys.argv) > 1 else "resnet50"
    batch = int(sys.argv[2]) if len(sys.argv) > 2 else 256
    residual = sys.argv[3] if len(sys.argv) > 3 else "int16"
    print(f"# {net}, batch {batch}, residual streams of {residual}: static model, sm_90a\n")
    print("| layer | kernel | program | registers | instructions | DRAM, us | products, us | issue, us | us |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    total = 0.0
    for line, seconds in rows(net, batch, residual):
        print(line, flush=True)
        total += seconds
    print(f"\nsum {total * 1e3:.2f} ms, {batch / total:,.0f} images/s")


if __name__ == "__main__":
    main()
