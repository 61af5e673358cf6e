"""`qir bench`: how fast a model runs, layer by layer if wanted."""

from __future__ import annotations

import argparse

from qir.files import write_text
from qir.runtime import Session
from qir.runtime.measure.bench import bench, random_feeds
from qir.runtime.measure.latency import latency_table, save_table

from . import show
from .data import backend as chosen
from .data import load_model


def main(args: argparse.Namespace) -> int:
    graph = load_model(args.model, args.input_shape)
    backend = chosen(args, graph)
    rows = bench(
        graph, backend=backend, against=args.against, batch=args.batch, seconds=args.seconds, threads=args.threads
    )
    cells = [
        [r.name, r.batch, f"{r.median * 1e3:.3f}", f"{r.best * 1e3:.3f}", f"{r.per_sample:.3f}", f"{r.ratio:.2f}"]
        for r in rows
    ]
    heads = ("backend", "batch", "median ms", "best ms", "ms/sample", f"time / {rows[0].name}")
    show.say(show.table(cells, heads, "lrrrrr"))
    if args.profile or args.json:
        session = Session(graph, backend)
        profile = session.profile(random_feeds(graph, args.batch))
        if args.profile:
            show.say()
            show.say(str(profile))
        if args.json:
            write_text(args.json, profile.to_json())
            show.say(f"wrote {args.json}")
    if args.latency_table:
        table = latency_table(graph, backend, batch=args.batch)
        save_table(table, args.latency_table)
        show.say(f"wrote {args.latency_table}: {len(table)} layers with 4- and 8-bit weights")
    return 0
