"""The proof that no accumulator leaves its width, operator by operator: see `Op.overflows` and `ops/intervals.py`."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import VerifyError, named
from .graph import Graph
from .ops import op_of


def check_accumulators(graph: Graph) -> Iterator[tuple[str, str]]:
    """Violations as (where, message)."""
    for node in graph.nodes:
        with named(VerifyError, node, "its accumulator cannot be checked"):
            for message in op_of(node.op).overflows(node):
                yield str(node), message
