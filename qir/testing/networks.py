"""Random float networks, for tests: whatever passes and runtimes claim must hold on all of them.

`random_network` builds one from a stream of choices; `networks()` is the hypothesis strategy over it, which shrinks to
small networks, and `Dice(seed)` a plain pseudo-random stream for long runs.  hypothesis is imported by the former only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..graph import Graph
from ..types import Array
from .attention import padding_mask
from .blocks import BLOCKS, BlockBuilder

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


class Choices(Protocol):
    """Where a network's structure comes from."""

    def integer(self, lo: int, hi: int) -> int:
        """An integer in [lo, hi]; the simplest is lo."""
        ...


@dataclass
class Dice:
    """Choices from a seed."""

    seed: int

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def integer(self, lo: int, hi: int) -> int:
        return int(self.rng.integers(lo, hi + 1))


@dataclass(frozen=True)
class RandomNetwork:
    """A float graph, the seed of its weights and data, and the size of each input's values, masks excepted."""

    graph: Graph
    seed: int
    scales: dict[str, float]

    def feeds(self, samples: int, *, stretch: float = 1.0, salt: int = 0) -> dict[str, Array]:
        """Normal data for all inputs, `stretch` times as large as the network is meant for; masks keep something."""
        rng = np.random.default_rng((self.seed, salt))
        feeds: dict[str, Array] = {}
        for value in self.graph.inputs:
            shape = (samples, *(int(d) for d in value.shape[1:]))
            if value.name in self.scales:
                data = rng.normal(size=shape) * self.scales[value.name] * stretch
            else:
                data = padding_mask(rng, shape)
            feeds[value.name] = data.astype(value.dtype.numpy)
        return feeds

    def __repr__(self) -> str:
        return f"RandomNetwork(seed={self.seed}, scales={self.scales})\n{self.graph}"


def random_network(choices: Choices, *, max_blocks: int = 7) -> RandomNetwork:
    """One network: 1 or 2 inputs (images, sequences, vectors; one may be unused), blocks on any of the tensors so far,
    1 to 3 outputs.

    Weights are normal, times a power of ten between 1e-6 and 1e6; some channels are dead.  Activations stay within
    float32 by keeping track of their size.
    """
    seed = choices.integer(0, 2**32 - 1)
    b = BlockBuilder(choices, np.random.default_rng(seed))
    scales: dict[str, float] = {}
    for _ in range(choices.integer(1, 2)):
        x = b.new_input()
        scales[x.value.name] = 10.0**x.size
    for _ in range(choices.integer(1, max_blocks)):
        x = b.pick(b.live[-3:][::-1])
        fitting = [block for block, ranks in BLOCKS if x.value.type.rank in ranks]
        b.live.append(b.pick(fitting)(b, x))
    loose = [t.value for t in b.live if t.value.use_count == 0 and t.value.producer is not None]
    more = [v for v in loose[:-1][-2:] if choices.integer(0, 1)]
    b.graph.set_outputs([loose[-1], *more])
    b.graph.prune()
    return RandomNetwork(b.graph, seed, scales)


def networks(max_blocks: int = 7) -> SearchStrategy[RandomNetwork]:
    """The hypothesis strategy of `random_network`."""
    from hypothesis import strategies as st

    class Drawn:
        def __init__(self, draw: Any) -> None:
            self.draw = draw

        def integer(self, lo: int, hi: int) -> int:
            return self.draw(st.integers(lo, hi))

    @st.composite
    def build(draw: Any) -> RandomNetwork:
        return random_network(Drawn(draw), max_blocks=max_blocks)

    return build()
