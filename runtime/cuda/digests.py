"""Digests of what layers compute from the same numbers: every way to launch a layer has to yield the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from qir.graph import Node, Value
from qir.types import DType

from .arguments import scalar
from .device.interface import Device, Launch, Memory
from .instances import kernel
from .planner.plan import shape_of
from .runner import Runner

PATTERN = 4 << 20
"""Bytes of random numbers that inputs are filled with, again and again from their beginning on."""

BLOCKS = 64


class Digests:
    """Runs single layers of plans on random numbers, the same in each plan, and folds their outputs on the device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._patterns: dict[DType, Memory] = {}
        which = kernel("digest_elements")
        self._size = BLOCKS * which.threads * 8
        self._folded = device.allocate(self._size, "digests")
        self._host = device.pinned(self._size)

    def of(self, runner: Runner, nodes: Iterable[Node]) -> dict[Node, bytes]:
        """The outputs of the layers that begin with `nodes`.  Raises BackendError where one cannot run."""
        return {node: self._layer(runner, node) for node in nodes}

    def _layer(self, runner: Runner, node: Node) -> bytes:
        plan, device = runner.plan, self.device
        group = plan.groups[node]
        stream: Any = device.stream()
        for value in {v: None for v in (*node.inputs, group.residual) if v is not None and v.data is None}:
            self._fill(runner, value, stream)
        device.record([launch for launch in runner.launches if launch.head is node]).launch(stream)
        results = [group.output] if group.second is None else [group.output, group.second.output]
        return b"".join(self._fold(runner, value, node, stream) for value in results)

    def _fill(self, runner: Runner, value: Value, stream: Any) -> None:
        storage = runner.plan.placements[value].storage
        pattern = self._pattern(value.dtype)
        for start in range(0, storage.size, PATTERN):
            self.device.copy(
                storage.pointer + start, pattern.pointer, min(PATTERN, storage.size - start), stream
            )  # fmt: skip

    def _pattern(self, dtype: DType) -> Memory:
        if dtype not in self._patterns:
            count = PATTERN // dtype.numpy.itemsize
            numbers = np.random.default_rng(dtype.bits).integers(dtype.lo, dtype.hi, count, np.int64, endpoint=True)
            memory = self.device.allocate(PATTERN, "random numbers")
            self.device.upload(memory.pointer, numbers.astype(dtype.numpy))
            self._patterns[dtype] = memory
        return self._patterns[dtype]

    def _fold(self, runner: Runner, value: Value, node: Node, stream: Any) -> bytes:
        place = runner.plan.placements[value]
        arguments = (shape_of(place.shape), place.view(), scalar("u8", self._folded.pointer))
        launch = Launch(kernel("digest_elements"), (BLOCKS,), arguments, node)
        self.device.record([launch]).launch(stream)
        self.device.copy(self._host.pointer, self._folded.pointer, self._size, stream)
        self.device.synchronize()
        return self._host.array.tobytes()
