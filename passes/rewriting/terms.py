"""Terms: what the two sides of a rule are made of, and the constructors (`Conv(x, w, b)`) that build them.

The constructors are generated: `from .terms import Conv` gives a function that builds an application of the
operator registered as "Conv".  Keywords are attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Variable:
    """A name on a left-hand side; it matches any value (or the absence of an optional input)."""

    name: str


@dataclass(frozen=True, eq=False)
class Apply:
    """An operator applied to terms.

    Left: arguments are Variables, Applies, numbers (a constant all of whose elements are that number) or None
    (an absent input); `attrs` must be equal.  Right: arguments are Applies, Values, arrays, numbers or None, and
    attributes that are not given are those of the matched node of the same operator, where there is one.
    """

    op: str
    args: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict[str, Any])

    def depth(self) -> int:
        """Operators on the longest path."""
        return 1 + max((a.depth() for a in self.args if isinstance(a, Apply)), default=0)


def constructor(op: str) -> Callable[..., Any]:
    """The function that builds applications of `op`."""

    def build(*args: Any, **attrs: Any) -> Any:
        return Apply(op, args, attrs)

    build.__name__ = op
    return build


def __getattr__(name: str) -> Callable[..., Any]:
    if not name[:1].isupper():
        raise AttributeError(name)
    return constructor(name)
