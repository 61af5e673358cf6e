"""Read a PyTorch checkpoint (.pth, .pt) without PyTorch, and without executing anything that is in it.

A checkpoint is a pickle with the tensors' bytes beside it.  Pickles may call any function they name; here only the
few names below are known, and all of them are bound to functions of this file, so a hostile file can at worst be
refused.  Two containers exist: a ZIP archive (PyTorch 1.6 and later) and a sequence of pickles (before it).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qir.errors import ModelError, QirError
from qir.types import Array

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "<i1", "ByteStorage": "<u1", "BoolStorage": "|b1",
}  # fmt: skip


@dataclass(frozen=True)
class _StorageType:
    dtype: np.dtype[Any]


@dataclass
class _Storage:
    """One flat buffer; `data` is filled at once (ZIP) or after the pickle was read (legacy)."""

    dtype: np.dtype[Any]
    count: int
    data: Array | None = None


@dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage, resolved when all storages are there."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> Array:
        """A contiguous copy.  Raises ModelError for a view that leaves its storage."""
        data = self.storage.data
        if data is None:
            raise ModelError("a tensor's storage is missing")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= len(data)):
            raise ModelError(f"a tensor {self.shape} reaches outside its storage of {len(data)} elements")
        if 0 in self.shape:
            return np.zeros(self.shape, data.dtype)
        strides = [s * data.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.shape, strides).copy()


def _rebuild_tensor(storage: Any, offset: int, shape: Sequence[int], strides: Sequence[int], *_rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ModelError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(int(n) for n in shape), tuple(int(s) for s in strides))


def _rebuild_parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): _StorageType(np.dtype(code)) for name, code in _STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    """An Unpickler that knows the names in `_KNOWN` and no others."""

    def __init__(self, file: BinaryIO, storage: Callable[[_StorageType, str, int], _Storage] | None = None) -> None:
        super().__init__(file)
        self._storage = storage

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise ModelError(
                f"the checkpoint names {module_name}.{global_name}, which no state dict needs; nothing was executed",
                hint="save the state dict alone: torch.save(model.state_dict(), path)",
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if self._storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ModelError("an unknown kind of persistent object")
        kind, key, count = pid[1], str(pid[2]), int(pid[4])
        if not isinstance(kind, _StorageType) or count < 0 or (len(pid) > 5 and pid[5] is not None):
            raise ModelError(f"storage {key!r} is of an unknown kind")
        return self._storage(kind, key, count)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ModelError("the archive holds no data.pkl: not a PyTorch checkpoint")
        folder = pickles[0][: -len("data.pkl")]
        order = f"{folder}byteorder"
        if order in archive.namelist() and archive.read(order).strip() != b"little":
            raise ModelError("big-endian checkpoints are not supported")

        cache: dict[str, _Storage] = {}

        def storage(kind: _StorageType, key: str, count: int) -> _Storage:
            if key not in cache:
                raw = archive.read(f"{folder}data/{key}")
                if len(raw) != count * kind.dtype.itemsize:
                    raise ModelError(f"storage {key!r} has {len(raw)} bytes for {count} elements of {kind.dtype}")
                cache[key] = _Storage(kind.dtype, count, np.frombuffer(raw, kind.dtype))
            return cache[key]

        return _Reader(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        if _Reader(file).load() != _MAGIC:
            raise ModelError("not a PyTorch checkpoint")
        for _ in ("protocol version", "system information"):
            _Reader(file).load()
        storages: dict[str, _Storage] = {}

        def storage(kind: _StorageType, key: str, count: int) -> _Storage:
            return storages.setdefault(key, _Storage(kind.dtype, count))

        result = _Reader(file, storage).load()
        for key in _Reader(file).load():
            target = storages.get(str(key))
            count = int.from_bytes(file.read(8), "little")
            if target is None or count != target.count:
                raise ModelError(f"storage {key!r} is not the one that the tensors name")
            raw = file.read(count * target.dtype.itemsize)
            if len(raw) != count * target.dtype.itemsize:
                raise ModelError("the file is truncated")
            target.data = np.frombuffer(raw, target.dtype)
        return result


def read_torch_file(path: str | Path) -> dict[str, Array]:
    """The state dict of a checkpoint: {key: array}.

    A checkpoint that keeps it under "state_dict" or "model" is unwrapped; entries that are no tensors are left out.
    Raises ModelError (not a checkpoint, truncated, names a function or class, no tensors) and never runs its code.
    """
    path = Path(path)
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        for key in ("state_dict", "model"):
            if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
                content = content[key]
        if not isinstance(content, Mapping):
            raise ModelError("holds no state dict", hint="save it with torch.save(model.state_dict(), path)")
        result = {str(k): v.array() for k, v in content.items() if isinstance(v, _Tensor)}
    except FileNotFoundError:
        raise ModelError("no such file", where=str(path)) from None
    except QirError as error:
        raise ModelError(str(error), where=str(path)) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError, TypeError, AttributeError,
            IndexError, OSError, ImportError, OverflowError, MemoryError, UnicodeDecodeError) as error:  # fmt: skip
        raise ModelError(f"is not a readable PyTorch checkpoint: {error}", where=str(path)) from None
    if not result:
        raise ModelError("holds no tensors", where=str(path))
    return result
