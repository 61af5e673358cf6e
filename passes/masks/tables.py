"""Tables of a tensor that is a function of a few booleans: see `two_valued`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qir.graph import Node, Value
from qir.types import Array

MOST = 4
"""Tables have at most 2^MOST entries."""


@dataclass(frozen=True, eq=False)
class Base:
    """A boolean tensor, by what makes it; each is made once.

    kind: "is" (`value` itself), "one" (value is 1: an input taken as 0 or 1), "constant" (value is `number`), "moved"
    (`inner`, moved by `node` as its output `output`), "filled" (true, in the shape that `node` fills).
    assumes: whether an input is taken as 0 or 1.  always: it is true everywhere, and lends its shape.
    """

    kind: str
    value: Value | None = None
    number: float = 0.0
    node: Node | None = None
    output: int = 0
    inner: Tabled | None = None
    depth: int = 0
    assumes: bool = False
    always: bool = False


@dataclass(frozen=True)
class Tabled:
    """See the module. `table` has 2^len(bases) entries, float64; of a boolean tensor, 0 and 1."""

    bases: tuple[Base, ...]
    table: tuple[float, ...]

    @property
    def values(self) -> list[float]:
        return sorted(set(self.table))

    def over(self, bases: Sequence[Base]) -> Array:
        """The table over more bases."""
        where = [list(bases).index(b) for b in self.bases]
        i = np.arange(1 << len(bases))
        own = sum((((i >> at) & 1) << k for k, at in enumerate(where)), np.zeros_like(i))
        return np.asarray(self.table, np.float64)[own]

    def map(self, f: Callable[[Array], Any]) -> Tabled:
        return combine(f, self)


ZERO = Tabled((), (0.0,))


def combine(f: Callable[..., Any], *xs: Tabled) -> Tabled:
    """The table of f(x, ...), elementwise."""
    bases = tuple(dict.fromkeys(b for x in xs for b in x.bases))
    with np.errstate(all="ignore"):
        result = np.asarray(f(*(x.over(bases) for x in xs)), np.float64)
    return Tabled(bases, tuple(float(v) for v in np.broadcast_to(result, (1 << len(bases),))))


def implies(given: Sequence[Tabled], then: Tabled) -> bool:
    """Whether `then` is 1 wherever all of `given` are true."""
    bases = tuple(dict.fromkeys(b for x in (*given, then) for b in x.bases))
    if len(bases) > 3 * MOST:
        return False
    holds = np.ones(1 << len(bases), bool)
    for x in given:
        holds &= x.over(bases) != 0
    return bool(np.all(then.over(bases)[holds] == 1))
