"""Whether two backends give the same bits, on every tensor of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from qir.graph import Graph
from qir.types import Array

from ..session import Session


@dataclass
class Exactness:
    """tensors: how many were compared; values: their elements; differing: tensor name -> elements that differ."""

    tensors: int = 0
    values: int = 0
    differing: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def exact(self) -> bool:
        """Something was compared and nothing differs."""
        return self.values > 0 and not self.differing


def computed(graph: Graph) -> list[str]:
    """Names of all values that a node computes, in topological order."""
    return [v.name for n in graph.nodes for v in n.outputs]


def exactness(
    graph: Graph, feeds: Mapping[str, Array], *, backends: tuple[str, str] = ("reference", "onnxruntime"), step: int = 4
) -> Exactness:
    """Compares dtype, shape and bits of every computed tensor, intermediate ones included.

    feeds: one array for each input, first axis samples; taken `step` samples at a time, to bound the memory.
    A tensor whose dtype or shape differs counts as wholly different.
    Raises what the sessions raise (BackendError, DataError).
    """
    names = computed(graph)
    first, second = (Session(graph, backend) for backend in backends)
    result = Exactness(tensors=len(names))
    samples = min((len(a) for a in feeds.values()), default=1)
    for start in range(0, samples, step):
        part = {k: v[start : start + step] for k, v in feeds.items()}
        a, b = first.run(part, outputs=names), second.run(part, outputs=names)
        for name in names:
            x, y = a.pop(name), b.pop(name)
            result.values += x.size
            same = x.dtype == y.dtype and x.shape == y.shape
            wrong = int(np.count_nonzero(x != y)) if same else x.size
            if wrong:
                result.differing[name] = result.differing.get(name, 0) + wrong
    return result
