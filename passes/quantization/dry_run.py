"""What cannot become integers, said before calibration: a lowering with made-up ranges, all refusals collected."""

from __future__ import annotations

import logging

from qir.errors import QirError, refuse
from qir.graph import Graph, Stage
from qir.ops import op_of

from .insert_qdq import InsertQdq
from .lower_to_dyadic import refusals
from .placement import is_activation
from .ranges import Ranges, TensorRange

log = logging.getLogger("qir.passes")

SIGNED, POSITIVE = TensorRange((-1.0, 1.0)), TensorRange((0.0, 1.0))


def check_lowering(prepared: Graph, insert: InsertQdq) -> None:
    """Raises LoweringError or UnsupportedError where one node of a prepared graph cannot be lowered, RefusedError
    with all of them where several cannot.

    Nothing is calibrated: whether an operator has an integer form does not depend on ranges.  What does (a multiplier
    out of reach) is left to the lowering itself.
    """
    assert prepared.stage is not Stage.INTEGER
    graph = prepared.clone()
    try:
        insert.run(graph)
    except QirError as error:  # its own run, with real ranges, says it better
        log.debug("no dry run: %s", error)
        return
    refuse(refusals(graph))


def placeholder_ranges(graph: Graph) -> Ranges:
    """A range for every activation."""
    positive = {v for n in graph.nodes if op_of(n.op).never_negative(n) for v in n.outputs}
    return Ranges({v.name: POSITIVE if v in positive else SIGNED for v in graph.values if is_activation(v)})
