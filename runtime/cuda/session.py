"""The backend `cuda` of `runtime.Session`: one plan for each batch size, constants shared between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qir.errors import BackendError
from qir.graph import Graph, Stage
from qir.types import Array

from .plan import Device, Packed, Plan
from .profile import Profile, profile


class Cuda:
    """Executes an integer graph.

    device: a `CupyDevice` (default: GPU 0), or an `EmulatedDevice` where there is none.
    Raises BackendError for a graph that is not integer, no CuPy, no GPU, or one older than sm_75.
    """

    def __init__(self, graph: Graph, device: Device | None = None) -> None:
        if graph.stage is not Stage.INTEGER:
            raise BackendError(
                f"the CUDA runtime executes integer graphs, this one is {graph.stage.name}",
                hint="run qir.quantize first",
            )
        if device is None:
            from .cupy_device import CupyDevice

            device = CupyDevice()
        self.graph, self.device = graph, device
        self.packed = Packed(device)
        self.plans: dict[tuple[int, tuple[str, ...]], Plan] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Arrays by name; feeds are checked by Session."""
        values = self.graph.outputs if outputs is None else [self.graph.value(n) for n in outputs]
        return self.plan(self.batch_of(feeds), [v.name for v in values]).run(feeds)

    def profile(self, batch: int = 1, repeat: int = 20) -> Profile:
        """Time, operations and bytes of every launch at a batch size."""
        return profile(self.plan(batch, [v.name for v in self.graph.outputs]), repeat)

    def batch_of(self, feeds: Mapping[str, Array]) -> int:
        """The size that "N" stands for in these feeds (1 where nothing is symbolic)."""
        for value in self.graph.inputs:
            for dim, size in zip(value.shape, feeds[value.name].shape, strict=True):
                if isinstance(dim, str):
                    factor: Any = dim.rpartition("*")[0] or 1
                    return size // int(factor)
        return 1

    def plan(self, batch: int, outputs: Sequence[str]) -> Plan:
        """The plan for a batch size and a choice of outputs, compiled once."""
        key = (batch, tuple(outputs))
        if key not in self.plans:
            self.plans[key] = Plan(self.graph, self.device, batch, [self.graph.value(n) for n in outputs], self.packed)
        return self.plans[key]
