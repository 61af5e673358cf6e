"""What a backend is: the class that every executor extends, with what it may leave out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from qir.errors import BackendError
from qir.graph import Graph
from qir.sizes import bind_sizes, sizes_of
from qir.types import Array

from .profile import Profile


class Running(Protocol):
    """A run under way."""

    @property
    def done(self) -> bool:
        """Whether `result` would return without waiting."""
        ...

    def result(self) -> dict[str, Any]:
        """Outputs by name, once they are there."""
        ...


class Backend(ABC):
    """An executor of one graph.

    `Session` calls it with feeds that it has checked: arrays of each input's dtype and shape, with one "N" in all.
    A backend names its own options as keyword arguments of `__init__` and of the methods here.
    """

    name: ClassVar[str]
    """The key of `BACKENDS`."""

    takes_device_tensors: ClassVar[bool] = False
    """Whether feeds may be in the memory of a GPU; they come through `adopt` then."""

    @abstractmethod
    def __init__(self, graph: Graph) -> None:
        """Raises BackendError for a graph that it cannot run, and where what it needs is not here."""

    @abstractmethod
    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Arrays by name, those of the graph's outputs where `outputs` is None; it may name any value of the graph."""

    def run_async(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> Running:
        """Start a run and return at once."""
        raise BackendError(f"backend {self.name!r} cannot run asynchronously")

    def adopt(self, tensor: object, stream: object = None) -> Any:
        """A caller's tensor in device memory as `run` takes it: something with dtype and shape."""
        raise BackendError(f"backend {self.name!r} takes no tensors in device memory")

    def profile(self, feeds: Mapping[str, Array]) -> Profile:
        """Time, multiply-accumulates and bytes of each step."""
        raise BackendError(f"backend {self.name!r} has no profile")


def fed_sizes(graph: Graph, feeds: Mapping[str, Any]) -> dict[str, int]:
    """What each symbol is for these (checked) feeds; 1 where no input tells."""
    return sizes_of(graph.symbols, bind_sizes((v.shape, tuple(feeds[v.name].shape)) for v in graph.inputs))
