"""Relations between grids, as data: `Shared(a, b)` says that two tensors have one grid; a union-find solves them.

A key is (tensor name, bits): a tensor on the residual stream has a wide grid and, for its convolutions, a narrow
one; only the one that meets in a concatenation is shared there       [HAWQ-V3 eq. 10, III-D].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

Key = tuple[str, int]


@dataclass(frozen=True)
class Shared:
    """Keys `a` and `b` have one grid (operands of a concatenation and its result)."""

    a: Key
    b: Key


@dataclass(frozen=True)
class Derived:
    """`key` also has to hold the interval [lo, hi], whatever was observed (the value a Pad writes, a fixed range)."""

    key: Key
    lo: float
    hi: float


Relation = Shared | Derived


@dataclass
class Relations:
    """A growing set of relations and its solution."""

    items: list[Relation] = field(default_factory=list["Relation"])

    def shared(self, a: Key, b: Key) -> None:
        self.items.append(Shared(a, b))

    def derived(self, key: Key, lo: float, hi: float) -> None:
        self.items.append(Derived(key, lo, hi))

    def solve(self) -> Solution:
        """Classes of keys that share a grid, in time nearly linear in the relations."""
        return Solution(self.items)


class Solution:
    """The classes; `root(key)` names a key's class, `members(key)` lists it, `reach(key)` is what Derived adds."""

    def __init__(self, relations: Iterable[Relation]) -> None:
        self._parent: dict[Key, Key] = {}
        self._reach: dict[Key, tuple[float, float]] = {}
        self._derived: list[Derived] = []
        self._alone: dict[Key, tuple[float, float]] = {}
        for relation in relations:
            if isinstance(relation, Shared):
                self._union(relation.a, relation.b)
            else:
                self._derived.append(relation)
        for one in self._derived:
            root = self.root(one.key)
            lo, hi = self._reach.get(root, (one.lo, one.hi))
            self._reach[root] = (min(lo, one.lo), max(hi, one.hi))
            lo, hi = self._alone.get(one.key, (one.lo, one.hi))
            self._alone[one.key] = (min(lo, one.lo), max(hi, one.hi))
        self._members: dict[Key, list[Key]] = {}
        for key in self._parent:
            self._members.setdefault(self.root(key), []).append(key)

    def root(self, key: Key) -> Key:
        """The representative of a key's class (itself where nothing relates it)."""
        top = key
        while (up := self._parent.get(top, top)) != top:
            top = up
        while self._parent.get(key, key) != top:  # path compression
            self._parent[key], key = top, self._parent[key]
        return top

    def members(self, key: Key) -> list[Key]:
        """All keys of the class, in the order in which they were first mentioned."""
        return self._members.get(self.root(key), [key])

    def reach(self, key: Key) -> tuple[float, float] | None:
        """The interval that the class must hold besides what was observed."""
        return self._reach.get(self.root(key))

    def reach_alone(self, key: Key) -> tuple[float, float] | None:
        """The same of a key without its class."""
        return self._alone.get(key)

    def classes(self) -> Iterator[list[Key]]:
        """Classes of more than one key."""
        return (m for m in self._members.values() if len(m) > 1)

    def _union(self, a: Key, b: Key) -> None:
        for key in (a, b):
            self._parent.setdefault(key, key)
        ra, rb = self.root(a), self.root(b)
        if ra != rb:
            self._parent[rb] = ra
