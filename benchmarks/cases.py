#!/usr/bin/env python3
"""Networks from the field, one a line: accepted or refused and why, SQNR beside the float network, equal bits.

    python benchmarks/cases.py [--only TEXT] [--recipe w8a8] [--cuda] [--out cases.md]

Models and data are those of the kit next to the tree (`shared/cases`, `shared/kit/transformers`).  Each runs in a
process of its own with a time limit; results go to a .jsonl beside the table, a line a model, so that `--only` renews
some of them; `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
LIMIT = 400
"""Seconds that one model may take."""

Feeds = dict[str, np.ndarray]


def models() -> Iterator[tuple[str, Path]]:
    """(name, file) of every model."""
    for path in sorted((SHARED / "cases").glob("**/model.onnx")):
        yield str(path.parent.relative_to(SHARED)), path
    root = SHARED / "kit" / "transformers"
    for path in [*sorted((root / "exports").glob("*.onnx")), *sorted(root.glob("*.onnx"))]:
        yield str(path.relative_to(root).with_suffix("")), path


def data_of(name: str, path: Path) -> tuple[Feeds, Feeds, dict[str, int]]:
    """(calibration data, test data, the batch axis of each input)."""
    folder, model = path.parent, onnx.load(path, load_external_data=False)
    if (folder / "calib.npz").exists():
        return dict(np.load(folder / "calib.npz")), dict(np.load(folder / "test.npz")), {}
    if (folder / "data.npz").exists():
        given = dict(np.load(folder / "data.npz"))
        axes = {"x": 1} if name.endswith("lstm") else {}
        cut = {k: np.split(v, 2, axis=axes.get(k, 0)) for k, v in given.items()}
        return {k: v[0] for k, v in cut.items()}, {k: v[1] for k, v in cut.items()}, axes
    kinds = {
        "minilm.ts14": "minilm", "minilm.dy20": "minilm", "minilm_sentence.ts17": "minilm_sentence",
        "vit_s_focus": "vit_s_focus", "ppocrv4_rec": "ppocrv4_rec",
    }  # fmt: skip
    if name in kinds:
        spec = importlib.util.spec_from_file_location("evaluate", folder / "evaluate.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        known = {i.name for i in model.graph.input}
        parts = [module.load(kinds[name], split, 16) for split in ("calib", "test")]
        return *({k: v for k, v in part.items() if k in known} for part in parts), {}  # type: ignore[return-value]
    return *(_invented(model, path, seed) for seed in (0, 1)), {}  # type: ignore[return-value]


def _invented(model: onnx.ModelProto, path: Path, seed: int) -> Feeds:
    """Normal numbers, tokens, and masks of random lengths."""
    rng = np.random.default_rng(seed)
    reference = path.with_name(path.stem + ".ref.npz")
    given = dict(np.load(reference)) if reference.exists() else {}
    feeds: Feeds = {}
    count, constants = 16, {i.name for i in model.graph.initializer}
    for info in model.graph.input:
        if info.name in constants:
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        shape = list(given[info.name].shape) if info.name in given else [d or 16 for d in shape]
        shape[0] = count
        if "mask" in info.name:
            lengths = rng.integers(shape[1] // 3, shape[1] + 1, size=(count, 1))
            array = (np.arange(shape[1])[None] < lengths).astype(np.int64)
        elif kind.elem_type == onnx.TensorProto.INT64:
            top = int(given[info.name].max()) if info.name in given else 1
            array = rng.integers(0, top + 1, size=shape)
        else:
            array = rng.normal(size=shape)
        feeds[info.name] = array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


def float_outputs(path: Path, feeds: Feeds, axes: dict[str, int]) -> Feeds:
    """What onnxruntime computes of the file as it is, sample by sample where its batch is fixed."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    inputs = {i.name: i for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    fed = {k: v for k, v in feeds.items() if k in inputs}
    if any(fed[k].ndim == len(i.shape) + 1 for k, i in inputs.items() if k in fed):
        count = max(len(v) for k, v in fed.items() if v.ndim == len(inputs[k].shape) + 1)
        rows = [{k: _row(v, len(inputs[k].shape), i) for k, v in fed.items()} for i in range(count)]
        made = [list(map(np.asarray, session.run(None, row))) for row in rows]
        return {n: np.stack([r[i] for r in made]) for i, n in enumerate(names)}
    fixed = [i for k, i in inputs.items() if k in fed and i.shape and not axes and i.shape[0] == 1]
    if not fixed or len(fixed) < len(fed):
        return dict(zip(names, map(np.asarray, session.run(None, fed)), strict=True))
    runs = [
        list(map(np.asarray, session.run(None, {k: v[i : i + 1] for k, v in fed.items()})))
        for i in range(len(next(iter(fed.values()))))
    ]
    return {n: np.concatenate([r[i] for r in runs]) for i, n in enumerate(names)}


def outputs(session: Any, feeds: Feeds) -> Feeds:
    """What a qir session computes, sample by sample where the graph's batch is fixed to one, or where it has none."""
    inputs = session.graph.inputs
    fed = {v.name: feeds[v.name] for v in inputs}
    if any(fed[v.name].ndim == len(v.shape) + 1 for v in inputs):
        count = max(len(fed[v.name]) for v in inputs if fed[v.name].ndim == len(v.shape) + 1)
        rows = [{v.name: _row(fed[v.name], len(v.shape), i) for v in inputs} for i in range(count)]
        runs = [session.run(row) for row in rows]
        return {k: np.stack([r[k] for r in runs]) for k in runs[0]}
    sizes = {len(fed[v.name]) for v in inputs if v.shape}
    if sizes == {1} or not all(v.shape[:1] == (1,) for v in inputs):
        return session.run(fed)
    runs = [session.run({k: v[i : i + 1] for k, v in fed.items()}) for i in range(sizes.pop())]
    return {k: np.concatenate([r[k] for r in runs]) for k in runs[0]}


def _row(array: np.ndarray, rank: int, index: int) -> np.ndarray:
    """One sample of an input of a graph without a batch."""
    return array[index] if array.ndim == rank + 1 else array


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    """Decibels; infinities of the float network count where they agree."""
    w, g = want.astype(np.float64), got.astype(np.float64)
    keep = np.isfinite(w)
    noise, signal = float(((w - g)[keep] ** 2).sum()), float((w[keep] ** 2).sum())
    return 99.0 if noise == 0 else round(10 * float(np.log10(max(signal, 1e-30) / noise)), 1)


def opened(path: Path, calib: Feeds) -> tuple[Any, str]:
    """The graph; with the sizes of the data where qir does not take the file's open ones."""
    import qir
    from qir import errors

    try:
        return qir.load(path), ""
    except errors.ModelError as error:
        if "not fixed" not in str(error) and "open" not in str(error):
            raise
    shapes = {k: ("N", *v.shape[1:]) for k, v in calib.items() if v.ndim}
    return qir.load(path, input_shapes=shapes), "sizes given"


def run(name: str, path: Path, recipe: str, cuda: bool, as_float: bool = False) -> dict[str, Any]:
    """One line of the table."""
    import qir
    from qir import errors
    from qir.io import audit, save
    from qir.runtime import Session
    from qir.runtime.measure.exactness import exactness

    calib, test, axes = data_of(name, path)
    row: dict[str, Any] = {"name": name}
    start = time.perf_counter()
    try:
        graph, row["note"] = opened(path, calib)
        if graph.stage is qir.Stage.FLOAT and as_float:
            row["float"] = min(
                sqnr(w, g)
                for w, g in zip(
                    float_outputs(path, test, axes).values(),
                    outputs(Session(graph, "reference"), test).values(),
                    strict=True,
                )
            )
        integer, _ = qir.quantize(graph, {k: calib[k] for k in calib if k in graph}, recipe=recipe)
    except errors.QirError as error:
        return row | {"refused": f"{type(error).__name__}: {error}", "seconds": round(time.perf_counter() - start, 1)}
    row["seconds"] = round(time.perf_counter() - start, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "integer.onnx"
        save(integer, file)
        row["offences"] = list(map(str, audit(onnx.load(file))))
    got = outputs(Session(integer, "onnxruntime"), test)
    want = float_outputs(path, test, axes)
    mask = next((v.astype(bool) for k, v in test.items() if "mask" in k), None)
    row["sqnr"] = {}
    for name, w in want.items():
        if name in got:
            kept = mask if mask is not None and w.ndim == 3 and w.shape[:2] == mask.shape else ...
            row["sqnr"][name] = sqnr(w[kept], got[name][kept])  # what stands for padding does not count
    few: Feeds = {}
    for value in integer.inputs:
        array, axis = test[value.name], axes.get(value.name, 0)
        if array.ndim == len(value.shape) + 1:
            few[value.name] = array[0]
        else:
            few[value.name] = np.take(array, range(min(array.shape[axis], 4)), axis) if array.ndim else array
    if integer.inputs and not axes and all(v.shape[:1] == (1,) for v in integer.inputs):
        few = {k: v[:1] for k, v in few.items()}
    row["exact"] = {
        b: exactness(integer, few, backends=("reference", b), step=1 << 20).exact for b in ("onnxruntime", "cpu")
    }
    if cuda:
        from qir.runtime.cuda.device.emulated import EmulatedDevice

        session = Session(integer, "cuda", device=EmulatedDevice())
        reference = Session(integer, "reference").run(few)
        row["exact"]["cuda"] = all(np.array_equal(v, reference[k]) for k, v in session.run(few).items())
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Networks from the field", "",
        "Written by `python benchmarks/cases.py`. SQNR is the worst output's, beside onnxruntime on the float file, on",
        "data that calibration did not see; exact: equal bits on every tensor (reference, onnxruntime, cpu).", "",
        f"{sum('sqnr' in r for r in rows)} of {len(rows)} accepted.", "",
        "| network | SQNR, dB | exact | s | note |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for r in rows:
        if "sqnr" in r:
            exact = "yes" if all(r["exact"].values()) else ", ".join(k for k, v in r["exact"].items() if not v) + " no"
            note = "; ".join(filter(None, [r.get("note", ""), "; ".join(r["offences"])[:150]]))
            lines.append(f"| {r['name']} | {min(r['sqnr'].values())} | {exact} | {r['seconds']} | {note} |")
        else:
            why = (r.get("refused") or r.get("failed", "")).replace("|", "/").replace("\n", " ")
            kind = "refused" if "refused" in r else "**fails**"
            lines.append(f"| {r['name']} | {kind} | | {r.get('seconds', '')} | {why[:400]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names that hold this text, or several with commas between")
    parser.add_argument("--recipe", default="w8a8")
    parser.add_argument("--cuda", action="store_true", help="the emulated CUDA executor too (slow)")
    parser.add_argument("--float", action="store_true", help="qir's float graph beside onnxruntime, too")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "cases.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one[0], Path(args.one[1]), args.recipe, args.cuda, args.float)))
        return
    log = args.out.with_suffix(".jsonl")
    known = {r["name"]: r for r in map(json.loads, log.read_text().splitlines())} if log.exists() else {}
    chosen = [(n, p) for n, p in models() if any(t in n for t in args.only.split(","))]
    for name, path in [] if args.table else chosen:
        command = [sys.executable, __file__, "--one", name, str(path), "--recipe", args.recipe]
        try:
            done = subprocess.run(
                command + ["--cuda"] * args.cuda + ["--float"] * args.float,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
            lines = done.stdout.splitlines()
            row = json.loads(lines[-1]) if lines and done.returncode == 0 else {}
            row = row or {"name": name, "failed": " ".join(done.stderr.splitlines()[-1:]) or "no output"}
        except subprocess.TimeoutExpired:
            row = {"name": name, "failed": f"takes over {LIMIT} s"}
        known[name] = row
        what = row.get("sqnr") or row.get("refused") or row.get("failed")
        print(f"{name:45} {row.get('seconds', ''):>6} {row.get('float', '')!s:>6} {str(what)[:150]}", flush=True)
        log.write_text("".join(json.dumps(known[n]) + "\n" for n, _ in models() if n in known))
    args.out.write_text(table([known[n] for n, _ in models() if n in known]))


if __name__ == "__main__":
    main()
