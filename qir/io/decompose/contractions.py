"""Einsum, and products of matrices that other tools fused."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..adapters import Raw, Scope
from .steps import Decomposition, Steps, Writer

ELLIPSIS = "..."


def einsum(scope: Scope, raw: Raw) -> Steps:
    """Sums of products by labels, two operands at a time: Transpose, MatMul (or Mul), Reshape, Transpose.

    Labels of both operands that the result keeps are batch axes of the product, labels that it drops are summed.
    Raises UnsupportedError: a label twice in one operand, sizes whose product is not known.
    """
    w = Writer(scope, raw)
    equation = w.number("equation", "")
    terms, result = _parse(w, equation.decode() if isinstance(equation, bytes) else equation)
    names = [w.need(i) for i in range(len(terms))]
    while len(names) > 1:
        later = set(result).union(*terms[2:])
        kept = [x for x in dict.fromkeys(terms[0] + terms[1]) if x in later]
        yield from _product(w, names[:2], terms[:2], kept)
        names[:2], terms[:2] = [w.last], [_order(terms[0], terms[1], kept)]
    yield from _sum_away(w, names[0], terms[0], result)
    names[0], terms[0] = w.last, [x for x in terms[0] if x in result]
    order = [terms[0].index(x) for x in result]
    yield w("Transpose", names[0], perm=order, output=w.result)


def _parse(w: Writer, equation: str) -> tuple[list[list[str]], list[str]]:
    """Labels of each operand and of the result; an ellipsis becomes labels of its own, counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    words = left.split(",")
    if len(words) != len(w.raw.inputs):
        raise w.refuse(f"equation {equation!r} for {len(w.raw.inputs)} operands")
    terms: list[list[str]] = []
    longest = 0
    for i, word in enumerate(words):
        letters = word.replace(ELLIPSIS, "")
        extra = w.rank(w.need(i)) - len(letters)
        if extra < 0 or (extra and ELLIPSIS not in word) or len(set(letters)) < len(letters):
            raise w.refuse(f"operand {word!r} of equation {equation!r} for a tensor of rank {w.rank(w.need(i))}",
                           "a label twice in one operand (a diagonal) is not supported")  # fmt: skip
        longest = max(longest, extra)
        before, _, after = word.partition(ELLIPSIS)
        terms.append([*before, *(f"~{k}" for k in range(extra, 0, -1)), *after])
    dots = [f"~{k}" for k in range(longest, 0, -1)]
    if arrow:
        before, dotted, after = right.partition(ELLIPSIS)
        result = [*before, *(dots if dotted else []), *after]
    else:
        every = [x for t in terms for x in t if not x.startswith("~")]
        result = [*dots, *sorted(x for x in set(every) if every.count(x) == 1)]
    if not set(result) <= {x for t in terms for x in t}:
        raise w.refuse(f"equation {equation!r} has labels in its result that no operand has")
    return terms, result


def _order(a: Sequence[str], b: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Labels of a product: those of both, of the first alone, of the second alone."""
    both = [x for x in a if x in b and x in kept]
    return [*both, *(x for x in a if x in kept and x not in b), *(x for x in b if x in kept and x not in a)]


def _sum_away(w: Writer, name: str, term: Sequence[str], kept: Sequence[str]) -> Steps:
    """Sum over the labels that are not kept; `w.last` is the result."""
    axes = [i for i, x in enumerate(term) if x not in kept]
    w.last = name
    if axes:
        yield w("ReduceSum", name, w.ints(axes), keepdims=0)


def _arranged(w: Writer, name: str, term: Sequence[str], order: Sequence[str]) -> Steps:
    perm = [list(term).index(x) for x in order]
    w.last = name
    if perm != list(range(len(perm))):
        yield w("Transpose", name, perm=perm)


def _merged(w: Writer, name: str, kept: int, groups: Sequence[int]) -> Steps:
    """A reshape that keeps the first axes and makes one axis of each group of those behind (of none: a 1)."""
    shape, at = w.shape(name), kept
    target: list[int] = [0] * kept
    w.last = name
    if all(count == 1 for count in groups):
        return
    for count in groups:
        sizes = shape[at : at + count]
        at += count
        known = [d for d in sizes if isinstance(d, int)]
        target.append(math.prod(known) if len(known) == count else -1)
    if target.count(-1) > 1:
        raise w.refuse("joins axes whose sizes are open")
    yield w("Reshape", name, w.ints(target))


def _product(w: Writer, names: Sequence[str], terms: Sequence[Sequence[str]], kept: Sequence[str]) -> Steps:
    a, b = terms
    needed = [[x for x in t if x in kept or x in o] for t, o in ((a, b), (b, a))]
    operands: list[str] = []
    for name, term, want in zip(names, terms, needed, strict=True):
        yield from _sum_away(w, name, term, want)
        operands.append(w.last)
    a, b = needed
    both = [x for x in a if x in b and x in kept]
    summed = [x for x in a if x in b and x not in kept]
    free_a, free_b = [x for x in a if x not in b], [x for x in b if x not in a]
    if not summed:
        yield from _outer(w, operands, (a, b), both, free_a, free_b)
        return
    sizes = {x: d for t, n in zip((a, b), operands, strict=True) for x, d in zip(t, w.shape(n), strict=True)}
    yield from _arranged(w, operands[0], a, [*both, *free_a, *summed])
    rows = not both and len(free_a) > 0  # a product with a matrix takes any number of axes before the last
    yield from _merged(w, w.last, len(both), [1] * len(free_a) + [len(summed)] if rows else [len(free_a), len(summed)])
    left = w.last
    yield from _arranged(w, operands[1], b, [*both, *summed, *free_b])
    yield from _merged(w, w.last, len(both), [len(summed), len(free_b)])
    yield w("MatMul", left, w.last)
    if len(free_b) != 1 or (len(free_a) != 1 and not rows):
        front = len(both) + (len(free_a) if rows else 0)
        behind = [sizes[x] for x in ([] if rows else free_a)] + [sizes[x] for x in free_b]
        target = [0] * front + [d if isinstance(d, int) else -1 for d in behind]
        if target.count(-1) > 1:
            raise w.refuse("splits axes whose sizes are open")
        yield w("Reshape", w.last, w.ints(target))


def _outer(
    w: Writer, operands: Sequence[str], terms: Sequence[Sequence[str]], both: list[str], free_a: list[str],
    free_b: list[str],
) -> Steps:  # fmt: skip
    """Nothing is summed: an elementwise product with axes of size 1."""
    yield from _arranged(w, operands[0], terms[0], [*both, *free_a])
    left = w.last
    if free_b:
        at = len(both) + len(free_a)
        yield w("Unsqueeze", left, w.ints(list(range(at, at + len(free_b)))))
        left = w.last
    yield from _arranged(w, operands[1], terms[1], [*both, *free_b])
    if free_a and (both or free_b):
        yield w("Unsqueeze", w.last, w.ints(list(range(len(both), len(both) + len(free_a)))))
    yield w("Mul", left, w.last)


def fused_matmul(scope: Scope, raw: Raw) -> Steps:
    """com.microsoft FusedMatMul: alpha op(a) op(b), op a transpose of the last two axes."""
    w = Writer(scope, raw)
    w.only("alpha", "transA", "transB")
    sides: list[str] = []
    for i, key in enumerate(("transA", "transB")):
        sides.append(w.need(i))
        if w.number(key, 0) and (rank := w.rank(sides[-1])) > 1:
            yield w("Transpose", sides[-1], perm=[*range(rank - 2), rank - 1, rank - 2])
            sides[-1] = w.last
    alpha = float(w.number("alpha", 1.0))
    yield w("MatMul", *sides, output=w.result if alpha == 1 else None)
    if alpha != 1:
        yield w("Mul", w.last, w.real(alpha), output=w.result)


STANDARD: dict[str, Decomposition] = {"Einsum": einsum}
MICROSOFT: dict[str, Decomposition] = {"FusedMatMul": fused_matmul}
