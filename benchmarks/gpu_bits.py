#!/usr/bin/env python3
"""Bits of the CUDA runtime against the reference, on whole networks.

    python benchmarks/gpu_bits.py prepare FOLDER [--kit KIT]   anywhere: integer models, inputs, the reference's digests
    python benchmarks/gpu_bits.py check FOLDER                 on a GPU: the same digests?
    python benchmarks/gpu_bits.py steady [--runs 10000]        on a GPU: does run() leave memory as it was?

`prepare` quantizes the bundled networks, random ones and, with --kit, the developers' real networks by every recipe,
and writes a SHA-256 of every tensor that the reference (NumPy) computes on 64 samples; it goes on where an earlier call
in the same folder stopped.  `check` runs each model twice:
every tensor fetched, which keeps all layers apart, and the outputs alone, which fuses them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import qir
from qir import models
from qir.runtime import Session
from qir.runtime.measure.exactness import computed
from qir.testing import Dice, random_network

RECIPES = ("w8a8", "w8a8_per_tensor", "w4a8", "w4a4")
STEP = 8
RANDOM = 12


def digest_of() -> Any:
    return hashlib.sha256()


def add(digest: Any, array: Any) -> None:
    digest.update(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())


def parts(x: dict[str, Any], step: int) -> list[dict[str, Any]]:
    count = min(len(a) for a in x.values())
    return [{k: a[i : i + step] for k, a in x.items()} for i in range(0, count - count % step or count, step)]


def float_network(net: str, kit: Path | None, samples: int) -> tuple[Any, Any, dict[str, Any], int]:
    """(graph, calibration data, inputs, samples of a run) of "digits_*", "random_7", or a network of the kit."""
    if net.startswith("random_"):
        network = random_network(Dice(int(net.removeprefix("random_"))))
        return network.graph, [network.feeds(4)], network.feeds(samples, salt=1), STEP
    if net in models.bundled():
        data = models.digits()
        graph = qir.load(str(models.bundled_path(net)))
        return graph, data.calibration[:64], {graph.inputs[0].name: data.test[:samples]}, STEP
    sys.path.insert(0, str(Path(__file__).parent))
    import exactness

    if kit is not None:
        exactness.KIT = kit
    graph = exactness.load_network(net)
    evaluate = exactness.kit_module()
    x = np.ascontiguousarray(evaluate.load(net, "dev", samples)[0])
    batch = graph.inputs[0].shape[0]
    return (
        graph,
        evaluate.load(net, "calib", 32)[0],
        {graph.inputs[0].name: x},
        batch if isinstance(batch, int) else STEP,
    )


def prepare_one(net: str, recipe: str, folder: Path, kit: Path | None, samples: int) -> dict[str, Any]:
    """One model with its digests; an error is a result, too."""
    start = time.perf_counter()
    entry: dict[str, Any] = {"net": net, "recipe": recipe}
    try:
        graph, data, x, step = float_network(net, kit, samples)
        integer, _ = qir.quantize(graph, data, recipe=recipe, batch_size=min(step, 4))
        qir.save(integer, folder / f"{net}.{recipe}.onnx")
        integer = qir.load(str(folder / f"{net}.{recipe}.onnx"))
        if not (folder / f"{net}.npz").exists():
            fresh = folder / f"{net}.{os.getpid()}.npz"
            np.savez_compressed(fresh, **x)
            fresh.replace(folder / f"{net}.npz")
        digests = {name: digest_of() for name in computed(integer)}
        session = Session(integer, "reference")
        for part in parts(x, step):
            for name, array in session.run(part, outputs=list(digests)).items():
                add(digests[name], array)
        entry.update(step=step, samples=min(len(a) for a in x.values()))
        entry["digests"] = {name: d.hexdigest() for name, d in digests.items()}
    except Exception as error:
        entry["error"] = f"{type(error).__name__}: {error}"[:300]
    return {**entry, "seconds": round(time.perf_counter() - start, 1)}


def known(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What has been prepared in a folder, by network and recipe; failures are left out."""
    path = folder / "expected.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(e["net"], e["recipe"]): e for e in lines if "digests" in e}


def prepare(args: argparse.Namespace) -> int:
    args.folder.mkdir(parents=True, exist_ok=True)
    kit = args.kit if args.kit and (args.kit / "nets.json").exists() else None
    nets = [*sorted(models.bundled()), *(f"random_{i}" for i in range(args.random))]
    nets += sorted((p.stem for p in (kit / "models").glob("*.onnx")), reverse=True) if kit else []
    jobs = [(n, r) for n in (args.nets.split(",") if args.nets else nets) for r in args.recipes.split(",")]
    jobs = [job for job in jobs if job not in known(args.folder)]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(prepare_one, n, r, args.folder, kit, args.samples) for n, r in jobs]
        with (args.folder / "expected.jsonl").open("a") as log:
            for done in as_completed(waiting):
                entry = done.result()
                log.write(json.dumps(entry) + "\n")
                log.flush()
                print(entry["net"], entry["recipe"], entry.get("error", f"{entry['seconds']} s"), flush=True)
    return 0


def device_of(args: argparse.Namespace) -> Any:
    if args.device == "emulated":
        from qir.runtime.cuda.device.emulated import EmulatedDevice

        return EmulatedDevice()
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    return CupyDevice()


def check_one(entry: dict[str, Any], folder: Path, device: Any) -> dict[str, Any]:
    start = time.perf_counter()
    result = {k: entry[k] for k in ("net", "recipe", "samples")} | {"tensors": len(entry["digests"])}
    try:
        graph = qir.load(str(folder / f"{entry['net']}.{entry['recipe']}.onnx"))
        with np.load(folder / f"{entry['net']}.npz") as file:
            x = {k: file[k] for k in file.files}
        session = Session(graph, "cuda", device=device)
        wrong: dict[str, list[str]] = {}
        outputs = [v.name for v in graph.outputs]
        for mode, names in (("every tensor", list(entry["digests"])), ("outputs", outputs)):
            digests = {name: digest_of() for name in names}
            for part in parts(x, entry["step"]):
                for name, array in session.run(part, outputs=None if mode == "outputs" else names).items():
                    add(digests[name], array)
            wrong[mode] = [
                n for n, d in digests.items() if n in entry["digests"] and d.hexdigest() != entry["digests"][n]
            ]
        result["differing"] = {mode: len(names) for mode, names in wrong.items()}
        result["first"] = next((names[0] for names in wrong.values() if names), None)
        result["exact"] = not any(wrong.values())
    except Exception as error:
        result |= {"exact": False, "error": f"{type(error).__name__}: {error}"[:500]}
        traceback.print_exc()
    return {**result, "seconds": round(time.perf_counter() - start, 2)}


def check(args: argparse.Namespace) -> int:
    device = device_of(args)
    if args.no_pool:
        device.cupy.cuda.set_allocator(None)
    entries = known(args.folder)
    bad = 0
    with args.out.open("w") as log:
        for entry in entries.values():
            result = check_one(entry, args.folder, device)
            bad += not result["exact"]
            log.write(json.dumps({"device": device.name, **result}) + "\n")
            log.flush()
            state = "exact" if result["exact"] else f"DIFFERS {result.get('first') or result.get('error')}"
            print(
                f"{entry['net']:28} {entry['recipe']:16} {entry['samples']:4} {state} {result['seconds']} s", flush=True
            )
    print(f"{len(entries) - bad} of {len(entries)} models bit-identical on {device.name}")
    return int(bad > 0 or not entries)


def memory(device: Any) -> dict[str, int]:
    """What grows if a run allocates: bytes on the device, of the pool, and of this process."""
    found = {"resident": int(Path("/proc/self/statm").read_text().split()[1]) * 4096}
    if hasattr(device, "cupy"):
        pool = device.cupy.get_default_memory_pool()
        free, _ = device.cupy.cuda.runtime.memGetInfo()
        pinned = device.cupy.get_default_pinned_memory_pool()
        found |= {"pool": pool.total_bytes(), "used": pool.used_bytes(), "free on device": free}
        found |= {"free pinned blocks": pinned.n_free_blocks()}
    else:
        found |= {"allocations": device.allocations, "graphs": device.recordings}
    return found


def steady(args: argparse.Namespace) -> int:
    """Many runs from host memory, then from device memory: nothing but the resident set may move, and that a little."""
    device = device_of(args)
    data = models.digits()
    graph, _ = qir.quantize(str(models.bundled_path("digits_residual")), data.calibration[:64])
    name, x = graph.inputs[0].name, np.ascontiguousarray(data.test[: args.batch])
    session = Session(graph, "cuda", device=device)
    session.executor.prepare(len(x))
    want = session.run({name: x})
    output = next(iter(want))
    on_device: Any = None
    if hasattr(device, "cupy"):
        on_device = device.cupy.asarray(x), device.cupy.asarray(want[output])
    bad = 0
    for kind in ("host", "device") if on_device else ("host",):
        feeds, out = ({name: x}, None) if kind == "host" else ({name: on_device[0]}, {output: on_device[1]})
        for _ in range(20):
            session.run(feeds, out=out)
        device.synchronize()
        before, start = memory(device), time.perf_counter()
        for _ in range(args.runs):
            session.run(feeds, out=out)
        device.synchronize()
        seconds, after = time.perf_counter() - start, memory(device)
        moved = {k: after[k] - v for k, v in before.items() if k != "resident" and after[k] != v}
        grown = after["resident"] - before["resident"]
        bad += bool(moved) or grown > 16 << 20
        line = {"kind": kind, "runs": args.runs, "microseconds a run": round(seconds / args.runs * 1e6, 1)}
        print(json.dumps({**line, "moved": moved, "resident grown": grown, "after": after}), flush=True)
    same = np.array_equal(session.run({name: x})[output], want[output])
    return int(bad > 0 or not same)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare")
    one.set_defaults(run=prepare)
    one.add_argument("folder", type=Path)
    one.add_argument("--kit", type=Path, default=Path(os.environ["QIR_KIT"]) if "QIR_KIT" in os.environ else None)
    one.add_argument("--nets", default="")
    one.add_argument("--recipes", default=",".join(RECIPES))
    one.add_argument("--samples", type=int, default=64)
    one.add_argument("--random", type=int, default=RANDOM)
    one.add_argument("--workers", type=int, default=os.cpu_count())
    two = commands.add_parser("check")
    two.set_defaults(run=check)
    two.add_argument("folder", type=Path)
    two.add_argument("--out", type=Path, default=Path("gpu_bits.jsonl"))
    two.add_argument(
        "--no-pool", action="store_true", help="an allocation of the driver for each: memcheck sees its end"
    )
    three = commands.add_parser("steady")
    three.set_defaults(run=steady)
    three.add_argument("--runs", type=int, default=10_000)
    three.add_argument("--batch", type=int, default=32)
    for command in (two, three):
        command.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
