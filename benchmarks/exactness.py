#!/usr/bin/env python3
"""Bit-exactness of integer-only models on the kit's float networks, tensor by tensor.

    python benchmarks/exactness.py [--nets a,b] [--recipes w8a8,...] [--samples 16] [--out exactness.md]

For each network and recipe: quantize on 32 calibration samples, save, then on the saved file onnx.checker with
full_check, the verifier and the independent audit, and reference against onnxruntime on every computed tensor.
Results are appended to a .jsonl file beside the table, one line a run; `--table` only writes the table from it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import qir
from qir.io import audit
from qir.runtime.measure.exactness import exactness
from qir.verify import is_integer_only, verify

HERE = Path(__file__).resolve().parent
KIT = HERE.parents[1] / "shared" / "kit"
SHAPES: dict[str, tuple[int | str, ...]] = {
    "nudenet_yolov8n_320": ("N", 3, 320, 320), "ppocr_cls": ("N", 3, 48, 192), "ppocrv4_det": ("N", 3, 256, 256),
}  # fmt: skip
"""Inputs whose sizes the files leave open."""


def kit_module() -> Any:
    spec = importlib.util.spec_from_file_location("evaluate", KIT / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_network(net: str, **options: Any) -> qir.Graph:
    """A float network of the kit; sizes that its file leaves open are those that its preprocessing has."""
    path = KIT / "models" / f"{net}.onnx"
    if net not in SHAPES:
        return qir.load(path)
    name = onnx.load(path, load_external_data=False).graph.input[0].name
    return qir.load(path, input_shapes={name: SHAPES[net]}, **options)


def run(net: str, recipe: str, samples: int, step: int) -> dict[str, Any]:
    start = time.perf_counter()
    evaluate = kit_module()
    graph = load_network(net)
    name, batch = graph.inputs[0].name, graph.inputs[0].shape[0]
    calib = evaluate.load(net, "calib", 32)[0]
    x = evaluate.load(net, "dev", samples)[0]
    if isinstance(batch, int):
        step = batch
        x = x[: len(x) - len(x) % batch]
    integer, _ = qir.quantize(graph, calib, recipe=recipe, batch_size=4 if isinstance(batch, str) else batch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        qir.save(integer, path)
        size = path.stat().st_size
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        loaded = qir.load(path)
    verify(loaded, qir.Stage.INTEGER)
    offences = [*is_integer_only(loaded), *audit(model)]
    result = exactness(loaded, {name: np.ascontiguousarray(x)}, step=step)
    return {
        "net": net, "recipe": recipe, "samples": len(x), "tensors": result.tensors, "values": result.values,
        "differing": sum(result.differing.values()), "worst": next(iter(result.differing), None),
        "offences": offences, "bytes": size, "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    head = """# Exactness

`python benchmarks/exactness.py`: each network is quantized, saved, checked by `onnx.checker` (full_check), loaded, and
run by the reference (NumPy) and by onnxruntime; every tensor that a node computes is compared bit by bit. "Offences"
are float values off the border and divisions, found by the verifier or by the audit of the inlined ONNX.

| network | recipe | samples | tensors | values compared | differing | offences | file, MB | float file, MB |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
    rows: list[str] = []
    for r in sorted({(r["net"], r["recipe"]): r for r in lines}.values(), key=lambda r: (r["net"], r["recipe"])):
        full = (KIT / "models" / f"{r['net']}.onnx").stat().st_size / 1e6
        if "error" in r:
            rows.append(f"| {r['net']} | {r['recipe']} | {r['error']} | | | | | | {full:.2f} |")
            continue
        rows.append(
            f"| {r['net']} | {r['recipe']} | {r['samples']} | {r['tensors']} | {r['values']:,} | {r['differing']} "
            f"| {len(r['offences'])} | {r['bytes'] / 1e6:.2f} | {full:.2f} |"
        )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(sorted(p.stem for p in (KIT / "models").glob("*.onnx"))))
    parser.add_argument("--recipes", default="w8a8,w8a8_per_tensor,w4a8,w4a4")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--step", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "exactness.md")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    log = args.out.with_suffix(".jsonl")
    if not args.table:
        for net in args.nets.split(","):
            for recipe in args.recipes.split(","):
                try:
                    line = run(net, recipe, args.samples, args.step)
                except Exception as error:  # the table shows it
                    line = {"net": net, "recipe": recipe, "error": f"{type(error).__name__}: {error}"[:300]}
                print(json.dumps(line), flush=True)
                with log.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    args.out.write_text(table([json.loads(line) for line in log.read_text().splitlines()]))


if __name__ == "__main__":
    main()
