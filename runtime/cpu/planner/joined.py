"""Micro-operations that one CPU kernel does together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...compile.micro_operations import AddTensor, Load, MicroOperation, Rescale, Store
from ...compile.tensors import View


@dataclass(frozen=True, eq=False)
class RescaleStore(MicroOperation):
    """A rescaling that is stored in 8 bits and read by nothing else."""

    rescale: Rescale
    store: Store


@dataclass(frozen=True, eq=False)
class AddMemory(MicroOperation):
    """A sum whose second operand is loaded for it alone.  store: where it goes in 8 bits, if nothing else reads it."""

    load: Load
    add: AddTensor
    store: Store | None = None

    @property
    def writes(self) -> tuple[int, ...]:
        return () if self.store else self.add.writes


@dataclass(frozen=True, eq=False)
class Finish(MicroOperation):
    """A layer's whole end, by a kernel of `finish`.

    added: what else is added to the rescaled value; mode: which end; parameters: the numbers of what follows.
    summand: int16, added to the rescaled value; wide: int16 target; narrow: 8-bit target.
    """

    rescale: Rescale
    added: int
    mode: int
    parameters: tuple[int, ...]
    summand: View | None = None
    wide: View | None = None
    narrow: View | None = None

    @property
    def in_place(self) -> bool:
        """Whether the sum is written over its summand."""
        return self.wide is not None and self.wide == self.summand

    def over_summand(self) -> Finish:
        return replace(self, wide=self.summand)
