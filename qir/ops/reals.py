"""What real numbers a float tensor can hold, from the operators alone: no data.  Conservative intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import op_of

if TYPE_CHECKING:
    from ..graph import Node, Value

RealInterval = tuple[float, float]
ANY: RealInterval = (-math.inf, math.inf)
NOT_NEGATIVE: RealInterval = (0.0, math.inf)


def real_interval(value: Value, memo: dict[Value, RealInterval] | None = None) -> RealInterval:
    """The least and the greatest that an element of a float tensor can be; `memo` is filled on the way."""
    memo = {} if memo is None else memo
    stack = [value]
    while stack:
        top = stack[-1]
        if top in memo:
            stack.pop()
            continue
        node = top.producer
        if top.data is not None:
            memo[top] = _of_data(top.data)
        elif node is None:
            memo[top] = _of_input(top)
        else:
            waiting = [v for v in node.inputs if v is not None and v not in memo]
            if waiting:
                stack += waiting
                continue
            memo[top] = _of_node(node, memo)
    return memo[value]


def _of_data(data: Any) -> RealInterval:
    array = np.asarray(data, dtype=np.float64)
    return (float(array.min()), float(array.max())) if array.size and not np.isnan(array).any() else ANY


def _of_input(value: Value) -> RealInterval:
    return (0.0, 1.0) if value.dtype.name == "BOOL" else ANY


def _of_node(node: Node, memo: Mapping[Value, RealInterval]) -> RealInterval:
    xs = [ANY if v is None else memo[v] for v in node.inputs]
    op, rule = op_of(node.op), RULES.get(node.op)
    if node.op in INCREASING:
        lo, hi = (_at(node, x) for x in xs[0])
        found = (lo, hi)
    elif rule is not None:
        with np.errstate(all="ignore"):
            found = rule(node, xs)
    elif op.linear:
        found = _linear(node, xs)
    elif op.border or op.chooses or (op.moves and node.op not in ("Pad", "Concat")):
        found = xs[0]
    elif node.op in ("Concat", "Pad"):
        both = xs if node.op == "Concat" else [xs[0], xs[2] if len(xs) > 2 else (0.0, 0.0)]
        found = (min(x[0] for x in both), max(x[1] for x in both))
    else:
        found = ANY
    lo, hi = (-math.inf if math.isnan(found[0]) else found[0]), (math.inf if math.isnan(found[1]) else found[1])
    return (max(lo, 0.0), hi) if op.never_negative(node) else (lo, hi)


INCREASING = frozenset({"Sigmoid", "Tanh", "Softplus", "Erf", "Exp", "Sqrt", "Log", "Atan", "HardSigmoid", "Softsign"})
"""Functions whose ends are those of their argument."""
LIMITS = {
    "Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Softplus": (0.0, math.inf), "Erf": (-1.0, 1.0),
    "Exp": (0.0, math.inf), "Sqrt": (0.0, math.inf), "Log": (-math.inf, math.inf),
    "Atan": (-math.pi / 2, math.pi / 2), "HardSigmoid": (0.0, 1.0), "Softsign": (-1.0, 1.0),
}  # fmt: skip
"""... and their limits at minus and plus infinity."""


def _at(node: Node, x: float) -> float:
    if math.isinf(x):
        return LIMITS[node.op][int(x > 0)]
    if node.op in ("Log", "Sqrt") and x <= 0:
        return LIMITS[node.op][0]
    with np.errstate(all="ignore"):
        return float(op_of(node.op).reference(node.attrs, np.asarray([x], np.float64))[0][0])


def _product(a: RealInterval, b: RealInterval) -> RealInterval:
    ends = [0.0 if 0.0 in (p, q) else p * q for p in a for q in b]
    return min(ends), max(ends)


def _mul(node: Node, xs: list[RealInterval]) -> RealInterval:
    if node.input(0) is node.input(1):
        top = max(abs(v) for v in xs[0])
        return (min(v * v for v in xs[0]) if xs[0][0] > 0 or xs[0][1] < 0 else 0.0, top * top)
    return _product(xs[0], xs[1])


def reciprocal(x: RealInterval) -> RealInterval:
    """Of 1/x; anything where x may be 0 or of both signs."""
    lo, hi = x
    if lo > 0 or hi < 0:
        return (0.0 if math.isinf(hi) else 1 / hi, 0.0 if math.isinf(lo) else 1 / lo)
    return (0.0, math.inf) if lo == 0 else ANY


def _power(node: Node, xs: list[RealInterval]) -> RealInterval:
    exponent = node.input(1).data
    if exponent is None or exponent.size != 1:
        return NOT_NEGATIVE if xs[0][0] >= 0 else ANY
    p, (lo, hi) = float(exponent.reshape(())), xs[0]
    if lo >= 0 and p > 0:
        return lo**p, hi**p
    if lo >= 0:
        return reciprocal((lo**-p, hi**-p))
    if p == int(p) and int(p) % 2 == 0 and p > 0:
        return 0.0, max(abs(lo), abs(hi)) ** p
    return ANY


def _clip(node: Node, xs: list[RealInterval]) -> RealInterval:
    lo, hi = xs[0]
    least = xs[1][0] if len(xs) > 1 and node.inputs[1] is not None else -math.inf
    most = xs[2][1] if len(xs) > 2 and node.inputs[2] is not None else math.inf
    return min(max(lo, least), most), min(max(hi, least), most)


def _sum_over(node: Node, xs: list[RealInterval]) -> RealInterval:
    x, y = node.input(0).shape, node.output.shape
    known = sorted(str(d) for d in x if not isinstance(d, int)) == sorted(str(d) for d in y if not isinstance(d, int))
    sizes = [math.prod(d for d in shape if isinstance(d, int)) for shape in (x, y)]
    ratio = sizes[0] / max(sizes[1], 1)
    lo, hi = xs[0]
    if not known:  # of at least one element, it is hoped: no bound rises by it
        return (-math.inf if lo < 0 else min(lo, hi)), (math.inf if hi > 0 else hi)
    return (lo * ratio if lo else 0.0), (hi * ratio if hi else 0.0)


def _linear(node: Node, xs: list[RealInterval]) -> RealInterval:
    """Sums of products of what is never negative."""
    return NOT_NEGATIVE if all(x[0] >= 0 for v, x in zip(node.inputs, xs, strict=True) if v is not None) else ANY


def _normalized(node: Node, xs: list[RealInterval]) -> RealInterval:
    return 0.0, 1.0


Rule = Callable[["Node", "list[RealInterval]"], RealInterval]
RULES: dict[str, Rule] = {  # one function an operator: no trait
    "Add": lambda n, xs: (xs[0][0] + xs[1][0], xs[0][1] + xs[1][1]),
    "Sub": lambda n, xs: (xs[0][0] - xs[1][1], xs[0][1] - xs[1][0]),
    "Mul": _mul,
    "Div": lambda n, xs: _product(xs[0], reciprocal(xs[1])),
    "Reciprocal": lambda n, xs: reciprocal(xs[0]),
    "Neg": lambda n, xs: (-xs[0][1], -xs[0][0]),
    "Abs": lambda n, xs: (max(xs[0][0], -xs[0][1], 0.0), max(abs(xs[0][0]), abs(xs[0][1]))),
    "Pow": _power,
    "Clip": _clip,
    "Relu": lambda n, xs: (max(xs[0][0], 0.0), max(xs[0][1], 0.0)),
    "Max": lambda n, xs: (max(x[0] for x in xs), max(x[1] for x in xs)),
    "Min": lambda n, xs: (min(x[0] for x in xs), min(x[1] for x in xs)),
    "Where": lambda n, xs: (min(xs[1][0], xs[2][0]), max(xs[1][1], xs[2][1])),
    "ReduceSum": _sum_over,
    "ReduceMean": lambda n, xs: xs[0],
    "ReduceMax": lambda n, xs: xs[0],
    "ReduceMin": lambda n, xs: xs[0],
    "GlobalAveragePool": lambda n, xs: xs[0],
    "Softmax": _normalized,
    "MaskedSoftmax": _normalized,
    "Cos": lambda n, xs: (-1.0, 1.0),
    "Sin": lambda n, xs: (-1.0, 1.0),
    "Cast": lambda n, xs: xs[0],
    "Identity": lambda n, xs: xs[0],
    "Equal": _normalized, "Less": _normalized, "LessOrEqual": _normalized, "Greater": _normalized,
    "GreaterOrEqual": _normalized, "And": _normalized, "Or": _normalized, "Not": _normalized,
}  # fmt: skip
