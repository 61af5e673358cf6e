#!/usr/bin/env python3
"""Bits of every way to launch a convolution: `python benchmarks/gpu_ways.py [--kinds plain,warpgroup,mapped]`.

Whole networks run what the heuristic or the tuner picks; here each candidate of each layer is made to run, every tile
and every split of K, and compared with the reference.  A kind that hangs or differs shows before networks depend on it:

    plain      mma.sync (conv_igemm), the depthwise and the direct kernel
    warpgroup  sm_90a: wgmma fed by cp.async and bulk copies
    mapped     sm_90a: wgmma fed through tensor maps

Exit status 1 where a way differs or fails, or a kind that the GPU has was never launched.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qir import DType
from qir.runtime import Session
from qir.runtime.cuda.compiler import compile_plan
from qir.runtime.cuda.device.cupy_device import CupyDevice
from qir.runtime.cuda.device.emulated import EmulatedDevice
from qir.runtime.cuda.instances import ConvTile, instances
from qir.runtime.cuda.planner.choices import Choice
from qir.runtime.cuda.planner.constants import Constants
from qir.runtime.cuda.runner import Runner
from qir.testing.integer import IntegerCase

KINDS = ("plain", "warpgroup", "mapped")
REPEATS = 3
"""Runs of each way: a race need not show the first time."""


def kind_of(tile: ConvTile) -> str:
    return "mapped" if tile.tensor_map else "warpgroup" if tile.warpgroup else "plain"


def layers(signed: bool, cell: int, weight: DType, narrow: bool, batch: int, size: int) -> IntegerCase:
    """Odd channels, pixels past one tile, K past the stages, strides, dilation, a residual of 16 bits, a table."""
    case = IntegerCase(seed=7, batch=batch)
    kind = DType.INT8 if signed else DType.UINT8
    four = DType.INT4 if signed else DType.UINT4
    x = case.input(four if narrow else kind, 3 if cell == 4 else 77, size, size + 3)
    y = case.conv(x, 140, (3, 3), weight, pads=[1, 0, 1, 2], pad_value=[3])
    wide = case.requantize(case.conv(x, 140, (1, 1), weight), DType.INT16, channels=140)
    case.table(case.add(case.requantize(y, kind, channels=140), wide, DType.INT8))
    case.conv(x, 300, (5, 5), weight, pads=[2, 2, 2, 2])
    z = case.conv(x, 33, (3, 2), weight, strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1])
    case.requantize(z, channels=33)
    return finished(case)


def mapped_layers(signed: bool, batch: int, size: int, channels: int) -> IntegerCase:
    """What tensor maps take: zeros for padding, or none; channels of one span of 128 or 64, of several, of a part."""
    case = IntegerCase(seed=8, batch=batch)
    kind = DType.INT8 if signed else DType.UINT8
    x = case.input(kind, channels, size, size + 3)
    y = case.conv(x, 140, (3, 3), pads=[1, 1, 1, 1], pad_value=[0])
    short = case.requantize(case.conv(case.input(kind, 21, size, size + 3), 140, (1, 1), pad_value=[9]), DType.INT16)
    case.add(case.requantize(y, kind, channels=140), short, DType.INT8)
    case.requantize(case.conv(x, 33, (3, 3), strides=[2, 2], pads=[1, 1, 1, 1], pad_value=[0]), channels=33)
    case.requantize(case.conv(x, 300, (1, 1), strides=[2, 2], pad_value=[0]), channels=300)
    case.conv(x, 20, (2, 2), dilations=[2, 2], pad_value=[5])
    rows = case.input(kind, 11, 300)
    w = case.graph.add_constant("w", case.ints(DType.INT8, (300, 70)))
    case.requantize(case.node("qir.MatMul", rows, w, None, weight_zero_point=0), kind)
    return finished(case)


def finished(case: IntegerCase) -> IntegerCase:
    case.graph.set_outputs([v for n in case.graph.nodes for v in n.outputs if not v.uses()])
    return case


def cases(batch: int, size: int) -> Iterator[tuple[str, IntegerCase]]:
    for signed in (False, True):
        sign = "s" if signed else "u"
        yield f"{sign}8 x s8", layers(signed, 16, DType.INT8, False, batch, size)
        yield f"{sign}8 x s8, 3 channels", layers(signed, 4, DType.INT8, False, batch, size)
        yield f"{sign}8 x s4", layers(signed, 16, DType.INT4, False, batch, size)
        yield f"{sign}4 x s4", layers(signed, 16, DType.INT4, True, batch, size)
        yield f"{sign}8 x s8, for tensor maps", mapped_layers(signed, batch, size, 250)
        yield f"{sign}8 x s8, for tensor maps of 64", mapped_layers(signed, batch, size, 190)


class Turn:
    """Chooses candidate `number` among those of a kind; the first candidate where a layer has none of it."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.number, self.most = kind, number, 0
        self.chosen: list[str] = []

    def __call__(self, key: str, candidates: Sequence[Choice]) -> Choice:
        mine = [c for c in candidates if kind_of(c.tile) == self.kind]
        self.most = max(self.most, len(mine))
        if not mine:
            return candidates[0]
        choice = mine[self.number % len(mine)]
        self.chosen.append(f"{choice.name}: {key}")
        return choice


def try_case(name: str, case: IntegerCase, kind: str, device: Any, turns: int) -> Iterator[dict[str, Any]]:
    """One line a turn: what was launched, and which outputs differ."""
    want = Session(case.graph, "reference").run(case.feeds)
    packed, number, most = Constants(device), 0, 1
    while number < min(most, turns):
        turn, start = Turn(kind, number), time.perf_counter()
        line: dict[str, Any] = {"case": name, "kind": kind, "turn": number}
        try:
            plan = compile_plan(case.graph, device, {"N": case.batch}, case.graph.outputs, packed, turn)
            most = turn.most
            if not turn.chosen:
                return
            if number == 0:  # side by side, not plan after plan
                ways = [c for _, candidates, _ in plan.choices.values() for c in candidates if kind_of(c.tile) == kind]
                device.prepare(c.kernel for c in ways)
            runner, wrong = Runner(plan), set[str]()
            for _ in range(REPEATS):
                got = runner.enqueue(case.feeds, dict.fromkeys(want), device.stream()).result()
                wrong |= {n for n, array in got.items() if not np.array_equal(array, want[n])}
            line["differing"] = sorted(wrong)
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
        line["chosen"] = turn.chosen
        yield {**line, "seconds": round(time.perf_counter() - start, 3)}
        number += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=Path("gpu_ways.jsonl"))
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--size", type=int, default=23)
    parser.add_argument("--turns", type=int, default=1000, help="at most so many candidates of a layer")
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    args = parser.parse_args()
    device: Any = EmulatedDevice(architecture="90a") if args.device == "emulated" else CupyDevice()
    kinds = args.kinds.split(",")
    here = instances(device.architecture) or instances("80")  # a later GPU has what all have
    has = {kind_of(k) for k in here if isinstance(k, ConvTile)} - (set() if device.tensor_maps else {"mapped"})
    bad, launched = 0, dict.fromkeys(kinds, 0)
    with args.out.open("w") as log:
        for kind in kinds:
            for name, case in cases(args.batch, args.size):
                for line in try_case(name, case, kind, device, args.turns):
                    log.write(json.dumps({"device": device.name, **line}) + "\n")
                    log.flush()
                    launched[kind] += 1
                    if line.get("error") or line["differing"]:
                        bad += 1
                        print(f"{kind} {name}: {line.get('error') or line['differing']} {line['chosen']}", flush=True)
    absent = [k for k in kinds if k in has and not launched[k]]
    print(f"{sum(launched.values()) - bad} of {sum(launched.values())} bit-identical on {device.name}; {launched}")
    if absent:
        print(f"never launched: {absent}")
    return int(bad > 0 or bool(absent))


if __name__ == "__main__":
    sys.exit(main())
