"""`qir search`: the bits of each layer under limits on size, BOPS or latency."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from qir.errors import QuantizationError
from qir.files import write_text
from qir.graph import Graph
from qir.io import save
from qir.passes.calibration.collect import calibrate
from qir.passes.calibration.data import batches
from qir.passes.mixed_precision.assign_bits import import_pulp
from qir.passes.mixed_precision.cost_model import Bits, LatencyTable, parse_bits
from qir.passes.mixed_precision.search import SearchResult, curve, load_latency, search
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.pipeline import run_recipe
from qir.passes.quantization.insert_qdq import linear_nodes
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipe_files import as_toml
from qir.passes.recipes import Recipe, recipe_of
from qir.runtime import BACKENDS
from qir.runtime.measure.latency import latency_table, save_table

from . import data, show
from .needs import need, need_backend

LIMITS = {
    "size": "size_limit",
    "bops": "bops",
    "latency": "latency_limit",
    "linear": "linear",
    "quadratic": "quadratic",
}


def main(args: argparse.Namespace) -> int:
    for path in (args.output, args.plot, args.pareto, args.save_sensitivity, args.save_latency):
        if path:
            data.writable(path, args.model, args.data)
    need("pulp", "search")
    import_pulp()
    if args.plot or args.pareto:
        need("matplotlib", "--plot and --pareto")
    need_backend(args.latency)
    limits = {cost: getattr(args, option) for cost, option in LIMITS.items() if getattr(args, option) is not None}
    if not limits:
        raise QuantizationError("no limit given", hint="e.g. --size 0.75x, --bops 20G, --latency-limit 3ms")
    recipe = recipe_of(args.recipe)
    if args.strip_softmax:
        recipe = recipe.but(strip_softmax=True)
    graph = data.load_model(args.model, args.input_shape)
    feeds = batches(data.source(args, graph), graph, batch_size=args.batch, samples=args.samples)
    prepared, _ = recipe.prepare.run(graph)
    choices = tuple(parse_bits(text) for text in args.choices.split(",")) if args.choices else None
    pinned = {name: parse_bits(bits) for name, bits in args.pin}
    forbidden: dict[str, set[Bits]] = {}
    for name, bits in args.forbid:
        forbidden.setdefault(name, set()).add(parse_bits(bits))
    known = Sensitivity.load(args.sensitivity) if args.sensitivity else None
    ranges = calibrate(
        prepared, data.shown(feeds, args.batch, "calibrating"), method=recipe.method, bits=(4, 8),
        options=recipe.range_options,
    )  # fmt: skip
    few = batches(data.source(args, graph), graph, batch_size=args.batch, samples=min(args.samples or 64, 64))
    found = search(
        prepared, data.shown(few, args.batch, "measuring sensitivity"), ranges, limits, measure=args.measure,
        choices=choices, sensitivity=known, latency=_latency(args, prepared, recipe, ranges),
        pinned=pinned, forbidden=forbidden, residual_groups=args.residual_groups, loss=args.loss,
    )  # fmt: skip
    show.say(found.text())
    _keep(args, found, next(iter(limits)))
    if args.output and args.output.suffix == ".toml":
        write_text(args.output, as_toml(recipe, found.layers))
        show.say(f"wrote {args.output}: qir quantize {args.model} --recipe {args.output}")
    elif args.output:
        done = run_recipe(replace(recipe, layers=found.layers), graph, feeds)
        save(done.graph, args.output)
        show.say(f"wrote {args.output}: integers only, mixed precision")
    return 0


def _latency(args: argparse.Namespace, prepared: Graph, recipe: Recipe, ranges: Ranges) -> LatencyTable | None:
    """The table given, by node or by the tensor that a layer yields; or one measured on the backend that is named."""
    if args.latency is None:
        return None
    if args.latency not in BACKENDS:
        known = {n.output.name: n.name for n in linear_nodes(prepared)}
        return {known.get(name, name): row for name, row in load_latency(Path(args.latency)).items()}
    plain = replace(recipe, weight_bits=8, activation_bits=8, rounding="nearest", layers={})
    integer, _ = plain.quantize(ranges).run(prepared)
    table = latency_table(integer, args.latency, layers=prepared)
    if args.save_latency:
        save_table(table, args.save_latency)
    return table


def _keep(args: argparse.Namespace, found: SearchResult, cost: str) -> None:
    """The files asked for beside the model."""
    if args.save_sensitivity:
        found.sensitivity.save(args.save_sensitivity)
    if args.plot or args.pareto:
        from qir.passes.mixed_precision.plots import plot_layers, plot_pareto

        if args.plot:
            plot_layers(found, args.plot, cost)
        if args.pareto:
            plot_pareto(curve(found, cost), cost, args.pareto)
