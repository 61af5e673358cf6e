"""Comparisons, boolean operators, Where, Cast, and arithmetic of plain integers."""

from __future__ import annotations

import numpy as np

from qir.types import DType

from ..arguments import scalar
from ..planner.fusion import Group
from ..planner.placement import Placement
from ..planner.plan import Plan
from .moving import copy

EQUAL, LESS, LESS_OR_EQUAL, BOTH, EITHER = range(5)
"""enum Relation of logic.cu."""

RELATIONS = {
    "Equal": (EQUAL, False),
    "Less": (LESS, False),
    "LessOrEqual": (LESS_OR_EQUAL, False),
    "Greater": (LESS, True),
    "GreaterOrEqual": (LESS_OR_EQUAL, True),
    "And": (BOTH, False),
    "Or": (EITHER, False),
}
"""Operator -> relation, and whether the operands change places."""


SUM, DIFFERENCE, PRODUCT, LARGER, SMALLER, MODULUS, REMAINDER = range(7)
"""enum Arithmetic of logic.cu."""

ARITHMETIC = {"Add": SUM, "Sub": DIFFERENCE, "Mul": PRODUCT, "Max": LARGER, "Min": SMALLER, "Sum": SUM}


def arithmetic(plan: Plan, group: Group) -> None:
    """Operators on plain integers: two operands at a time, the sum so far in the output."""
    node = group.head
    operands = [plan.at(v) for v in node.inputs if v is not None]
    y = plan.define(node.output)
    if len(operands) == 1:
        copy(plan, operands[0], y)
    for i, operand in enumerate(operands[1:]):
        _arithmetic(plan, operands[0] if i == 0 else y, operand, y, ARITHMETIC[node.op])


def _arithmetic(plan: Plan, a: Placement, b: Placement, y: Placement, operation: int) -> None:
    plan.elements(
        "arithmetic_elements", y.shape,
        lambda: [a.view(y.shape), b.view(y.shape), y.view(), scalar("i4", operation)],
    )  # fmt: skip


def modulus(plan: Plan, group: Group) -> None:
    """Mod of plain integers."""
    node = group.head
    a, b = plan.at(node.input(0)), plan.at(node.input(1))
    _arithmetic(plan, a, b, plan.define(node.output), REMAINDER if node.attrs["fmod"] else MODULUS)


def opposite(plan: Plan, group: Group) -> None:
    """Neg of plain integers: 0 - x."""
    node = group.head
    x = plan.at(node.input(0))
    zero = plan.packed.constant(np.zeros((), np.uint8), ("zero",))
    _arithmetic(plan, zero, x, plan.define(node.output), DIFFERENCE)


def _relate(plan: Plan, a: Placement, b: Placement, y: Placement, relation: int) -> None:
    plan.elements(
        "relate_elements", y.shape,
        lambda: [a.view(y.shape), b.view(y.shape), y.view(), scalar("i4", relation)],
    )  # fmt: skip


def relate(plan: Plan, group: Group) -> None:
    """Equal, Less, LessOrEqual, Greater, GreaterOrEqual, And, Or."""
    node = group.head
    relation, swapped = RELATIONS[node.op]
    a, b = plan.at(node.input(0)), plan.at(node.input(1))
    if swapped:
        a, b = b, a
    _relate(plan, a, b, plan.define(node.output), relation)


def negate(plan: Plan, group: Group) -> None:
    """Not: equal to 0."""
    node = group.head
    zero = plan.packed.constant(np.zeros((), np.uint8), ("zero",))
    _relate(plan, plan.at(node.input(0)), zero, plan.define(node.output), EQUAL)


def where(plan: Plan, group: Group) -> None:
    node = group.head
    condition, a, b = (plan.at(node.input(i)) for i in range(3))
    y = plan.define(node.output)
    plan.elements(
        "select_elements", y.shape,
        lambda: [condition.view(y.shape), a.view(y.shape), b.view(y.shape), y.view()],
    )  # fmt: skip


def cast(plan: Plan, group: Group) -> None:
    """Cast between integer types and booleans."""
    node = group.head
    x, y = plan.at(node.input(0)), plan.define(node.output)
    boolean = int(node.output.dtype is DType.BOOL)
    plan.elements("cast_elements", y.shape, lambda: [x.view(), y.view(), scalar("i4", boolean)])


OPERATORS = {
    **dict.fromkeys(RELATIONS, relate),
    **dict.fromkeys(ARITHMETIC, arithmetic),
    "Mod": modulus,
    "Neg": opposite,
    "Not": negate,
    "Where": where,
    "Cast": cast,
}
