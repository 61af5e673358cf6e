"""Mod: of indices and sizes, computed as they are; of reals where they are constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LoweringError
from ..lowering import Lowering
from ..types import Array
from .base import register
from .elementwise import Elementwise
from .shaping import plain

if TYPE_CHECKING:
    from ..graph import Node


@register
class Mod(Elementwise):
    """y = a mod b with the sign of b, or with fmod = 1 with the sign of a; of integers 0 where b is 0"""

    name = "Mod"
    flat = True
    inputs = "a b"
    attrs = {"fmod": 0}

    def reference(self, attrs: Mapping[str, Any], *inputs: Any) -> tuple[Array, ...]:
        a, b = np.asarray(inputs[0]), np.asarray(inputs[1])
        with np.errstate(all="ignore"):
            return (np.asarray(np.fmod(a, b) if attrs["fmod"] else np.mod(a, b)).astype(a.dtype),)

    def to_integer(self, low: Lowering, node: Node) -> None:
        if node.output.dtype.is_float and not all(low.is_constant(v) for v in node.inputs if v is not None):
            raise LoweringError("has no integer form on reals", where=str(node), hint="it jumps: no grid holds that")
        plain(low, node)
