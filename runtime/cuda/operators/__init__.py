"""Operator -> the function that plans its launches.  Every operator of an integer graph is here; none falls back."""

from collections.abc import Callable

from ..planner.fusion import Group
from ..planner.plan import Plan
from . import linear, logic, moving, pointwise, reducing

OPERATORS: dict[str, Callable[[Plan, Group], None]] = {
    **linear.OPERATORS,
    **logic.OPERATORS,
    **moving.OPERATORS,
    **pointwise.OPERATORS,
    **reducing.OPERATORS,
}
