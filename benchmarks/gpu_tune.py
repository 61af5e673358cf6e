#!/usr/bin/env python3
"""Makes the tuning table that ships for a GPU: `python benchmarks/gpu_tune.py [--out FOLDER] [--seconds 400]`.

Tunes the papers' networks at the usual batch sizes on the GPU of this machine and writes FOLDER/<device>.json, which
belongs into runtime/cuda/tables/ (default: there).  Layer shapes measured before (FOLDER/tuning-*.json) are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from gpu import BATCHES, NETS, integer_network

from qir.runtime.cuda import tuning
from qir.runtime.cuda.session import Cuda

HERE = Path(__file__).resolve().parent
TABLES = HERE.parent / "runtime" / "cuda" / "tables"


def device_of(name: str) -> Any:
    if name == "emulated":
        from qir.runtime.cuda.device.emulated import EmulatedDevice

        return EmulatedDevice(clock=lambda launch: 1e-6)
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    return CupyDevice()


def ship(device: Any, raw: Path, out: Path) -> str:
    """Write the table of all that was measured so far."""
    measured = json.loads(tuning.TuningTable(device.name, raw).path.read_text())
    entries = {k: {"choice": v["choice"], "seconds": {}} for k, v in measured["entries"].items()}
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{tuning.slug(device.name)}.json"
    fresh = target.with_suffix(".fresh")
    fresh.write_text(json.dumps({**measured, "entries": entries}, indent=1, sort_keys=True) + "\n")
    fresh.replace(target)
    return f"{len(entries)} layer shapes in {target}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLES)
    parser.add_argument("--work", type=Path, default=Path("gpu_results"), help="integer models and raw measurements")
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    args = parser.parse_args()
    device, start, raw = device_of(args.device), time.perf_counter(), args.work / "tables"
    pairs = [(net, int(batch)) for net in args.nets.split(",") for batch in args.batches.split(",")]
    written = ""
    for number, (net, batch) in enumerate(pairs):
        if time.perf_counter() - start > args.seconds:
            print(f"{args.seconds} s are over before {net} at batch {batch}; {len(pairs) - number} are left")
            break
        begin = time.perf_counter()
        Cuda(integer_network(net, args.work), device, tune=raw).prepare(batch)
        written = ship(device, raw, args.out)  # each time: what follows may be cut short
        print(f"{net} {batch}: {time.perf_counter() - begin:.1f} s", flush=True)
    print(written)
    return int(not written)


if __name__ == "__main__":
    sys.exit(main())
