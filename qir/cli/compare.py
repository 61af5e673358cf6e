"""`qir compare`: how much noise each tensor of the integer model carries."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from qir.errors import StageError
from qir.graph import Graph, Stage
from qir.passes.simplify.strip_softmax import StripSoftmax
from qir.runtime.measure.compare import Comparison, compare_graphs

from . import data, show


def main(args: argparse.Namespace) -> int:
    reference = data.load_model(args.float_model, args.input_shape)
    integer = data.load_model(args.integer_model)
    if reference.stage is Stage.INTEGER and integer.stage is not Stage.INTEGER:
        raise StageError("is the integer model", where=str(args.float_model), hint="the float model comes first")
    if args.strip_softmax:
        reference = stripped(reference)
    result = compare_graphs(reference, integer, data.feeds(args, reference, "comparing", integer), backend=args.backend)
    if args.json:
        show.say_json(
            {
                "samples": result.samples,
                "outputs": [asdict(o) for o in result.outputs],
                "tensors": [
                    {**asdict(t), "rescaled": t.rescaled, "score": t.score} for t in result.tensors[: args.worst]
                ],
            }
        )
        return 0
    show.say(text(result, args.worst))
    return 0


def stripped(graph: Graph) -> Graph:
    """Without its final Softmax."""
    return StripSoftmax().apply(graph)[0]


def text(result: Comparison, worst: int | None = None) -> str:
    """The tables."""
    shown = result.tensors[:worst]
    rows = [(t.name, t.op, t.dtype, ("~" if t.rescaled else "") + show.decibels(t.score)) for t in shown]
    parts = [f"{result.samples} samples; {len(shown)} of {len(result.tensors)} tensors, worst first"]
    if rows:
        parts.append(show.table(rows, ("tensor", "made by", "dtype", "SQNR dB"), "lllr"))
    if any(t.rescaled for t in shown):
        parts.append("~ rescaled by equalization or bias absorption; SQNR after the best affine map of each channel")
    outputs = [
        (
            o.name,
            show.decibels(o.sqnr),
            "-" if o.agreement is None else f"{100 * o.agreement:.2f} %",
            f"{o.largest_difference:.4g}",
            "-" if o.column_sqnr is None else f"{o.column}: {show.decibels(o.column_sqnr)}",
        )
        for o in result.outputs
    ]
    parts += [
        "",
        show.table(outputs, ("output", "SQNR dB", "same argmax", "largest difference", "worst column"), "lrrrr"),
    ]
    return "\n".join(parts)
