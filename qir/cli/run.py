"""`qir run`: a model on data."""

from __future__ import annotations

import argparse
import time

import numpy as np

from qir.files import aside
from qir.graph import Graph
from qir.runtime import Session
from qir.types import Array

from . import data, show


def main(args: argparse.Namespace) -> int:
    output = data.writable(args.output, args.model, args.data) if args.output else None
    graph = data.load_model(args.model, args.input_shape)
    session = Session(graph, data.backend(args, graph))
    batches = data.feeds(args, graph, "running")
    start = time.perf_counter()
    results = data.collect(session.run(feeds) for feeds in batches)
    seconds = time.perf_counter() - start
    if args.dequantize:
        results = {name: dequantized(graph, name, array) for name, array in results.items()}
    samples = len(next(iter(results.values())))
    show.say(f"{samples} samples in {seconds:.2f} s with {session.backend}")
    show.say(
        show.table([describe(n, a) for n, a in results.items()], ("output", "dtype", "shape", "min", "max", "mean"))
    )
    if output:
        with aside(output) as part, part.open("wb") as file:  # a file, because np.savez adds a suffix to names
            np.savez(file, **results)  # pyright: ignore[reportArgumentType]  # outputs may have any name
        show.say(f"wrote {output}")
    return 0


def dequantized(graph: Graph, name: str, array: Array) -> Array:
    quant = graph.value(name).quant
    return array if quant is None else quant.dequantize(array).astype(np.float32)


def describe(name: str, array: Array) -> tuple[str, ...]:
    numbers = (array.min(), array.max(), array.mean()) if array.size else ("-", "-", "-")
    texts = (n if isinstance(n, str) else f"{float(n):.6g}" for n in numbers)
    return name, str(array.dtype), "x".join(map(str, array.shape)), *texts
