"""`qir inspect`: what is in a model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from qir import cost
from qir.errors import escaped
from qir.graph import Graph, Stage, Value
from qir.passes.report import count_operators
from qir.types import QuantParams
from qir.verify import is_integer_only

from . import show
from .data import load_model


def main(args: argparse.Namespace) -> int:
    graph = load_model(args.model, args.input_shape)
    if args.json:
        show.say_json(as_json(graph, args.model.stat().st_size))
        return 0
    show.say(f"{args.model}: {show.size(args.model.stat().st_size)} on disk, stage {graph.stage.name}")
    for word, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            show.say(f"{word:<7} {describe(value)}")
    if graph.stage is Stage.INTEGER:
        offences = is_integer_only(graph)
        show.say("integer-only: " + ("yes" if not offences else f"no, {offences[0]}"))
    show.say()
    show.say(summary(graph))
    if args.layers:
        show.say()
        show.say(layers(graph))
        show.say()
        show.say(scales(graph))
    return 0


def as_json(graph: Graph, size: int) -> dict[str, Any]:
    """All that the tables say, layers and scales included."""

    def value(v: Value) -> dict[str, Any]:
        grid = None if v.quant is None else asdict(v.quant) | {"dtype": str(v.quant.dtype)}
        return {"name": v.name, "dtype": str(v.dtype), "shape": list(v.shape), "quant": grid}

    offences = is_integer_only(graph) if graph.stage is Stage.INTEGER else None
    return {
        "bytes": size, "stage": graph.stage.name, "integer_only": None if offences is None else not offences,
        "offences": offences, "inputs": [value(v) for v in graph.inputs], "outputs": [value(v) for v in graph.outputs],
        "operators": count_operators(graph),
        "constants": {str(k): {"elements": n, "bytes": b} for k, (n, b) in cost.constants_by_dtype(graph).items()},
        "layers": [asdict(c) | {"macs": c.macs, "bops": c.bops} for c in cost.layer_costs(graph)],
        "tensors": [value(v) for node in graph.nodes for v in node.outputs if v.quant is not None],
        "metadata": graph.metadata,
    }  # fmt: skip


def describe(value: Value) -> str:
    shape = "x".join(str(d) for d in value.shape)
    text = f"{escaped(value.name)}: {value.dtype} {shape}"
    return text if value.quant is None else f"{text}, {grid(value.quant)}"


def grid(quant: QuantParams) -> str:
    """A quantization in a few words."""
    if quant.per_channel:
        return f"{len(quant.scale)} scales {min(quant.scale):.4g} to {max(quant.scale):.4g} along axis {quant.axis}"
    return f"scale {quant.scale[0]:.6g} zero point {quant.zero_point[0]}"


def summary(graph: Graph) -> str:
    """Operators, constants and cost."""
    operators = sorted(count_operators(graph).items(), key=lambda item: (-item[1], item[0]))
    constants = cost.constants_by_dtype(graph)
    costs = cost.layer_costs(graph)
    macs, bops = sum(c.macs for c in costs), sum(c.bops for c in costs)
    weights = sum(c.weights for c in costs)
    parts = [
        show.table(operators, ("operator", "nodes"), "lr"),
        "",
        show.table(
            [(k, f"{n:,}", show.size(b)) for k, (n, b) in constants.items()], ("constants", "elements", "bytes"), "lrr"
        ),
        "",
        f"linear layers {len(costs)}, weights {weights:,}, MACs {show.count(macs)}, BOPS {show.count(bops)}",
    ]
    if macs and bops < macs * 32 * 32:
        float_bops = macs * 32 * 32
        parts.append(
            f"average operand width {(bops / macs) ** 0.5:.2f} bits, {float_bops / bops:.1f}x fewer BOPS than float32"
        )
    return "\n".join(parts)


def layers(graph: Graph) -> str:
    """The linear layers."""
    rows = [
        (
            c.output,
            c.op,
            f"{c.weights:,}",
            f"{c.weight_bits}x{c.activation_bits}",
            show.count(c.macs),
            show.count(c.bops),
        )
        for c in cost.layer_costs(graph)
    ]
    return show.table(rows, ("layer", "operator", "weights", "bits w x a", "MACs", "BOPS"), "llrrrr")


def scales(graph: Graph) -> str:
    """Every quantized tensor that a node makes."""
    rows = [
        (v.name, node.op, v.dtype, grid(v.quant)) for node in graph.nodes for v in node.outputs if v.quant is not None
    ]
    return show.table(rows, ("tensor", "made by", "dtype", "grid"))
