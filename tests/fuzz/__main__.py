"""python -m tests.fuzz --minutes 30 --seed 1 [--keep FOLDER]      mutate and count what must not happen
python -m tests.fuzz --files FOLDER                              what each file of a folder does, as a table
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from .corpus import corpus
from .exercise import SUFFIX
from .mutate import mutated
from .pool import Report, Worker

WORDS = {"ranges": "ranges", "latency": "latency", "sensitivity": "sensitivity", "recipe": "recipe", "Graph": "graph"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="one kind of file")
    parser.add_argument("--keep", type=Path, help="folder for the files that showed something")
    parser.add_argument("--files", type=Path, help="do not mutate: exercise these files and print a table")
    args = parser.parse_args()
    return table(args.files) if args.files else fuzz(args.minutes, args.seed, args.keep, args.only)


def fuzz(minutes: float, seed: int, keep: Path | None, only: str | None) -> int:
    samples = [s for s in corpus(seed) if only in (None, s.kind)]
    models = [s for s in samples if s.kind == "model"]
    others = [s for s in samples if s.kind != "model"]
    rng, worker = random.Random(seed), Worker()
    found: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    signatures: Counter[str] = Counter()
    count, slowest, peak = 0, 0.0, 0
    end = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            sample = rng.choice(models if models and (not others or rng.random() < 0.7) else others)
            path = Path(folder) / f"case.{SUFFIX.get(sample.kind, 'json')}"
            path.write_bytes(mutated(sample, rng))
            report = worker.ask(sample.kind, path)
            count += 1
            slowest, peak = max(slowest, report.seconds), max(peak, report.peak)
            refused[report.outcome.split(":")[0].split("(")[0]] += 1
            if report.finding:
                found[report.finding] += 1
                signature = f"{report.finding} {sample.kind} {report.outcome.split(':')[0]} {report.where}"
                signatures[signature] += 1
                if signatures[signature] == 1:
                    print(f"case {count}: {signature}: {report.outcome[:300]}", flush=True)
                    if keep is not None:
                        keep.mkdir(parents=True, exist_ok=True)
                        name = f"{seed}.{count}.{report.finding}.{sample.kind}.{SUFFIX.get(sample.kind, 'json')}"
                        (keep / name).write_bytes(path.read_bytes())
    worker.close()
    print(f"\nseed {seed}, {minutes:g} minutes, {count} cases from {len(samples)} samples")
    for name in ("untyped", "hang", "died", "disagreement", "memory"):
        print(f"{name:14}{found[name]}")
    print(f"slowest {slowest:.1f} s, largest {peak / 2**20:.0f} MB")
    print("outcomes: " + ", ".join(f"{name} {n}" for name, n in refused.most_common(12)))
    for signature, n in signatures.most_common():
        print(f"{n:6} {signature}")
    return 1 if found else 0


def kind_of(path: Path) -> str:
    if path.is_dir():
        return "images"
    if path.suffix in (".onnx", ".npy", ".npz"):
        return {"onnx": "model"}.get(path.suffix[1:], path.suffix[1:])
    return next(kind for word, kind in WORDS.items() if path.name.startswith(word))


def table(folder: Path) -> int:
    """All in one process: starting one for each, and its kernels, would take most of the time."""
    worker, bad = Worker(limit_s=60.0), 0
    paths = [p for p in sorted(folder.iterdir()) if p.name not in ("README.md", "text")]
    paths += sorted((folder / "text").iterdir()) if (folder / "text").is_dir() else []
    for path in paths:
        report = worker.ask(kind_of(path), path)
        wrong = bool(report.finding) or report.seconds > 5 or report.peak > 1 << 30
        bad += wrong
        print(row(path.name, report, wrong), flush=True)
    worker.close()
    print(f"{len(paths)} files, {bad} not within 5 s, 1 GB and an error of ours")
    return 1 if bad else 0


def row(name: str, report: Report, wrong: bool) -> str:
    mark = "!" if wrong else " "
    return f"{mark} {name[:38]:38} {report.seconds:6.2f} s {report.peak / 2**20:6.0f} MB  {report.outcome[:110]}"


if __name__ == "__main__":
    raise SystemExit(main())
