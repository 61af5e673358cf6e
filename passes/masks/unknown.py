"""Masks that are not recognised are refused: quantized, nothing would be left of the scores beside them."""

from __future__ import annotations

from qir.errors import UnsupportedError
from qir.graph import Graph, Node, Value
from qir.ops import op_of

from ..quantization.ranges import Ranges

UNMISTAKABLE = -1e4
"""What adds this or less to a score can only be a mask."""


def refuse_unknown(node: Node, scores: Value) -> None:
    """Raises UnsupportedError where something adds what a mask adds, in a way that is not understood."""
    seen: set[Value] = set()
    stack = [scores]
    while stack:
        value = stack.pop()
        if value in seen or not value.dtype.is_float:
            continue
        seen.add(value)
        if value.data is not None:
            if value.data.size and float(value.data.min()) <= UNMISTAKABLE:
                raise UnsupportedError(
                    f"{value.name!r} holds {float(value.data.min()):g}: a mask that is not recognised",
                    where=str(node),
                    hint="write it as Where(keep, scores, -inf), or as (1 - keep) * -10000 added to the scores",
                )  # fmt: skip
            continue
        maker = value.producer
        if maker is None or not (
            maker.op in ("Add", "Sub", "Mul", "Where", "Max", "Min", "Concat") or op_of(maker.op).moves
        ):
            continue
        stack.extend(v for v in maker.inputs if v is not None)


def check_scores(graph: Graph, ranges: Ranges) -> None:
    """Raises UnsupportedError where the scores of a softmax were seen to be what only a mask adds.

    Scores that are large in both directions may be just that.
    """
    for node in graph.nodes:
        if node.op in ("Softmax", "MaskedSoftmax") and node.input(0).name in ranges:
            least, most = ranges.at(node.input(0).name, 16)
            if least <= UNMISTAKABLE and -least > 100 * max(most, 1.0):
                raise UnsupportedError(
                    f"its input {node.input(0).name!r} reaches {least:g}: a mask that is not recognised",
                    where=str(node),
                    hint="let the graph take a boolean mask, or one of zeros and ones: (1 - mask) * -10000",
                )  # fmt: skip
