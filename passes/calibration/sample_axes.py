"""Which axis of each input counts samples, and what an input without one is fed.

An input whose type names the batch has its samples there, be it the first axis or not (states are often of shape
(layers, batch, size)).  Where other inputs name it and one does not, that one is the same for every sample (a rate, a
constant state).  Where none does, the first axis is a fixed batch, or, if it is open under another name (nodes of a
graph), an array is one sample as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qir.errors import DataError
from qir.sizes import BATCH
from qir.types import Array, TensorType

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleAxes:
    """axis: of each input, None where it has none.  fixed: samples that a run takes, None where that is free.
    whole: no input has any: what is given is fed as it is."""

    types: Mapping[str, TensorType]
    axis: Mapping[str, int | None]
    fixed: int | None
    whole: bool

    @staticmethod
    def of(types: Mapping[str, TensorType]) -> SampleAxes:
        axis: dict[str, int | None] = {n: t.shape.index(BATCH) if BATCH in t.shape else None for n, t in types.items()}
        if any(a is not None for a in axis.values()):
            return SampleAxes(types, axis, None, False)
        first = [t.shape[0] for t in types.values() if t.shape]
        if any(isinstance(d, str) for d in first) or not first:
            return SampleAxes(types, axis, None, True)
        return SampleAxes(
            types, {n: 0 if t.shape else None for n, t in types.items()}, max(int(d) for d in first), False
        )

    def count(self, arrays: Mapping[str, Array]) -> int:
        """Samples in a mapping of arrays.  Raises DataError where the inputs differ."""
        counts = {n: arrays[n].shape[a] for n, a in self.axis.items() if a is not None and n in arrays}
        if len(set(counts.values())) > 1:
            raise DataError(f"inputs of one batch have different numbers of samples: {sorted(set(counts.values()))}")
        return next(iter(counts.values()), 1)

    def cut(self, name: str, array: Array, start: int, stop: int) -> Array:
        """Samples [start, stop) of an input's array; all of one without samples."""
        axis = self.axis[name]
        return array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]

    def joined(self, parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        """Several mappings as one, sample after sample."""
        if len(parts) == 1:
            return dict(parts[0])
        return {
            n: parts[0][n] if a is None else np.concatenate([p[n] for p in parts], axis=a) for n, a in self.axis.items()
        }

    def alike(self, a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
        """Whether two mappings can be one: all sizes but the numbers of samples are equal, what is shared is equal."""
        for name, axis in self.axis.items():
            x, y = a[name], b[name]
            if axis is None:
                if x.shape != y.shape or not np.array_equal(x, y):
                    return False
            elif x.shape[:axis] + x.shape[axis + 1 :] != y.shape[:axis] + y.shape[axis + 1 :]:
                return False
        return True

    def may_be_absent(self, name: str) -> bool:
        """Whether zeros stand for an input that is not given: a state, or a number that all samples share."""
        return not self.whole and self.fixed is None and self.axis[name] != 0

    def completed(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """With zeros for inputs that may be absent, in the graph's order.  Raises DataError where a size is open."""
        found: dict[str, Array] = {}
        samples = self.count(arrays)
        for name, kind in self.types.items():
            if name in arrays:
                found[name] = arrays[name]
                continue
            shape = [samples if d == BATCH else d for d in kind.shape]
            if any(isinstance(d, str) for d in shape):
                raise DataError("is missing, and its sizes are open", where=f"input {name!r}")
            found[name] = np.zeros([int(d) for d in shape], kind.dtype.numpy)
        return found


def say_absent(names: Sequence[str]) -> None:
    """Log which inputs are fed zeros."""
    if names:
        log.warning("the data have no %s: zeros are fed", ", ".join(repr(n) for n in names))
