"""Compiles a graph: the loop over groups of nodes, in which operators add their launches to a plan."""

from __future__ import annotations

from collections.abc import Sequence

from qir.errors import BackendError
from qir.graph import Graph, Value
from qir.sizes import Sizes

from .device.interface import Device
from .operators import OPERATORS
from .operators.moving import row_major_copy
from .planner.choices import Chooser, first
from .planner.constants import Constants
from .planner.fusion import fuse
from .planner.plan import Plan


def compile_plan(
    graph: Graph, device: Device, sizes: Sizes, outputs: Sequence[Value], constants: Constants, chooser: Chooser = first
) -> Plan:
    """A plan for one choice of sizes and of outputs; a `Runner` gives it memory and runs it.

    constants: those that all plans of a session share.
    chooser: which of the candidates of a layer is launched; any of them yields the same bits.
    Raises BackendError for an operator without a kernel.
    """
    groups = fuse(graph, set(outputs))
    plan = Plan(graph, device, sizes, outputs, groups, constants, chooser)
    for step, group in enumerate(groups, start=1):
        if plan.evaluate(group.nodes):
            continue
        operator = OPERATORS.get(group.head.op)
        if operator is None:
            raise BackendError("has no CUDA kernel", where=str(group.head))
        plan.begin(step, group.head)
        operator(plan, group)
    plan.begin(len(groups) + 1)
    plan.lay_out({v: row_major_copy(plan, plan.at(v)) for v in outputs})
    return plan
