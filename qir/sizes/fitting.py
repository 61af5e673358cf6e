"""From the sizes that an operator gave at probe points to the expression that says them.

Types are inferred with numbers: each symbol is given several values, and what comes out is explained by the sizes
that went in: one of them, a product, a sum, the floor of a quotient.  A hypothesis must hold at every point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations

from ..errors import TypeInferenceError
from ..types import Dim
from .expressions import BATCH, Symbol, add, floor_divide, multiply

FEW, MANY = 5, 40
"""Points that tell sums and products apart, and points that show every remainder of a small divisor."""

QUICK = (0, 1, 3)
"""Those that tell sizes known already apart."""

MOST_DIVISOR = 64

_PERMUTED = ((0, 2, 1, 7, 4), (3, 0, 8, 1, 5), (1, 6, 0, 4, 9), (5, 1, 7, 0, 2), (2, 9, 3, 6, 0), (8, 4, 0, 5, 1))
_SPREAD = ((0, 37, 5, 101, 18), (23, 0, 64, 9, 131), (7, 90, 0, 41, 12), (55, 3, 120, 0, 30))

Known = Sequence[tuple[Dim, Sequence[int]]]
"""Sizes that may explain, with their values at the points."""


def probe(symbols: Mapping[str, Symbol], point: int) -> dict[str, int]:
    """Sizes of all symbols at a point: different symbols differ, and do not move together."""
    found: dict[str, int] = {}
    for j, (name, symbol) in enumerate(symbols.items()):
        if name == BATCH:
            start, offset = 5, _PERMUTED[0][point] if point < FEW else (point * 7) % MANY
        elif symbol.long:
            start = -(-(192 + 32 * j) // symbol.step)
            dense = point - FEW
            offset = _SPREAD[j % len(_SPREAD)][point] if point < FEW else dense if dense < 20 else 21 * (dense - 18)
        else:
            start = 8 + 4 * j
            offset = _PERMUTED[j % len(_PERMUTED)][point] if point < FEW else (point * (2 * j + 1)) % MANY
        found[name] = symbol.step * (start + offset)
    return found


def fit(values: Sequence[int], known: Known) -> Dim | None:
    """A size that has these values at the first FEW points: a product or a sum of known ones; or None."""
    products = list(_products(known))
    for build in (_scaled, _affine):
        for dim, at in products:
            if (found := build(values, dim, at)) is not None:
                return found
    for (a, at_a), (b, at_b) in combinations(products, 2):
        if (found := _two(values, a, at_a, b, at_b)) is not None:
            return found
    return None


def fit_floor(values: Sequence[int], known: Known) -> Dim | None:
    """(m * floor((a d + b) / c)) + e for one of the known d, from its values at all points; None where it is none."""
    step = math.gcd(*(v - values[0] for v in values))
    rest = values[0] % step if step else 0
    for dim, at in known:
        for m, e in dict.fromkeys(((1, 0), (step, rest))):
            found = _floor([(v - e) // m for v in values], dim, at) if m else None
            if found is not None:
                return add(multiply(m, found), e)
    return None


def _products(known: Known) -> Iterator[tuple[Dim, Sequence[int]]]:
    """Single sizes first, then products of two, three ..."""
    for count in range(1, min(len(known), 4) + 1):
        for chosen in combinations(known, count):
            yield multiply(*(d for d, _ in chosen)), [math.prod(v) for v in zip(*(at for _, at in chosen), strict=True)]


def _scaled(values: Sequence[int], dim: Dim, at: Sequence[int]) -> Dim | None:
    """dim * p / q, where that is whole at every point."""
    if 0 in at:
        return None
    ratio = Fraction(values[0], at[0])
    if ratio <= 0 or any(v * ratio.denominator != d * ratio.numerator for v, d in zip(values, at, strict=True)):
        return None
    return floor_divide(multiply(ratio.numerator, dim), ratio.denominator)


def _affine(values: Sequence[int], dim: Dim, at: Sequence[int]) -> Dim | None:
    """(a * dim + b) / c, where that is whole at every point."""
    first = next((i for i in range(1, len(at)) if at[i] != at[0]), None)
    if first is None:
        return None
    slope = Fraction(values[first] - values[0], at[first] - at[0])
    offset = values[0] - slope * at[0]
    if slope == 0 or any(slope * d + offset != v for v, d in zip(values, at, strict=True)):
        return None
    c = math.lcm(slope.denominator, offset.denominator)
    return floor_divide(add(multiply(int(slope * c), dim), int(offset * c)), c)


def _two(values: Sequence[int], a: Dim, at_a: Sequence[int], b: Dim, at_b: Sequence[int]) -> Dim | None:
    """p * a + q * b + r with whole p, q and r."""
    x1, x2 = at_a[1] - at_a[0], at_a[2] - at_a[0]
    y1, y2 = at_b[1] - at_b[0], at_b[2] - at_b[0]
    v1, v2 = values[1] - values[0], values[2] - values[0]
    det = x1 * y2 - x2 * y1
    if det == 0 or (v1 * y2 - v2 * y1) % det or (x1 * v2 - x2 * v1) % det:
        return None
    p, q = (v1 * y2 - v2 * y1) // det, (x1 * v2 - x2 * v1) // det
    r = values[0] - p * at_a[0] - q * at_b[0]
    if p == 0 or q == 0 or any(p * d + q * e + r != v for v, d, e in zip(values, at_a, at_b, strict=True)):
        return None
    return add(add(multiply(p, a), multiply(q, b)), r)


def _floor(values: Sequence[int], dim: Dim, at: Sequence[int]) -> Dim | None:
    """floor((a dim + b) / c) with the least c; b is the only one that the points allow, or the least of those."""
    low, high = min(range(len(at)), key=at.__getitem__), max(range(len(at)), key=at.__getitem__)
    if at[low] == at[high]:
        return None
    slope = Fraction(values[high] - values[low], at[high] - at[low])
    for c in range(2, MOST_DIVISOR + 1):
        for a in dict.fromkeys((round(slope * c), math.floor(slope * c), math.ceil(slope * c))):
            if a <= 0 or math.gcd(a, c) > 1:
                continue
            gaps = [c * v - a * d for v, d in zip(values, at, strict=True)]
            least, most = max(gaps), min(gaps) + c - 1
            if least <= most:
                return floor_divide(add(multiply(a, dim), least), c)
    return None


def explain(
    at: Callable[[int], list[tuple[int, ...]]], known: Callable[[int], Known], where: str
) -> list[tuple[Dim, ...]]:
    """Shapes from what `at(point)` gives; known(points): the sizes that may explain, with that many values each.

    Raises TypeInferenceError for a rank that changes and for a size that no hypothesis explains.
    """
    basis = known(FEW)
    quick = [at(i) for i in QUICK]
    few: list[list[tuple[int, ...]]] = []
    many: list[list[tuple[int, ...]]] = []
    found: list[tuple[Dim, ...]] = []
    for i, shapes in enumerate(zip(*quick, strict=True)):
        if len({len(s) for s in shapes}) > 1:
            raise TypeInferenceError("the output's rank follows an open size", where=where)
        dims: list[Dim] = []
        for axis, sizes in enumerate(zip(*shapes, strict=True)):
            dim = next((d for d, v in basis if sizes == tuple(v[p] for p in QUICK)), None)
            if len(set(sizes)) == 1:
                dim = sizes[0]
            if dim is None:
                few = few or [at(p) for p in range(FEW)]
                dim = fit([outputs[i][axis] for outputs in few], basis)
            if dim is None:
                many = many or [*few, *(at(p) for p in range(FEW, MANY))]
                dim = fit_floor([outputs[i][axis] for outputs in many], known(MANY))
            if dim is None:
                values = ", ".join(str(outputs[i][axis]) for outputs in few)
                names = ", ".join(str(d) for d, _ in basis)
                raise TypeInferenceError(f"an output size ({values}) follows {names} in a way of its own", where=where)
            dims.append(dim)
        found.append(tuple(dims))
    return found
