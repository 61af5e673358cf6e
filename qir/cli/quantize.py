"""`qir quantize`: float ONNX -> integer-only ONNX."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from qir.errors import DataError
from qir.graph import Graph
from qir.io import save
from qir.passes.data import batches

from . import data, show


def main(args: argparse.Namespace) -> int:
    output = data.writable(args.output, args.model, *([args.data] if args.data else []))
    for path in (args.ranges, args.report):
        if path:
            data.writable(path, args.model)
    start = time.perf_counter()
    graph = data.load_model(args.model, args.input_shape)
    with ExitStack() as stack:
        executor = stack.enter_context(ProcessPoolExecutor(args.jobs)) if args.jobs > 1 else None
        integer, report, ranges = quantized(args, graph, executor)
    save(integer, output, opset=args.opset, io=args.io)
    if args.ranges:
        ranges.save(args.ranges)
    if args.report:
        args.report.write_text(report.to_json() + "\n", encoding="utf-8")
    if args.verbose:
        show.say(str(report))
    notes = [note for one in report.passes for note in one.notes]
    for note in notes[:8]:
        show.say(f"note: {note}")
    if len(notes) > 8:
        show.say(f"note: {len(notes) - 8} more notes in --report FILE.json")
    before, after = args.model.stat().st_size, output.stat().st_size
    show.say(
        f"wrote {output}: integers only, {show.size(after)} (was {show.size(before)}), "
        f"{time.perf_counter() - start:.1f} s"
    )
    show.say(f"next: qir compare {args.model} {output} --data ...")
    return 0
