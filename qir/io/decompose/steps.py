"""Writing the nodes that one node stands for: a generator yields them in order, types are known as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...types import Array, Dim
from ..adapters import Raw, Scope

Decomposition = Callable[[Scope, Raw], Iterable[Raw]]
"""Gives the nodes one after another, in the IR's dialect of opset 21."""

Steps = Iterator[Raw]


class Writer:
    """Nodes named after the one that they stand for; each call gives the node to yield, `last` the name it computes."""

    def __init__(self, scope: Scope, raw: Raw) -> None:
        self.scope, self.raw = scope, raw
        self.last = ""

    def __call__(self, op: str, *inputs: str | None, output: str | None = None, **attrs: Any) -> Raw:
        """A node of one output; with `output` it is the result, under the name of the node that it stands for."""
        self.last = output or self.scope.fresh(f"{self.raw.name}.{op.lower()}")
        return Raw(op, self.raw.name if output else self.last, attrs, list(inputs), [self.last])

    def many(self, op: str, count: int, *inputs: str | None, **attrs: Any) -> Raw:
        """A node of several outputs."""
        names = [self.scope.fresh(f"{self.raw.name}.{op.lower()}{i}") for i in range(count)]
        return Raw(op, names[0], attrs, list(inputs), list(names))

    def ints(self, values: Sequence[int] | int) -> str:
        """An int64 constant."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def real(self, value: float) -> str:
        """A float32 constant."""
        return self.constant(np.asarray(value, dtype=np.float32))

    def constant(self, array: Array) -> str:
        return self.scope.constant(f"{self.raw.name}.constant", array)

    def shape(self, name: str | None) -> tuple[Dim, ...]:
        """The shape of a tensor that exists by now."""
        return self.scope.type(name or "").shape

    def rank(self, name: str | None) -> int:
        return len(self.shape(name))

    def need(self, index: int) -> str:
        """A required input.  Raises UnsupportedError where it is absent."""
        name = self.raw.input(index)
        if name is None:
            raise UnsupportedError(f"input {index} is missing", where=str(self.raw))
        return name

    def number(self, key: str, default: Any) -> Any:
        """An attribute, or its default."""
        return self.raw.attrs.get(key, default)

    def only(self, *known: str) -> None:
        """Raises UnsupportedError where the node has an attribute that is none of `known` and is not 0."""
        for key, value in self.raw.attrs.items():
            if key not in known and value not in (0, 0.0, b"", ""):
                raise UnsupportedError(f"attribute {key!r} = {value!r} is not supported", where=str(self.raw))

    def unused(self, first: int) -> None:
        """Raises UnsupportedError where outputs from `first` on are used."""
        if any(self.raw.outputs[first:]):
            raise UnsupportedError(f"output {first} and further ones are not supported", where=str(self.raw))

    @property
    def result(self) -> str:
        """The name of the first output."""
        return self.raw.outputs[0] or self.scope.fresh(f"{self.raw.name}.unused")

    def refuse(self, message: str, hint: str | None = None) -> UnsupportedError:
        return UnsupportedError(message, where=str(self.raw), hint=hint)


def number_of(size: Dim) -> int | None:
    """A size that is a number."""
    return size if isinstance(size, int) else None
