"""Operator -> the function that plans its launches.  Every operator of an integer graph is here; none falls back."""

from collections.abc import Callable

from ..fusion import Group
from ..plan import Plan
from . import linear, moving, pointwise, reducing

OPERATORS: dict[str, Callable[[Plan, Group], None]] = {
    **linear.OPERATORS,
    **moving.OPERATORS,
    **pointwise.OPERATORS,
    **reducing.OPERATORS,
}
