#!/usr/bin/env python3
"""Which constants `RoundWeights` should have, judged on calibration images alone.

    python benchmarks/choose_rounding.py [--nets a,b] [--recipes w4a8,w4a4] [--out choose_rounding.md]

Of each network's calibration split every second image calibrates, and the others judge: agreement with the float
network and SQNR of the logits, which need no labels. The dev split is not read. Recipes w4a8 and w4a4 with other
constants of the rounding, float-simulated by onnxruntime on the QDQ graph. Lines are added to a .jsonl file beside the
table, so that it can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import HERE, KIT, kit_module, outputs, scores

import qir
from qir.passes.calibration.collect import collect, ranges_from
from qir.passes.calibration.correct_bias import CorrectBias, empirical_means
from qir.passes.calibration.data import batches
from qir.passes.manager import PassManager
from qir.passes.recipes import RECIPES
from qir.passes.rounding.round_weights import RoundWeights

NETS = {"mlperf_resnet8": 128, "mlperf_vww": 128, "cifar_resnet20": 128, "squeezenet1_1_caffe": 32}
"""Network -> images that calibrate, and as many that judge."""
VARIANTS: dict[str, dict[str, Any] | None] = {
    "nearest, bias correction": None,
    **{f"follow {f:g}": {"follow": f} for f in (0.0, 0.15, 0.3, 0.45, 0.6, 1.0)},
    "damping 0.003": {"damping": 0.003},
    "damping 0.03": {"damping": 0.03},
    "no descent": {"sweeps": 0},
    "4 sweeps": {"sweeps": 4},
    "no refit": {"refit": False},
}


def measure(net: str, recipe: str, names: list[str], evaluate: Any) -> list[dict[str, Any]]:
    """One line for each variant."""
    images, count = evaluate.load(net, "calib")[0], NETS[net]
    calib, held = images[::2][:count], images[1::2][:count]
    chosen = RECIPES[recipe].but(strip_softmax=True)
    graph = qir.load(KIT / "models" / f"{net}.onnx")
    prepared, _ = chosen.prepare.run(graph)
    reference = outputs(prepared, held)
    feeds = list(batches(calib, graph))
    seen = collect(prepared, feeds)
    ranges = ranges_from(seen, chosen.method, bits=chosen.bits, options=chosen.range_options)
    rows: list[dict[str, Any]] = []
    for name in names:
        options, start = VARIANTS[name], time.perf_counter()
        last = CorrectBias(prepared, empirical_means(seen)) if options is None else None
        step = last or RoundWeights(prepared, feeds, **(options or {}))
        qdq, _ = PassManager([chosen.insert(ranges), step]).run(prepared)
        row: dict[str, Any] = {"net": net, "recipe": recipe, "variant": name, "images": len(held)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        row |= scores(outputs(qdq, held), reference, np.full(len(held), -1), 0)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The report; cells are agreement % / SQNR dB."""
    latest = {(r["variant"], r["net"], r["recipe"]): r for r in rows}
    heads = [(n, p) for n in NETS for p in ("w4a8", "w4a4") if any(k[1:] == (n, p) for k in latest)]
    plain = RoundWeights(qir.Graph(), ())
    lines = [
        "# Constants of the rounding below 8 bits, chosen on calibration images", "",
        "Written by `python benchmarks/choose_rounding.py`. Agreement with the float network % / SQNR of the logits dB",
        "on calibration images that did not calibrate (every second one); the dev split is not read. Each line changes",
        f"one constant of the defaults, which are follow {plain.follow:g}, damping {plain.damping:g}, "
        f"{plain.sweeps} sweeps of descent, scales refitted.",
        "Images that judge: " + ", ".join(f"{n} {c}" for n, c in NETS.items()) + ".",
        "Mean SQNR: over the first three columns, where all were measured. The default is the best of these means by",
        "follow. The other lines were measured on mlperf_resnet8 only: too little to change a default by.", "",
        f"| constants | {' | '.join(f'{n} {p}' for n, p in heads)} | mean SQNR |",
        f"| --- | {' | '.join('---:' for _ in heads)} | ---: |",
    ]  # fmt: skip
    shown = [v for v in VARIANTS if any(k[0] == v for k in latest)]
    full = [(n, "w4a4") for n in list(NETS)[:3]]
    for name in shown:
        found = [latest.get((name, h[0], h[1])) for h in heads]
        cells = ["" if r is None else f"{r['agree']:.1f} / {r['sqnr']:.2f}" for r in found]
        means = [latest[(name, *h)]["sqnr"] for h in full if (name, *h) in latest]
        mean = f"{np.mean(means):.2f}" if len(means) == len(full) else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {mean} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--recipes", default="w4a8,w4a4")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by ;")
    parser.add_argument("--out", type=Path, default=HERE / "choose_rounding.md")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    evaluate = kit_module()
    for net in args.nets.split(","):
        for recipe in args.recipes.split(","):
            rows = measure(net, recipe, args.variants.split(";"), evaluate)
            with log.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            args.out.write_text(table([json.loads(line) for line in log.read_text().splitlines()]))


if __name__ == "__main__":
    main()
