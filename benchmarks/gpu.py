#!/usr/bin/env python3
"""The CUDA runtime beside PyTorch float16: `python benchmarks/gpu.py [--out FOLDER] [--seconds 500]`.

    qir      the W8A8 integer graph; float32 in and out, both in device memory, one CUDA graph a run, tuned
    eager    PyTorch float16, channels_last, eager in a CUDA graph
    compile  PyTorch float16, channels_last, torch.compile(mode="reduce-overhead", dynamic=False)
    int_mm   per layer: torch._int_mm (cuBLASLt, int8) on the layer's matrix sizes, the im2col not counted

What matters most is measured first; when `--seconds` are over, the rest stays out.  Every measurement is appended to
FOLDER/gpu.jsonl at once; `--table` writes FOLDER/gpu.md from it.  Weights are random: times do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from gpu_torch import int_mm, measure_torch, per_run

import qir
from qir import models
from qir.runtime import Session

BATCHES = (256, 1, 128, 32, 8)
NETS = ("resnet50", "resnet18", "mobilenet_v2", "efficientnet_lite0", "inception_v3")


def integer_network(net: str, folder: Path) -> Any:
    """The W8A8 graph of a network with random weights, kept as a file."""
    path = folder / f"{net}.int8.onnx"
    if not path.exists():
        graph = models.PAPERS[net](0) if net in models.PAPERS else qir.load(str(models.bundled_path(net)))
        value = graph.inputs[0]
        shape = [1, *(int(d) for d in value.shape[1:])]
        rng = np.random.default_rng(0)
        data = [{value.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(2)]
        integer, _ = qir.quantize(graph, data, method="minmax", equalize="none", correct_bias="none")
        path.parent.mkdir(parents=True, exist_ok=True)
        qir.save(integer, path)
    return qir.load(str(path))


class Ours:
    """One integer network on the device."""

    def __init__(self, net: str, folder: Path, device: Any) -> None:
        self.device = device
        self.graph = integer_network(net, folder)
        self.session = Session(self.graph, "cuda", device=device, tune=folder / "tables")
        self.name, self.output = self.graph.inputs[0].name, self.graph.outputs[0].name

    def tensors(self, batch: int) -> tuple[Any, Any]:
        shape = [batch, *(int(d) for d in self.graph.inputs[0].shape[1:])]
        x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        y = self.session.run({self.name: x})[self.output]
        if hasattr(self.device, "cupy"):
            return self.device.cupy.asarray(x), self.device.cupy.asarray(y)
        from qir.runtime.cuda.device.emulated import EmulatedTensor

        return tuple(EmulatedTensor(a.shape, a.dtype).set(a) for a in (x, y))  # type: ignore[return-value]

    def measure(self, batch: int) -> dict[str, Any]:
        start = time.perf_counter()
        x, y = self.tensors(batch)
        built = time.perf_counter() - start
        feeds, out = {self.name: x}, {self.output: y}
        seconds = per_run(lambda: self.session.run(feeds, out=out), self.device.synchronize)

        def waited() -> None:
            self.session.run(feeds, out=out)
            self.device.synchronize()

        latency = per_run(waited, lambda: None, 0.2)
        profile = self.session.profile(feeds)
        least = sum((r.roofline or 0.0) * r.seconds for r in profile.rows)
        return {
            "seconds": seconds, "latency": latency, "build seconds": built, "layers sum": profile.seconds,
            "roofline": least / seconds, "profile": json.loads(profile.to_json()),
        }  # fmt: skip


def environment(device: Any) -> dict[str, Any]:
    found = {"device": device.name, "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")}
    found["ceilings"] = device.ceilings()
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
        "--format=csv,noheader",
    ]
    try:
        found["driver, clocks, power"] = subprocess.run(
            query, capture_output=True, text=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        found["driver, clocks, power"] = "unknown"
    try:
        import torch

        found["torch"] = torch.__version__
    except ImportError:
        found["torch"] = "none"
    return found


def plan_of(args: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    """What to measure, the most telling first: ours everywhere, then PyTorch on ResNet50, then the rest."""
    nets, batches = args.nets.split(","), [int(b) for b in args.batches.split(",")]
    contenders = args.contenders.split(",")
    if "compile" in contenders and nets[0] == "resnet50":
        yield from ((nets[0], b, c) for c in ("qir", "compile") for b in batches[:2])
    for contender in ("qir", "int_mm"):  # a network's plans share its weights: all batches of one, then the next
        if contender in contenders:
            yield from ((n, b, contender) for n in nets for b in batches)
    for contender in ("eager", "compile"):
        if contender in contenders:
            yield from ((n, b, contender) for b in batches for n in nets)


def measure(args: argparse.Namespace, device: Any) -> int:
    start, failed = time.perf_counter(), 0
    log = (args.out / "gpu.jsonl").open("a")
    cache: dict[str, Ours] = {}
    done: set[tuple[str, int, str]] = set()

    def write(line: dict[str, Any]) -> None:
        log.write(json.dumps(line) + "\n")
        log.flush()

    write({"environment": environment(device)})
    for net, batch, contender in plan_of(args):
        if (net, batch, contender) in done or (contender == "int_mm" and (net, batch) != (NETS[0], BATCHES[0])):
            continue
        done.add((net, batch, contender))
        if time.perf_counter() - start > args.seconds:
            print(f"{args.seconds} s are over; what is left begins with {net} {batch} {contender}")
            break
        head = {"net": net, "batch": batch, "contender": contender}
        try:
            if contender in ("qir", "int_mm") and net not in cache:
                cache.clear()  # one network's arenas at a time
                cache[net] = Ours(net, args.out, device)
            if contender == "int_mm":
                ours = cache[net]
                rows = ours.session.profile({ours.name: ours.tensors(batch)[0]}).rows
                for line in int_mm(ours.graph, {r.name: r.seconds for r in rows}, batch):
                    write({**head, **line})
                continue
            result = cache[net].measure(batch) if contender == "qir" else measure_torch(net, batch, contender)
            write({**head, **result})
            rate, ms = batch / result["seconds"], result["seconds"] * 1e3
            alone = f"alone {result['latency'] * 1e3:.3f} ms"
            print(f"{net:20} {batch:4} {contender:8} {ms:9.3f} ms a run, {rate:10.0f} images/s, {alone}", flush=True)
        except Exception as error:
            failed += 1
            write({**head, "error": f"{type(error).__name__}: {error}"[:500]})
            print(f"{net} {batch} {contender}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    log.close()
    return int(failed > 0)


def table(folder: Path) -> str:
    lines = [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]
    where = next(line["environment"] for line in reversed(lines) if "environment" in line)
    runs = {(r["net"], r["batch"], r["contender"]): r for r in lines if "seconds" in r and "layer" not in r}
    layers = [r for r in lines if "layer" in r]
    text = [
        "# CUDA runtime", "",
        "`python benchmarks/gpu.py` (`benchmarks/gpu_all.sh 2`): whole runs from device memory to device memory, "
        "images a second. Ratios over PyTorch's float16: above 1 is faster. `roof`: the least time that the device's "
        "ceilings allow for the layers, as a share of the time taken. `alone`: a single run, waited for.", "",
        "; ".join(f"{k} {v}" for k, v in where.items()), "",
        "| network | batch | qir, images/s | eager | compile | qir/eager | qir/compile | roof | alone, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for net in dict.fromkeys(n for n, _, _ in runs):
        for batch in sorted({b for n, b, _ in runs if n == net}):
            found = {c: runs.get((net, batch, c)) for c in ("qir", "eager", "compile")}
            rates = {c: batch / r["seconds"] if r else None for c, r in found.items()}
            mine = rates["qir"]
            cells = [f"{rates[c]:,.0f}" if rates[c] else "-" for c in found]
            cells += [f"{mine / r:.2f}" if mine and r else "-" for r in (rates["eager"], rates["compile"])]
            ours = found["qir"]
            cells += [f"{ours['roofline']:.1%}", f"{ours['latency'] * 1e3:.3f}"] if ours else ["-", "-"]
            text.append(f"| {net} | {batch} | {' | '.join(cells)} |")
    if layers:
        text += [
            "", f"## Layers of {layers[0]['net']} at batch {layers[0]['batch']}, beside torch._int_mm", "",
            "| layer | kernel | M x N x K | us | int_mm, us | int_mm / ours |",
            "| --- | --- | --- | ---: | ---: | ---: |",
        ]  # fmt: skip
        for r in layers:
            size, kernel = f"{r['m']} x {r['n']} x {r['k']}", "x".join(map(str, r["kernel"]))
            text.append(f"| {r['layer']} | {kernel} | {size} | {r['seconds'] * 1e6:.1f} | {r['int_mm'] * 1e6:.1f} "
                        f"| {r['int_mm'] / r['seconds']:.2f} |")  # fmt: skip
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"))
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--contenders", default="qir,eager,int_mm,compile")
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--prepare", action="store_true", help="only quantize and keep the models")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    code = 0
    if args.prepare:
        for net in args.nets.split(","):
            integer_network(net, args.out)
        return 0
    if not args.table:
        if args.device == "emulated":
            from qir.runtime.cuda.device.emulated import EmulatedDevice

            device: Any = EmulatedDevice()
        else:
            from qir.runtime.cuda.device.cupy_device import CupyDevice

            device = CupyDevice()
        code = measure(args, device)
    (args.out / "gpu.md").write_text(table(args.out))
    return code


if __name__ == "__main__":
    sys.exit(main())
