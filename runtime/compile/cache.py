"""Plans that a session keeps: one for each choice of sizes and of outputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
P = TypeVar("P")

MOST_PLANS = 8
"""What a session keeps by default."""


class PlanCache(OrderedDict[K, P]):
    """At most `most` plans by key; the one used longest ago goes first, before a new one needs its memory."""

    def __init__(self, most: int = MOST_PLANS) -> None:
        super().__init__()
        self.most = most

    def of(self, key: K, make: Callable[[], P]) -> P:
        """The plan of a key, made now if there is none."""
        if key not in self:
            while self and len(self) >= self.most:
                self.popitem(last=False)
            self[key] = make()
        self.move_to_end(key)
        return self[key]
