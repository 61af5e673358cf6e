"""`quantize`: a float model to an integer-only graph in one call; `run_recipe` keeps what lies between."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import CollapseError, DataError, LoweringError, QuantizationError, StageError
from qir.graph import Graph, Stage
from qir.io import load
from qir.ops import op_of
from qir.types import Array

from .calibration.collect import Feeds, Progress, collect, ranges_from
from .calibration.correct_bias import analytic_means, empirical_means
from .calibration.data import batches
from .calibration.data_free import BATCH_NORM_TABLE, data_free_ranges
from .collapse import Quality
from .manager import PassManager
from .masks.unknown import check_scores
from .prepare.center_inputs import center_inputs
from .prepare.encodings import Encodings
from .prepare.output_channels import uneven_outputs
from .quality import First, measure
from .quantization.dry_run import check_lowering, placeholder_ranges
from .quantization.given_grids import GIVEN_RANGES
from .quantization.lower_to_dyadic import LowerToDyadic
from .quantization.ranges import Interval, Ranges
from .quantization.undo_qdq import UndoQdq
from .recipes import Recipe, recipe_of
from .report import PassReport, Report
from .rounding.channel_scales import SCALED, ChannelScales, scalable

log = logging.getLogger("qir.passes")


@dataclass(frozen=True)
class RecipeResult:
    """All that a recipe made: the prepared float graph, the ranges, the QDQ graph, the integer graph, the report.

    quality: what it cost on the calibration data, where that was asked for and could be told.
    """

    prepared: Graph
    ranges: Ranges
    qdq: Graph
    graph: Graph
    report: Report
    quality: Quality | None = None


def quantize(
    model: Graph | str | Path | Any,
    data: Any = None,
    recipe: str | Path | Recipe = "w8a8",
    *,
    ranges: Ranges | str | Path | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    input_shapes: Mapping[str, Sequence[int | str]] | None = None,
    input_ranges: Mapping[str, Interval] | None = None,
    encodings: str | Path | Encodings | None = None,
    check: bool = True,
    strict: bool = False,
    **overrides: Any,
) -> tuple[Graph, Report]:
    """(integer graph, report) of a float model, or of one quantized by others (QDQ), which is only lowered.

    Where parts of a QDQ model are float (weight-only, dynamically quantized), it goes through the recipe, and its
    weights keep the grids that they have.

    model: a Graph, or what `qir.load` takes.  data: what `passes.data.batches` takes; a recipe with method "bn" needs
    none.  recipe: a name, a .toml file or a Recipe; further keyword arguments change its options.
    ranges: earlier ranges, instead of calibration.  input_ranges: what inputs hold, where that is known (always for
    recipes without data); it stands instead of what the data show.
    encodings: AIMET's (see `prepare.encodings`): grids of weights, ranges of activations; without data all are theirs.
    executor, progress, samples: see `calibrate`.  check: run the result beside the float graph on a few of the samples
    (`quality.measure`); what has collapsed is logged as a warning, with strict it is an error.
    Raises DataError (no data for a recipe that needs them), StageError (an integer graph), CollapseError (strict), and
    what loading, the passes and the data raise.
    """
    if not isinstance(model, Graph):
        model = load(model, input_shapes=input_shapes)
    chosen = recipe_of(recipe).but(**overrides)
    first = Report([])
    if model.stage is Stage.QDQ:
        model, first = lowered_or_float(model, data is not None or ranges is not None or not chosen.needs_data)
        if model.stage is Stage.INTEGER:
            return model, first
    known = Ranges.load(ranges) if isinstance(ranges, str | Path) else ranges
    if encodings is not None:
        model, known, report = encoded(model, encodings, known, data is not None)
        first = first + report
    feeds = None if data is None else batches(data, model, batch_size=batch_size, samples=samples)
    done = run_recipe(
        chosen, model, feeds, ranges=known, executor=executor, progress=progress, input_ranges=input_ranges,
        check=check or strict,
    )  # fmt: skip
    for warning in () if done.quality is None else done.quality.warnings:
        log.warning("%s", warning)
    if strict:
        refuse_collapse(done.quality)
    return done.graph, first + done.report


def encoded(
    graph: Graph, encodings: str | Path | Encodings, ranges: Ranges | None, has_data: bool
) -> tuple[Graph, Ranges | None, Report]:
    """(a float graph with encodings on it, the ranges to quantize it with, a report).

    Without data, and without ranges, theirs are all.
    """
    chosen = encodings if isinstance(encodings, Encodings) else Encodings.load(encodings)
    result, unknown = chosen.apply(graph)
    report = PassReport("encodings", notes=[f"{len(chosen.tensors) - len(unknown)} encodings"])
    if unknown:
        report.note(f"{len(unknown)} encodings are of no tensor of the network: {', '.join(unknown[:5])}")
    if ranges is None and not has_data:
        ranges = Ranges.of(chosen.ranges)
    return result, ranges, Report([report])


def refuse_collapse(quality: Quality | None) -> None:
    """Raises CollapseError where there are warnings."""
    if quality is not None and quality.warnings:
        raise CollapseError("\n  ".join(["the quantized network has collapsed:", *quality.warnings]))


def lowered_or_float(graph: Graph, can_calibrate: bool) -> tuple[Graph, Report]:
    """A QDQ graph as an integer graph where all of it is quantized, else as the float graph behind it (`UndoQdq`).

    Raises LoweringError where parts of it are not quantized and nothing is there to calibrate them with.
    """
    try:
        return PassManager([LowerToDyadic()]).run(graph)
    except LoweringError as error:
        if not can_calibrate:
            hint = "only parts of the model are quantized: with calibration data the others are, too"
            raise LoweringError(error.message, where=error.where, hint=hint) from error
        result, report = PassManager([UndoQdq()]).run(graph)
        report.passes[0].note(f"not quantized throughout, so calibrated: {str(error).splitlines()[0]}")
        return result, report


@np.errstate(all="ignore")  # what leaves its range is found by proofs, in words; NumPy's lines say nothing to a user
def run_recipe(
    recipe: Recipe,
    graph: Graph,
    feeds: Iterable[Feeds] | None,
    *,
    ranges: Ranges | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
    input_ranges: Mapping[str, Interval] | None = None,
    check: bool = False,
) -> RecipeResult:
    """A recipe on a float graph, or on one quantized in part (`UndoQdq`).

    feeds: batches (mappings from input name to array), None where it needs none.
    check: look at what it cost, on the first of the feeds.
    """
    if graph.stage is Stage.INTEGER:
        raise StageError("is an integer graph already", where=f"graph {graph.name!r}")
    if graph.stage is Stage.QDQ:
        graph, _ = UndoQdq().apply(graph)
    if feeds is None and ranges is None and recipe.needs_data:
        raise DataError(
            f"recipe {recipe.name!r} needs calibration data", hint="give data or ranges, or use the recipe data_free"
        )
    if feeds is not None and recipe.rounding != "nearest" and (getattr(feeds, "once", False) or iter(feeds) is feeds):
        feeds = list(feeds)  # a generator, for a recipe that goes over its data more than once
    seen_first = First(feeds) if check and feeds is not None else None
    feeds = seen_first or feeds
    prepared, report = recipe.prepare.run(graph)
    _check_layers(recipe, prepared)
    check_lowering(prepared, replace(recipe.insert(placeholder_ranges(prepared)), weight_range="minmax"))
    if (
        feeds is not None
        and recipe.channel_scales
        and recipe.activation_bits <= 8
        and ranges is None
        and scalable(prepared)
    ):
        if getattr(feeds, "once", False) or iter(feeds) is feeds:
            feeds = list(feeds)
        scales = ChannelScales(feeds, recipe.weight_bits, recipe.activation_bits)
        prepared, scaling = PassManager([scales]).run(prepared)
        report = report + scaling
    calibration = PassReport("calibrate")
    start = time.perf_counter()
    means: Mapping[str, Array] | None = None
    if feeds is not None and (recipe.needs_data or recipe.correct_bias == "empirical"):
        seen = collect(prepared, feeds, executor=executor, progress=progress)
        calibration.note(f"{seen.samples} samples, {len(seen)} tensors, method {recipe.method}")
        if recipe.correct_bias == "empirical":
            means = empirical_means(seen)
        if ranges is None and recipe.needs_data:
            ranges = ranges_from(seen, recipe.method, bits=recipe.bits, options=recipe.range_options)
            if recipe.output == "int16":
                uneven_outputs(prepared, seen, recipe.headroom, calibration)
            centred = center_inputs(prepared, seen, ranges, means or {}, recipe.headroom, calibration)
            if centred is not None:
                prepared, ranges, means = centred.graph, centred.ranges, centred.means if means is not None else None
    if ranges is None:
        ranges = data_free_ranges(prepared, input_ranges=input_ranges)
        calibration.note("no data: ranges from batch-norm statistics")
        if not prepared.tables.get(BATCH_NORM_TABLE):
            calibration.note("the network had no batch normalization: its ranges are estimates from the weights alone")
    if means is None and recipe.correct_bias != "none":
        if prepared.tables.get(BATCH_NORM_TABLE):
            means = analytic_means(prepared, input_ranges)
        else:
            calibration.note("biases are not corrected: neither data nor batch-norm statistics")
    calibration.seconds = time.perf_counter() - start
    scaled = [name for name in prepared.tables.get(SCALED, {}) if name in ranges]
    ranges = ranges.updated({name: ranges.seen(name) for name in scaled}) if scaled else ranges
    given: Mapping[str, Interval] = {**prepared.tables.get(GIVEN_RANGES, {}), **(input_ranges or {})}
    if given:
        ranges = ranges.updated(given)
    if recipe.needs_data:  # what was seen, not estimated
        check_scores(prepared, ranges)
    steps = recipe.quantize(ranges, prepared, means, feeds).passes
    lowering = next(i for i, step in enumerate(steps) if isinstance(step, LowerToDyadic))
    qdq, second = PassManager(steps[:lowering]).run(prepared)
    integer, third = PassManager(steps[lowering:]).run(qdq)
    report = report + Report([calibration]) + second + third
    quality = None if seen_first is None else measure(prepared, integer, seen_first.first())
    if quality is not None:
        report = report + Report([quality.report()])
    return RecipeResult(prepared, ranges, qdq, integer, report, quality)


def _check_layers(recipe: Recipe, prepared: Graph) -> None:
    """Raises QuantizationError where the recipe gives bits to a layer that is not there."""
    known = [n.name for n in prepared.nodes if op_of(n.op).linear]
    for name in recipe.layers:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "names are those after batch normalization is folded"
            raise QuantizationError("no such layer to give bits to", where=f"layer {name!r}", hint=hint)
