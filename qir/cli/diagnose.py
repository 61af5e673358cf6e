"""`qir diagnose`: where a quantized network loses accuracy, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from qir.passes.calibration.data import batches
from qir.passes.diagnose import diagnose
from qir.passes.recipes import recipe_of

from . import data, show


def main(args: argparse.Namespace) -> int:
    recipe = recipe_of(args.recipe)
    if args.strip_softmax:
        recipe = recipe.but(strip_softmax=True)
    graph = data.load_model(args.model, args.input_shape)
    feeds = batches(
        data.source(args, graph, *data.like(args)), graph, batch_size=args.batch, samples=min(args.samples or 32, 64)
    )
    with show.bar("quantizers and remedies") as progress:
        found = diagnose(graph, feeds, recipe, worst=args.worst, remedies=args.remedies, progress=progress)
    if args.json:
        show.say_json(asdict(found))
        return 0
    show.say(found.text(args.worst))
    return 0
