#!/usr/bin/env python3
"""Calibration: peak memory at 32 and 256 images, and the time of each method beside min-max.

    python benchmarks/calibration.py [--net efficientnet_lite0] [--images 32,256] [--out calibration.md]

Each measurement is a process of its own (peak resident memory only ever grows), on one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import qir
from qir.passes.calibration.collect import collect, ranges_from
from qir.passes.calibration.data import batches
from qir.passes.calibration.range_methods import METHODS, RangeOptions
from qir.passes.recipes import RECIPES

HERE = Path(__file__).resolve().parent
KIT = HERE.parents[1] / "shared" / "kit"


def images(net: str, path: Path, count: int) -> None:
    """The calibration images as a file, so that reading it can be memory-mapped."""
    sys.path.insert(0, str(KIT))
    import evaluate  # type: ignore[import-not-found]

    x = evaluate.load(net, "calib")[0]
    np.save(path, np.concatenate([x] * (-(-count // len(x))))[:count])


def measure(net: str, path: Path, count: int, queue: Any) -> None:
    graph, _ = RECIPES["w8a8"].but(strip_softmax=True).prepare.run(qir.load(KIT / "models" / f"{net}.onnx"))
    start = time.perf_counter()
    seen = collect(graph, batches(path, graph, samples=count), threads=1)
    collecting = time.perf_counter() - start
    times: dict[str, float] = {}
    for method in METHODS:
        start = time.perf_counter()
        ranges_from(seen, method, options=RangeOptions())
        times[method] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    queue.put({"count": count, "collect": collecting, "peak": peak, "times": times, "tensors": len(seen)})


def extremes_only(net: str, path: Path, count: int, queue: Any) -> None:
    """What a min-max calibration that kept nothing else would cost: the same runs, min and max of each tensor."""
    from qir.passes.quantization.placement import observed
    from qir.runtime import Session

    graph, _ = RECIPES["w8a8"].but(strip_softmax=True).prepare.run(qir.load(KIT / "models" / f"{net}.onnx"))
    start = time.perf_counter()
    session, names = Session(graph, backend="onnxruntime", threads=1), observed(graph)
    found: dict[str, tuple[float, float]] = {}
    for feeds in batches(path, graph, samples=count):
        for name, value in session.run(feeds, outputs=names).items():
            lo, hi = found.get(name, (np.inf, -np.inf))
            found[name] = min(lo, float(value.min())), max(hi, float(value.max()))
    queue.put({"collect": time.perf_counter() - start})


def apart(target: Any, *args: Any) -> dict[str, Any]:
    """Run in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=target, args=(*args, queue))
    process.start()
    got = queue.get(timeout=1200)
    process.join()
    return got


def _row(method: str, whole: float, ranges: float, minmax: float, bare: float) -> str:
    return f"| {method} | {ranges:.2f} | {whole:.1f} | {whole / minmax:.2f} x | {whole / bare:.2f} x |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="efficientnet_lite0")
    parser.add_argument("--images", default="32,256")
    parser.add_argument("--out", type=Path, default=HERE / "calibration.md")
    parser.add_argument("--scratch", type=Path, default=Path("calibration_images.npy"))
    args = parser.parse_args()
    counts = [int(v) for v in args.images.split(",")]
    images(args.net, args.scratch, max(counts))
    try:
        rows = [apart(measure, args.net, args.scratch, count) for count in counts]
        least = apart(extremes_only, args.net, args.scratch, counts[0])
    finally:
        args.scratch.unlink()
    few, many = rows[0], rows[-1]
    lines = [
        "# Calibration", "", f"Written by `python benchmarks/calibration.py --net {args.net}`; one thread.", "",
        "| images | peak memory MiB | one pass over the data s |", "| --- | --- | --- |",
        *(f"| {r['count']} | {r['peak']:.0f} | {r['collect']:.1f} |" for r in rows), "",
        f"Memory: {100 * (many['peak'] / few['peak'] - 1):+.1f} % from {few['count']} to {many['count']} images "
        f"({few['tensors']} tensors observed).", "",
        f"A loop that keeps nothing but extremes takes {least['collect']:.1f} s on {few['count']} images; ours",
        "collects everything that all methods need in the same pass.", "",
        "| method | ranges from the statistics s | whole calibration s | beside min-max | beside the bare extremes |",
        "| --- | --- | --- | --- | --- |",
        *(_row(m, few["collect"] + t, t, few["collect"] + few["times"]["minmax"], least["collect"])
          for m, t in few["times"].items()),
    ]  # fmt: skip
    args.out.write_text("\n".join(lines) + "\n")
    print(json.dumps(rows))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
