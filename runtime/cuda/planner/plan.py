"""A plan: placements, an arena's layout and launches, for one graph, one choice of sizes and one of outputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qir.errors import BackendError
from qir.graph import Graph, Node, Value
from qir.ops import op_of
from qir.shapes import SETTLED
from qir.sizes import BATCH, Sizes, dim_at, sizes_text
from qir.types import Array

from ...compile.tensors import assign_offsets
from ..arguments import RANK, SHAPE, record
from ..device.interface import Device, Launch
from ..instances import Kernel, kernel
from .choices import Choice, Chooser
from .concatenation import slots
from .constants import Constants
from .fusion import Group
from .placement import ALIGNMENT, CHUNK, Placement, Storage, place, row_major


class Plan:
    """What operators fill: `compile_plan` calls them, group by group, and a `Runner` gives the plan memory and runs it.

    packed: constants that all plans of a session share; those that follow sizes are the plan's own (`local`).
    """

    def __init__(
        self, graph: Graph, device: Device, sizes: Sizes, outputs: Sequence[Value], groups: Sequence[Group],
        packed: Constants, chooser: Chooser,
    ) -> None:  # fmt: skip
        self.graph, self.device, self.sizes, self.outputs = graph, device, sizes, list(outputs)
        self.batch = sizes.get(BATCH, 1)
        self.groups = {g.head: g for g in groups}
        self.packed, self.local = packed, Constants(device)
        self.choices: dict[Node, tuple[str, list[Choice], Choice]] = {}
        self._chooser = chooser
        self._lock = threading.Lock()
        self.placements: dict[Value, Placement] = {}
        self._known: dict[Value, Array] = {}
        self._storages: dict[Storage, None] = {}
        self._step = 0
        self._one_dimensional = any(n.op == "qir.Conv" and n.input(1).type.rank == 3 for n in graph.nodes)
        self._pending: list[tuple[Callable[[], tuple[Kernel, tuple[int, ...], tuple[Array, ...]]], Node]] = []
        self._head: Node | None = None
        self._slots = slots(graph, set(outputs), self._is_image)
        for value in graph.inputs:
            self.define(value)

    # -- compiling ----------------------------------------------------------------------------
    def begin(self, step: int, node: Node | None = None) -> None:
        """What follows is part of a step, whose launches count as the node's (default: the last one's)."""
        self._step, self._head = step, node or self._head

    def lay_out(self, results: dict[Value, Placement]) -> None:
        """Ends the plan: lifetimes are known, so that every storage gets its offset in the arena."""
        self.results = results
        for value in self.graph.inputs:
            self._touch(self.at(value).storage, 0)
        self.arena_size = assign_offsets(self._storages, ALIGNMENT, CHUNK)
        self.offsets = {s: s.offset for s in self._storages}

    @property
    def needs(self) -> str:
        """What a message says when there is no room."""
        constants = self.packed.size + self.local.size
        return f"{sizes_text(self.sizes)}: activations take {self.arena_size:,} bytes, constants {constants:,}"

    def build(self, base: int, moved: Mapping[Storage, int] | None = None) -> list[Launch]:
        """The launches over an arena at address `base`; storages in `moved` are elsewhere, at the addresses given."""
        elsewhere = moved or {}
        with self._lock:
            for storage, offset in self.offsets.items():
                storage.pointer = elsewhere.get(storage, base + offset)
            return [Launch(*build(), node) for build, node in self._pending]

    def evaluate(self, nodes: Sequence[Node]) -> bool:
        """Shapes, and what is computed from shapes and constants alone, are known once the sizes are: done here."""
        node = nodes[0]
        inputs = [v for v in node.inputs if v is not None]
        op = op_of(node.op)
        if len(nodes) > 1 or not (op.reads_shape_only or all(v.data is not None or v in self._known for v in inputs)):
            return False
        arrays: list[Array | None] = []
        for v in node.inputs:
            if v is None:
                arrays.append(None)
            elif op.reads_shape_only:
                arrays.append(np.broadcast_to(np.zeros((), np.int8), [dim_at(d, self.sizes) for d in v.shape]))
            else:
                arrays.append(self._known[v] if v.data is None else v.data)
        for value, data in zip(node.outputs, op.reference(node.attrs, *arrays), strict=False):
            self._known[value] = data
            self.placements[value] = self.local.constant(data)
        return True

    def _touch(self, storage: Storage, step: int | None = None) -> None:
        at = self._step if step is None else step
        if storage.pointer:  # a constant
            return
        self._storages[storage] = None
        storage.first = at if storage.first < 0 else min(storage.first, at)
        storage.last = max(storage.last, at)

    # -- what operators use -------------------------------------------------------------------
    def define(self, value: Value, image: bool | None = None) -> Placement:
        """A place for a value that is computed now, channels last or not if `image` says so.

        It is the value's slice of the concatenation that it goes into, if `slots` found one.
        """
        if value not in self.placements:
            natural = self._is_image(value)
            image = natural if image is None else image
            slot = self._slots.get(value) if image == natural else None
            if slot is None:
                self.placements[value] = place(value, self.sizes, image)
            else:
                whole = self.define(slot.whole)
                self.placements[value] = whole.part(1, slot.start, slot.channels)
        placement = self.placements[value]
        self._touch(placement.storage)
        return placement

    def _is_image(self, value: Value) -> bool:
        """Whether a value is kept channels last: an integer (N, C, H, W), or (N, C, L) among 1-D convolutions."""
        rank = value.type.rank
        if not value.dtype.is_integer or value in self.graph.inputs:
            return False
        return rank == 4 or (rank == 3 and self._one_dimensional)

    def alias(self, value: Value, placement: Placement) -> None:
        """The value is a view of what exists already."""
        self.placements[value] = placement
        self._touch(placement.storage)

    def at(self, value: Value) -> Placement:
        """Where a value is; constants are uploaded when first asked for."""
        if value.data is not None:
            own = value.name in self.graph.tables.get(SETTLED, ())
            return (self.local if own else self.packed).constant(value.data)
        placement = self.placements[value]
        self._touch(placement.storage)
        return placement

    def scratch(self, shape: Sequence[int], dtype: np.dtype[np.generic]) -> Placement:
        """A row-major temporary that lives through this step only."""
        placement = Placement(Storage(int(np.prod(shape)) * dtype.itemsize), dtype, tuple(shape), row_major(shape))
        self._touch(placement.storage)
        return placement

    def choose(self, group: Group, key: str, candidates: list[Choice]) -> Choice:
        """The way to launch a layer; `choices` remembers it by the layer's first node."""
        choice = self._chooser(key, candidates)
        self.choices[group.head] = (key, candidates, choice)
        return choice

    def launch(self, which: Kernel, grid: Sequence[int], build: Callable[[], Sequence[Array]]) -> None:
        """A launch whose arguments are made once addresses are known."""
        assert self._head is not None
        blocks = tuple(grid)
        self._pending.append((lambda: (which, blocks, tuple(build())), self._head))

    def elements(self, name: str, shape: Sequence[int], build: Callable[[], Sequence[Array]], width: int = 1) -> None:
        """A grid-stride launch over a shape; `width` threads work on one element."""
        which = kernel(name)
        count = int(np.prod(shape))
        if count == 0:
            return
        blocks = min(-(-count * width // which.threads), 65535)
        self.launch(which, (blocks,), lambda: [shape_of(shape), *build()])


def shape_of(shape: Sequence[int]) -> Array:
    """Struct `Shape`: leading ones, product.  Raises BackendError for more than six axes."""
    if len(shape) > RANK:
        raise BackendError(f"a tensor of {len(shape)} axes; the CUDA kernels take {RANK}")
    return record(SHAPE, count=int(np.prod(shape)), dims=[1] * (RANK - len(shape)) + list(shape))
