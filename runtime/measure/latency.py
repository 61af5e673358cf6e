"""How long each linear layer takes with 4- and 8-bit weights on a backend: what the mixed-precision search limits.

One integer graph is profiled twice: as it is but with all weights of 4 bits, and with all of 8. Times do not depend
on the values of weights, so none are chosen with care.                                            [HAWQ-V3 eq. 14]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import BackendError
from qir.files import write_text
from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.types import DType

from ..session import Session
from .bench import random_feeds

Bits = tuple[int, int]
"""(weight bits, activation bits)."""

Table = dict[str, dict[Bits, float]]
"""Layer -> bits -> seconds."""


def is_layer(node: Node) -> bool:
    """Whether the bits of a node's weights are a choice."""
    return op_of(node.op).linear and node.op.startswith("qir.") and node.input(1).is_constant


def with_weights_of(graph: Graph, bits: int) -> Graph:
    """A copy of an integer graph whose linear layers have weights of 4 or 8 bits, clipped to them."""
    copy = graph.clone()
    dtype = DType.INT4 if bits == 4 else DType.INT8
    for node in copy.nodes:
        if is_layer(node) and node.attrs["weight_zero_point"] == 0:
            w = node.input(1)
            if w.dtype.bits != bits:
                ints = np.clip(w.array().astype(np.int32), dtype.lo, dtype.hi).astype(dtype.numpy)
                copy.set_input(node, 1, copy.add_constant(copy.fresh(f"{w.name}.{dtype}"), ints, dtype))
    return copy


def latency_table(
    graph: Graph, backend: str = "cpu", *, batch: int = 1, layers: Graph | None = None, **options: Any
) -> Table:
    """Median seconds of each linear layer of an integer graph, fused operators included, at 4/4, 4/8 and 8/8 bits.

    layers: the float graph that is searched, whose node names become the keys; default: the names of the tensors that
    the layers yield.  Activations of 4 bits are computed as bytes: 4/4 takes as long as 4/8, except
    where tensor cores multiply 4 bits (sm_75 to sm_89); profile a graph that has such activations to see how much.
    options: the backend's own.
    Raises BackendError where the backend has no profile.
    """
    wanted = {n.output.name: n.name for n in layers.nodes} if layers is not None else {}
    table: Table = {}
    for bits in (4, 8):
        variant = with_weights_of(graph, bits)
        tensors = {n.name: layer_of(n.output) for n in variant.nodes if is_layer(n)}
        profile = Session(variant, backend, **options).profile(random_feeds(variant, batch))
        for row in profile.rows:
            inside = [tensors[n] for n in row.nodes if n in tensors]
            for tensor in inside:  # layers fused into one step share its time
                entry = table.setdefault(wanted.get(tensor, tensor), {})
                entry[bits, 8] = entry.get((bits, 8), 0.0) + row.seconds / len(inside)
                if bits == 4:
                    entry[4, 4] = entry[4, 8]
    if not table:
        raise BackendError("no linear layer was timed", where=f"graph {graph.name!r}", hint="give an integer graph")
    return table


def layer_of(accumulator: Value) -> str:
    """The float tensor that a layer's accumulator stands for."""
    return accumulator.name.removesuffix(".acc").removesuffix(".q")


def save_table(table: Mapping[str, Mapping[Bits, float]], path: str | Path) -> None:
    """The JSON file {layer: {"4/8": seconds}} that `qir search --latency` reads."""
    raw = {name: {f"{w}/{a}": seconds for (w, a), seconds in row.items()} for name, row in table.items()}
    write_text(path, json.dumps(raw, indent=1) + "\n")
