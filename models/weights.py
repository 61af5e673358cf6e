"""Where a builder's weights come from: a seed, or a state dict the user has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qir.errors import DataError, ModelError
from qir.types import Array

from .torch_file import read_torch_file

Source = "int | str | Path | Mapping[str, Array] | Weights"


class Weights(ABC):
    """Gives each parameter of a network, asked for by its torchvision key."""

    @abstractmethod
    def take(self, key: str, shape: tuple[int, ...]) -> Array:
        """The parameter, float32, of exactly this shape."""

    def finish(self) -> None:
        """Called when the network is built; complains about what was not used."""
        return


class RandomWeights(Weights):
    """He-normal weights and plausible BatchNorm statistics, reproducible from `seed`.

    w ~ N(0, 2 / fan_in)  [He et al. 2015, eq. 10];  gamma ~ U(0.5, 1.5), beta ~ N(0, 0.1),
    running mean ~ N(0, 0.1), running variance ~ U(0.5, 1.5).  Each key has its own stream, so a parameter does not
    depend on the order in which a builder asks.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def take(self, key: str, shape: tuple[int, ...]) -> Array:
        rng = np.random.default_rng([self.seed, *key.encode()])
        leaf = key.rpartition(".")[2]
        if len(shape) > 1:
            fan_in = int(np.prod(shape[1:]))
            values = rng.normal(0.0, np.sqrt(2.0 / fan_in), shape)
        elif leaf in ("running_var", "weight"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0.0, 0.1, shape)
        return values.astype(np.float32)


class StateDict(Weights):
    """Parameters by key from a mapping; `name` is what errors call it."""

    def __init__(self, arrays: Mapping[str, Any], name: str = "state dict", ignore: tuple[str, ...] = ()) -> None:
        self._arrays, self._name = arrays, name
        self._ignore = ("num_batches_tracked", *ignore)
        self._used: set[str] = set()

    def take(self, key: str, shape: tuple[int, ...]) -> Array:
        """Raises ModelError: key missing, another shape, or not finite."""
        if key not in self._arrays:
            from difflib import get_close_matches

            near = get_close_matches(key, list(self._arrays), 1)
            raise ModelError(f"no entry {key!r}", where=self._name, hint=f"it has {near[0]!r}" if near else None)
        array = np.asarray(self._arrays[key])
        if array.shape != shape:
            raise ModelError(f"{key!r} has shape {array.shape}, this network needs {shape}", where=self._name)
        if not np.isfinite(array).all():
            raise ModelError(f"{key!r} holds a value that is not finite", where=self._name)
        self._used.add(key)
        return array.astype(np.float32)

    def finish(self) -> None:
        """Raises ModelError where entries are left over: the weights belong to another network."""
        left = [k for k in self._arrays if k not in self._used and not any(part in k for part in self._ignore)]
        if left:
            raise ModelError(
                f"{len(left)} entries have no place in this network, such as {left[0]!r}", where=self._name
            )


def load_state_dict(path: str | Path) -> dict[str, Array]:
    """{key: array} from a .npz or a PyTorch checkpoint (.pth, .pt; nothing in it is executed).

    Raises DataError (no such file, another suffix), ModelError (unreadable).
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        except (ValueError, OSError, EOFError) as error:
            raise ModelError(f"is not a readable .npz: {error}", where=str(path)) from None
    if path.suffix in (".pth", ".pt"):
        return read_torch_file(path)
    raise DataError(f"weights come from .npz, .pth or .pt files, not {path.suffix!r}", where=str(path))


def weights_from(source: Any, ignore: tuple[str, ...] = ()) -> Weights:
    """A Weights from a seed (int), a file, a mapping, or a Weights as it is."""
    if isinstance(source, Weights):
        return source
    if isinstance(source, int):
        return RandomWeights(source)
    if isinstance(source, str | Path):
        return StateDict(load_state_dict(source), str(source), ignore)
    if isinstance(source, Mapping):
        return StateDict(source, ignore=ignore)
    raise DataError(f"weights come from a seed, a file or a mapping, not {type(source).__name__}")
