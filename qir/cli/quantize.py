"""`qir quantize`: float ONNX -> integer-only ONNX."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from qir.errors import DataError, QuantizationError
from qir.files import streamed, write_text
from qir.graph import Graph, Stage
from qir.io import save, strip_border
from qir.passes.calibration.data import Batches, batches
from qir.passes.pipeline import encoded, lowered_or_float, refuse_collapse, run_recipe
from qir.passes.prepare.fold_normalization import PIXELS, FoldNormalization
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipe_files import as_toml
from qir.passes.recipes import Recipe, recipe_of
from qir.passes.report import Report
from qir.types import DType

from . import data, show
from .preprocessing import is_images, remember


def main(args: argparse.Namespace) -> int:
    output = data.writable(args.output, args.model, *([args.data] if args.data else []))
    for path in (args.ranges, args.report):
        if path:
            data.writable(path, args.model)
    recipe = chosen(args)
    start = time.perf_counter()
    graph = data.load_model(args.model, args.input_shape)
    ranges, first = None, Report([])
    if graph.stage is Stage.QDQ:
        graph, first = lowered_or_float(graph, args.data is not None or not recipe.needs_data)
    if graph.stage is Stage.INTEGER and first.passes:
        show.say("quantized already: only lowered to integers, with the scales it has")
        integer, report = graph, first
    else:
        if first.passes:
            show.say("quantized in part: its weights keep their integers, the rest is calibrated")
        integer, report, ranges = quantized(args, recipe, graph)
        report = first + report
    before = args.model.stat().st_size
    save(integer, output, opset=args.opset, io=args.io)
    if args.ranges and ranges is not None:
        ranges.save(args.ranges)
    if args.report:
        write_text(args.report, report.to_json() + "\n")
    tell(args, report)
    sizes = "" if streamed(output) else f", {show.size(output.stat().st_size)} (was {show.size(before)})"
    show.say(f"wrote {output}: integers only{sizes}, {time.perf_counter() - start:.1f} s")
    return 0


def chosen(args: argparse.Namespace) -> Recipe:
    """The recipe with the options given beside it."""
    recipe = recipe_of(args.recipe)
    options: dict[str, Any] = {}
    if args.method:
        options["method"] = args.method
    if args.per_tensor:
        options["per_channel"] = False
    if args.strip_softmax:
        options["strip_softmax"] = True
    return recipe.but(**options)


def quantized(args: argparse.Namespace, recipe: Recipe, graph: Graph) -> tuple[Graph, Report, Ranges]:
    """The float graph through the recipe.  Raises DataError where that needs data and there are none."""
    if recipe.needs_data and args.data is None and args.encodings is None:
        raise DataError(f"recipe {recipe.name!r} needs --data", hint="or use --recipe data_free")
    first = Report([])
    input_ranges: dict[str, tuple[float, float]] = {}
    if args.fold_normalization:
        graph, first = FoldNormalization(tuple(args.mean or (0.0,)), tuple(args.std or (1.0,))).apply(graph)
        input_ranges[graph.inputs[0].name] = PIXELS
    known = None
    if args.encodings is not None:
        graph, known, told = encoded(graph, args.encodings, None, args.data is not None)
        first = first + told
    feeds = calibration(args, graph)
    with ExitStack() as stack:
        executor = stack.enter_context(ProcessPoolExecutor(args.jobs)) if args.jobs > 1 and feeds else None
        done = run_recipe(
            recipe, graph, None if feeds is None else data.shown(feeds, args.batch, "calibrating"),
            executor=executor, input_ranges=input_ranges or None, check=True, ranges=known,
        )  # fmt: skip
    if done.quality is not None:
        show.say(done.quality.line())
        for warning in done.quality.warnings:
            show.say(f"warning: {warning}")
        if args.strict:
            refuse_collapse(done.quality)
    integer = done.graph
    if args.fold_normalization:
        integer = takes_pixels(integer)
    if args.data is not None and is_images(args.data):
        remember(integer, data.source(args, graph))
    return integer, first + done.report, done.ranges


def calibration(args: argparse.Namespace, graph: Graph) -> Batches | None:
    """--data for a graph whose normalization is, or is not, inside."""
    if args.data is None:
        return None
    if args.fold_normalization:
        return data.pixel_batches(args, graph)
    return batches(data.source(args, graph), graph, batch_size=args.batch, samples=args.samples)


def takes_pixels(graph: Graph) -> Graph:
    """With uint8 inputs.  Raises QuantizationError where the recipe's grid is not the pixels' own."""
    taken = strip_border(graph, outputs=False)
    quant = taken.inputs[0].quant
    if quant is None or (quant.dtype, quant.scale, quant.zero_point) != (DType.UINT8, (1.0,), (0,)):
        raise QuantizationError(
            f"the input's grid is {quant}, not that of pixels",
            hint="--fold-normalization wants a recipe with symmetric = false and input = 'int8'",
        )
    return taken


def tell(args: argparse.Namespace, report: Report) -> None:
    """The passes' notes, a few of them; all with --verbose."""
    if args.verbose:
        show.say(str(report))
        return
    notes = [note for one in report.passes for note in one.notes if one.name != "quality"]
    for note in notes[:8]:
        show.say(f"note: {note}")
    if len(notes) > 8:
        show.say(f"note: {len(notes) - 8} more: --verbose shows them, --report FILE.json keeps them")


def print_recipe(args: argparse.Namespace) -> int:
    """`qir recipe`: a recipe as TOML."""
    show.say(as_toml(recipe_of(args.recipe), whole=True).rstrip("\n"))
    return 0
