#!/usr/bin/env python3
"""Transformers: accuracy, latency and size beside float32 and onnxruntime's dynamic int8.

    python benchmarks/transformers.py [--only TEXT] [--recipes w8a8 w8a16] [--out transformers.md]

Networks, data and scores are those of the kit next to the tree (`shared/kit/transformers`).  Latencies are the least
of alternating runs in one process, one thread, batches of one and (where the batch is open) eight.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

import qir
from qir.runtime import Session

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "shared" / "kit" / "transformers"
NETWORKS = {
    "minilm.ts14": "minilm", "minilm.dy20": "minilm", "minilm_sentence.ts17": "minilm_sentence",
    "vit_s_focus": "vit_s_focus",
}  # fmt: skip
LENGTH = 32

Feeds = dict[str, np.ndarray]


def evaluator() -> Any:
    """The kit's own loader and scores."""
    spec = importlib.util.spec_from_file_location("evaluate", FOLDER / "evaluate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(feeds: Feeds, size: int) -> list[Feeds]:
    """The samples in batches."""
    return [
        {k: v[i : i + size] for k, v in feeds.items()} for i in range(0, len(next(iter(feeds.values()))), size)
    ]  # fmt: skip


def dynamic(path: Path, folder: Path) -> Path:
    """onnxruntime's dynamic quantization, int8 weights per channel."""
    model = onnx.load(path)
    del model.graph.value_info[:]  # the vocabulary was cut after the export
    plain, target = folder / "plain.onnx", folder / "dynamic.onnx"
    onnx.save(model, plain)
    quantize_dynamic(plain, target, per_channel=True, weight_type=QuantType.QInt8)
    return target


def least(runs: dict[str, Callable[[], Any]], seconds: float = 4.0) -> dict[str, float]:
    """The least milliseconds of each, taking turns."""
    best: dict[str, float] = {}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(best) < len(runs):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best.get(name, np.inf), 1e3 * (time.perf_counter() - start))
    return best


def measure(name: str, recipes: list[str]) -> list[str]:
    """Rows of the table for one network."""
    kit, kind, path = evaluator(), NETWORKS[name], FOLDER / f"{name}.onnx"
    tokens = ("input_ids", "attention_mask", "token_type_ids") if "mini" in name else ()
    shapes: dict[str, tuple[str | int, ...]] = dict.fromkeys(tokens, ("N", LENGTH))
    graph = qir.load(path, input_shapes=shapes or None)
    names = {v.name for v in graph.inputs}
    calib, test = ({k: v for k, v in kit.load(kind, s).items() if k in names} for s in ("calib", "test"))
    mask = kit.load(kind, "test").get("attention_mask")
    size = 8 if isinstance(graph.inputs[0].shape[0], str) else 1
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sessions: dict[str, tuple[Callable[[Feeds], np.ndarray], float, float]] = {}

        def add_onnxruntime(label: str, model: Path, megabytes: float) -> None:
            session = ort.InferenceSession(str(model), options)
            sessions[label] = (lambda f: np.asarray(session.run(None, f)[0])), 0.0, megabytes

        weights = sum(v.array().nbytes for v in graph.constants) / 1e6
        add_onnxruntime("float32", path, weights)
        other = dynamic(path, folder)
        add_onnxruntime("onnxruntime dynamic", other, other.stat().st_size / 1e6)
        for recipe in recipes:
            start = time.perf_counter()
            integer, _ = qir.quantize(graph, parts(calib, 16 if size > 1 else 1), recipe)
            seconds = time.perf_counter() - start
            qir.save(integer, folder / f"{recipe}.onnx")
            ours, output = Session(integer, "cpu", threads=1), integer.outputs[0].name
            sessions[f"qir {recipe}"] = (
                (lambda f, s=ours, o=output: s.run(f)[o]), seconds, (folder / f"{recipe}.onnx").stat().st_size / 1e6
            )  # fmt: skip
        want = np.concatenate([sessions["float32"][0](f) for f in parts(test, size)])
        scores = {
            label: kit.score(np.concatenate([run(f) for f in parts(test, size)]), want, kind, mask)
            for label, (run, _, _) in sessions.items() if label != "float32"
        }  # fmt: skip
        batches = [parts(test, n)[0] for n in ((1, 8) if size > 1 else (1,))]
        times = [least({k: (lambda r=run, f=f: r(f)) for k, (run, _, _) in sessions.items()}) for f in batches]
    for label, (_, seconds, megabytes) in sessions.items():
        score = "; ".join(f"{k} {v}" for k, v in scores.get(label, {}).items())
        spent = f"{seconds:.0f}" if seconds else ""
        milliseconds = " / ".join(f"{t[label]:.1f}" for t in times)
        rows.append(f"| {name} | {label} | {score} | {milliseconds} | {megabytes:.1f} | {spent} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--recipes", nargs="+", default=["w8a8", "w8a16"])
    parser.add_argument("--out", type=Path, default=HERE / "transformers.md")
    arguments = parser.parse_args()
    rows: list[str] = []
    for name in NETWORKS:
        if arguments.only in name:
            rows += measure(name, arguments.recipes)
            print(*rows[-2 - len(arguments.recipes) :], sep="\n", flush=True)
    text = (__doc__ or "").split("\n")[0]
    head = "| network | what | beside float32, test split | ms, 1 thread, batch 1 / 8 | MB | s to quantize |"
    arguments.out.write_text(
        f"# Transformers\n\n{text}\n\nWritten by `python benchmarks/transformers.py` on {platform.machine()}, "
        f"onnxruntime {ort.__version__}. MB of float32: its constants.\n\n{head}\n"
        "| --- | --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    main()
