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
        producer = value.producer
        if producer is None or not (
            producer.op in ("Add", "Sub", "Mul", "Where", "Max", "Min", "Concat") or op_of(producer.op).moves
        ):
            continue
        factors = producer.op == "Mul"  # of which one number is a mask's, and many are a layer's
        stack.extend(
            v for v in producer.inputs if v is not None and not (factors and v.data is not None and v.data.size > 1)
        )


def check_scores(graph: Graph, ranges: Ranges) -> None:
    """Raises UnsupportedError where something was seen to be added to the scores of a softmax that only a mask adds:
    numbers from -1e4 or less up to nothing."""
    for node in graph.nodes:
        if node.op in ("Softmax", "MaskedSoftmax"):
            for value in _summands(node.input(0)):
                if value.name not in ranges:
                    continue
                least, most = ranges.at(value.name, 16)
                if least <= UNMISTAKABLE and abs(most) <= 1:
                    raise UnsupportedError(
                        f"{value.name!r}, which is added to its scores, reaches {least:g}: a mask that is not "
                        "recognised",
                        where=str(node),
                        hint="let the graph take a boolean mask, or one of zeros and ones: (1 - mask) * -10000",
                    )


def _summands(scores: Value) -> list[Value]:
    """What is added to scores, each as it is and as what it is moved from."""
    stack, found, seen = [scores], list[Value](), set[Value]()
    while stack:
        value = stack.pop()
        producer = value.producer
        if value in seen:
            continue
        seen.add(value)
        if value is not scores:
            found.append(value)
        if producer is not None and producer.op in ("Add", "Sub"):
            stack += [producer.input(0), producer.input(1)]
        elif producer is not None and op_of(producer.op).moves:
            stack.append(producer.input(0))
    return found
