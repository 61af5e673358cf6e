"""What lowering asks about axes whose size is open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..errors import LoweringError
from ..sizes import dim_at
from ..sizes.fitting import FEW, probe
from ..types import Dim
from .size_values import size_vector

if TYPE_CHECKING:
    from ..graph import Graph, Node, Value

T = TypeVar("T")

GIVE_SIZES = "give the sizes of open inputs when loading (--input-shape)"


def at_every_size(node: Node, dims: Sequence[Dim], find: Callable[[list[int]], T], what: str) -> T:
    """find(sizes) where it is the same whatever the open ones among `dims` are.

    Raises LoweringError, saying `what` follows them, where it is not.
    """
    if all(isinstance(d, int) for d in dims):
        return find([int(d) for d in dims])
    symbols = node.graph.symbols
    found = [find([dim_at(d, probe(symbols, p)) for d in dims]) for p in range(FEW)]
    if any(f != found[0] for f in found):
        raise LoweringError(
            f"{what} follow the open sizes {', '.join(map(str, dims))}", where=str(node), hint=GIVE_SIZES
        )
    return found[0]


def sizes_constant(graph: Graph, dims: Sequence[Dim], name: str, where: str) -> Value:
    """int64 (len(dims),) in the graph: a constant, or computed from its inputs' shapes.  Raises LoweringError."""
    if all(isinstance(d, int) for d in dims):
        return graph.add_constant(name, np.asarray(dims, np.int64))
    value = size_vector(graph, dims)
    if value is None:
        raise LoweringError(f"sizes {list(dims)} cannot be told from the inputs' shapes", where=where, hint=GIVE_SIZES)
    return value
