"""Sizes that are open: exact integer expressions of a graph's symbols, such as "N", "12*N*S" and "(H+1)//2".

A size is an int, or the canonical text of a polynomial with integer coefficients over symbols and floors of such
polynomials.  Equal polynomials have equal texts, so equality of sizes is equality of texts; a floor is brought to the
one form in which its coefficients lie in [0, divisor) and no floor stands alone inside another:

    (H-1)//2 + 1 = (H+1)//2        ((H+1)//2+1)//2 = (H+3)//4
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..errors import TypeInferenceError
from ..types import Dim

BATCH = "N"
"""The symbol of the batch."""

TYPICAL = 64
"""What an open size other than the batch counts as where only a cost is asked for."""

LONGEST = 400
"""Characters of an expression; longer ones are refused."""

Sizes = Mapping[str, int]
"""What each symbol is."""

Poly = tuple[tuple[tuple[str, ...], int], ...]
"""Sorted (factors, coefficient) pairs; a factor is a symbol or the text "(...//c)"; no factors: the constant."""

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(//|[-+*()]))")


@dataclass(frozen=True)
class Symbol:
    """An open size of a graph's inputs.

    name: what the file calls it ("" for nothing).  step: sizes are multiples of it.
    long: it is tried with hundreds (an image, audio) instead of tens (a sequence) when types are inferred.
    """

    name: str = ""
    step: int = 1
    long: bool = False


# -- sums of products -------------------------------------------------------------------------------
def _pack(terms: Mapping[tuple[str, ...], int]) -> Poly:
    return tuple(sorted(((f, c) for f, c in terms.items() if c), key=lambda t: (-len(t[0]), t[0])))


def _added(*polys: Poly, scale: int = 1) -> Poly:
    """The sum of the first and `scale` times each of the others."""
    terms: dict[tuple[str, ...], int] = {}
    for i, poly in enumerate(polys):
        for factors, c in poly:
            terms[factors] = terms.get(factors, 0) + (c if i == 0 else c * scale)
    return _pack(terms)


def _times(a: Poly, b: Poly) -> Poly:
    terms: dict[tuple[str, ...], int] = {}
    for fa, ca in a:
        for fb, cb in b:
            key = tuple(sorted((*fa, *fb)))
            terms[key] = terms.get(key, 0) + ca * cb
    return _pack(terms)


def _floor(a: Poly, divisor: int) -> Poly:
    """floor(a / divisor): multiples of the divisor come out, floors inside join, common factors go."""
    if divisor < 0:
        a, divisor = _times(a, (((), -1),)), -divisor
    outside = _pack({f: c // divisor for f, c in a})
    inside = _pack({f: c % divisor for f, c in a})
    constant = dict(inside).get((), 0)
    open_terms = [(f, c) for f, c in inside if f]
    if not open_terms:
        return outside
    common = math.gcd(divisor, *(c for _, c in open_terms))
    if common > 1:
        inside = _pack({**{f: c // common for f, c in open_terms}, (): constant // common})
        return _added(outside, _floor(inside, divisor // common))
    if len(open_terms) == 1 and open_terms[0][1] == 1 and len(open_terms[0][0]) == 1 and open_terms[0][0][0][0] == "(":
        inner, c = _split_floor(open_terms[0][0][0])
        return _added(outside, _floor(_added(inner, (((), constant * c),)), divisor * c))
    text = _text(inside)
    whole = text if len(inside) == 1 and len(open_terms) == 1 and open_terms[0] == ((text,), 1) else f"({text})"
    return _added(outside, (((f"({whole}//{divisor})",), 1),))


def _split_floor(factor: str) -> tuple[Poly, int]:
    inner, _, divisor = factor[1:-1].rpartition("//")
    return _parse(inner), int(divisor)


def _text(poly: Poly) -> str:
    parts: list[str] = []
    for factors, c in poly:
        words = [*([str(abs(c))] if abs(c) != 1 or not factors else []), *factors]
        parts.append(("-" if c < 0 else "+" if parts else "") + "*".join(words))
    if len(parts) == 1 and len(poly[0][0]) == 1 and poly[0][1] == 1 and parts[0][0] == "(":
        return parts[0][1:-1]
    return "".join(parts) or "0"


def _dim(poly: Poly) -> Dim:
    if not poly:
        return 0
    if len(poly) == 1 and not poly[0][0]:
        return poly[0][1]
    text = _text(poly)
    if len(text) > LONGEST:
        raise TypeInferenceError(f"a size needs an expression of {len(text)} characters")
    return text


# -- text -------------------------------------------------------------------------------------------
@lru_cache(maxsize=65536)
def _parse(text: str) -> Poly:
    if len(text) > LONGEST:
        raise TypeInferenceError(f"a size of {len(text)} characters")
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise TypeInferenceError(f"{text!r} is no size")
        tokens.append(match.group().strip())
        at = match.end()
    tokens.reverse()

    def take(*wanted: str) -> str:
        return tokens.pop() if tokens and tokens[-1] in wanted else ""

    def factor() -> Poly:
        if not tokens:
            raise TypeInferenceError(f"{text!r} is no size")
        token = tokens.pop()
        if token == "(":
            inner = total()
            if not take(")"):
                raise TypeInferenceError(f"{text!r} is no size")
            return inner
        if token == "-":
            return _times(factor(), (((), -1),))
        if token.isdigit():
            return _pack({(): int(token)})
        if token[0].isalpha() or token[0] == "_":
            return (((token,), 1),)
        raise TypeInferenceError(f"{text!r} is no size")

    def product() -> Poly:
        found = factor()
        while sign := take("*", "//"):
            other = factor()
            if sign == "*":
                found = _times(found, other)
            elif len(other) == 1 and not other[0][0]:
                found = _floor(found, other[0][1])
            else:
                raise TypeInferenceError(f"{text!r} divides by no constant")
        return found

    def total() -> Poly:
        found = product()
        while sign := take("+", "-"):
            found = _added(found, product(), scale=1 if sign == "+" else -1)
        return found

    poly = total()
    if tokens:
        raise TypeInferenceError(f"{text!r} is no size")
    return poly


def _poly(dim: Dim) -> Poly:
    return _pack({(): dim}) if isinstance(dim, int) else _parse(dim)


# -- what others use --------------------------------------------------------------------------------
def canonical(text: str) -> Dim:
    """The size that a text says.  Raises TypeInferenceError where it says none."""
    return _dim(_parse(text))


def add(a: Dim, b: Dim, scale: int = 1) -> Dim:
    """a + scale * b"""
    return _dim(_added(_poly(a), _poly(b), scale=scale))


def multiply(*dims: Dim) -> Dim:
    """The product (1 of nothing)."""
    product: Poly = (((), 1),)
    for dim in dims:
        product = _times(product, _poly(dim))
    return _dim(product)


def floor_divide(a: Dim, divisor: int) -> Dim:
    """floor(a / divisor)"""
    return _dim(_floor(_poly(a), divisor))


@lru_cache(maxsize=65536)
def symbols_of(dim: Dim) -> frozenset[str]:
    """The symbols that a size follows."""
    return frozenset() if isinstance(dim, int) else frozenset(re.findall(r"[A-Za-z_]\w*", dim))


def value_of(dim: Dim, sizes: Sizes) -> int:
    """A size where each symbol is what `sizes` says.  Raises KeyError for a symbol that it does not name."""
    return dim if isinstance(dim, int) else _evaluate(_parse(dim), sizes)


def _evaluate(poly: Poly, sizes: Sizes) -> int:
    total = 0
    for factors, c in poly:
        for factor in factors:
            if factor[0] == "(":
                inner, divisor = _split_floor(factor)
                c *= _evaluate(inner, sizes) // divisor
            else:
                c *= sizes[factor]
        total += c
    return total


class Typical(dict[str, int]):
    """The batch as given, every other open size TYPICAL."""

    def __init__(self, batch: int = 1) -> None:
        super().__init__({BATCH: batch})

    def __missing__(self, symbol: str) -> int:
        return TYPICAL


def dim_at(dim: Dim, at: int | Sizes) -> int:
    """A size at given sizes of the symbols; an int is the batch, and other symbols are TYPICAL then."""
    if isinstance(dim, int):
        return dim
    return value_of(dim, Typical(at) if isinstance(at, int) else at)


def sizes_of(symbols: Mapping[str, Symbol], at: int | Sizes) -> dict[str, int]:
    """What each symbol is: as given; an int is the batch, and other symbols are near TYPICAL then."""
    if isinstance(at, int):
        return {n: at if n == BATCH else -(-TYPICAL // s.step) * s.step for n, s in symbols.items()}
    return {n: at.get(n, 1) for n in symbols}


def sizes_text(sizes: Sizes) -> str:
    """Sizes in a message: "a batch of 4, H = 32"."""
    words = [f"a batch of {n}" if symbol == BATCH else f"{symbol} = {n}" for symbol, n in sizes.items()]
    return ", ".join(words)


def solve(dim: str, size: int) -> tuple[str, int] | None:
    """(symbol, what it must be) for a dim that is a multiple of one symbol; None where it is none or does not fit."""
    poly = _parse(dim)
    if len(poly) != 1 or len(poly[0][0]) != 1 or poly[0][0][0][0] == "(":
        return None
    (symbol,), factor = poly[0]
    return (symbol, size // factor) if factor > 0 and size % factor == 0 else None


def solve_terms(dim: str) -> list[tuple[list[str | tuple[Dim, int]], int]]:
    """(factors, coefficient) of each product; a factor is a symbol or (what is divided, divisor)."""

    def factor(text: str) -> str | tuple[Dim, int]:
        if text[0] != "(":
            return text
        inner, divisor = _split_floor(text)
        return _dim(inner), divisor

    return [([factor(f) for f in factors], c) for factors, c in _parse(dim)]


def bind_sizes(shapes: Iterable[tuple[tuple[Dim, ...], tuple[int, ...]]]) -> dict[str, int]:
    """The symbols' sizes from shapes and what they are; sizes that contradict are not looked for."""
    found: dict[str, int] = {}
    for shape, sizes in shapes:
        for dim, size in zip(shape, sizes, strict=True):
            if isinstance(dim, str) and (pair := solve(dim, size)) is not None:
                found.setdefault(*pair)
    return found
