#!/usr/bin/env python3
"""Time and memory of rounding all 4-bit weights of ResNet50 at full size -> rounding_time.md.

    python benchmarks/rounding_time.py [--images 128] [--nets resnet18,resnet50]

Weights of qir.models (random), random images of 224 x 224 in batches of 8: neither changes what there is to do.  Only
`RoundWeights` is timed, in a process of its own for each network; ranges and quantizers are there already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from qir import models
from qir.passes.calibration.collect import calibrate
from qir.passes.manager import PassManager
from qir.passes.recipes import RECIPES
from qir.passes.rounding.round_weights import RoundWeights

HERE = Path(__file__).resolve().parent
BATCH = 8


def measure(net: str, images: int) -> dict[str, float]:
    graph = models.PAPERS[net](0)
    recipe = RECIPES["w4a8"]
    prepared, _ = recipe.prepare.run(graph)
    rng = np.random.default_rng(0)
    name = graph.inputs[0].name
    feeds = [{name: rng.standard_normal((BATCH, 3, 224, 224)).astype(np.float32)} for _ in range(images // BATCH)]
    qdq, _ = PassManager([recipe.insert(calibrate(prepared, feeds[:1], method="minmax"))]).run(prepared)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    start, cpu = time.perf_counter(), time.process_time()
    _, report = PassManager([RoundWeights(prepared, feeds)]).run(qdq)
    return {
        "layers": report["round_weights"].count, "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu, "before": before,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--nets", default="resnet18,resnet50")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.images)))
        return
    lines = [
        "# Rounding of 4-bit weights: time and memory", "",
        f"Written by `benchmarks/rounding_time.py`: w4a8, {args.images} images of 224 x 224, {platform.machine()}, "
        f"{len(os.sched_getaffinity(0))} cores.", "",
        "| network | layers rounded | s | processor s | MB before | MB peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for net in args.nets.split(","):
        command = [sys.executable, __file__, "--one", net, "--images", str(args.images)]
        result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        r = json.loads(result.splitlines()[-1])
        lines.append(f"| {net} | {r['layers']} | {r['seconds']:.1f} | {r['cpu']:.1f} | {r['before']} | {r['peak']} |")
        print(lines[-1], flush=True)
    (HERE / "rounding_time.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
