"""Constants in the memory of a device."""

from __future__ import annotations

from typing import Any

import numpy as np

from qir.types import Array

from ..device.interface import Device, Memory
from .placement import Placement, Storage, row_major


class Constants:
    """Constants on the device, uploaded once and shared by the plans of a session."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._memory: dict[tuple[Any, ...], tuple[Memory, Placement, object]] = {}

    def constant(self, array: Array, key: tuple[Any, ...] | None = None, origin: object = None) -> Placement:
        """A constant array, row-major.

        key: tells apart what was made from one array; default: the array itself.  origin: what ids in the key belong
        to, kept so that they stay its own.
        """
        key = key or (id(array), "plain")
        if key not in self._memory:
            data = np.ascontiguousarray(array)
            memory = self.device.allocate(data.nbytes, f"a constant, after {self.size:,} bytes of them")
            self.device.upload(memory.pointer, data)
            storage = Storage(data.nbytes, memory.pointer)
            placement = Placement(storage, data.dtype, array.shape, row_major(array.shape))
            self._memory[key] = (memory, placement, (array, origin))
        return self._memory[key][1]

    @property
    def size(self) -> int:
        """Bytes of constants on the device."""
        return sum(p.storage.size for _, p, _ in self._memory.values())
