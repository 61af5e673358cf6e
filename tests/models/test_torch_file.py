"""Checkpoints are read without PyTorch, and nothing in them is executed."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir.errors import ModelError
from qir.models import read_torch_file

Write = Callable[[Path, Any], None]


class Storage:
    """Stands for a torch storage while a test pickles it."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array


class Tensor:
    """Pickles as torch tensors do: a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, array: np.ndarray[Any, Any], shape: tuple[int, ...] | None = None, offset: int = 0) -> None:
        self.storage = Storage(np.ascontiguousarray(array).reshape(-1))
        self.shape = array.shape if shape is None else shape
        self.offset = offset

    def __reduce__(self) -> tuple[Any, ...]:
        strides = [int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape))]
        rebuild: Any = sys.modules["torch._utils"]._rebuild_tensor_v2  # type: ignore[attr-defined]
        return rebuild, (self.storage, self.offset, self.shape, tuple(strides), False, OrderedDict())


@pytest.fixture(autouse=True)
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just enough names for pickle to write them; the reader never imports them."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2() -> None:
        raise AssertionError("the reader executed the checkpoint")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def dump(content: Any) -> tuple[bytes, list[np.ndarray[Any, Any]]]:
    storages: list[np.ndarray[Any, Any]] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Storage):
                return None
            storages.append(obj.array)
            kind = {"f4": "FloatStorage", "i8": "LongStorage", "f2": "HalfStorage"}[obj.array.dtype.str[1:]]
            return "storage", getattr(sys.modules["torch"], kind), str(len(storages) - 1), "cpu", obj.array.size

    out = io.BytesIO()
    Pickler(out, protocol=2).dump(content)
    return out.getvalue(), storages


def write_zip(path: Path, content: Any) -> None:
    data, storages = dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/byteorder", "little")
        for i, array in enumerate(storages):
            archive.writestr(f"net/data/{i}", array.tobytes())


def write_legacy(path: Path, content: Any) -> None:
    data, storages = dump(content)
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(part, file, protocol=2)
        file.write(data)
        pickle.dump([str(i) for i in range(len(storages))], file, protocol=2)
        for array in storages:
            file.write(array.size.to_bytes(8, "little") + array.tobytes())


both = pytest.mark.parametrize("write", [write_zip, write_legacy])


@both
@pytest.mark.parametrize("wrap", [dict, lambda d: {"state_dict": d, "epoch": 3}], ids=["plain", "wrapped"])
def test_reads_tensors(tmp_path: Path, write: Write, wrap: Callable[[Mapping[str, Any]], Any]) -> None:
    rng = np.random.default_rng(1)
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bn.num_batches_tracked": np.asarray(7, np.int64),
        "half": rng.normal(size=5).astype(np.float16),
        "empty": np.zeros((0, 2), np.float32),
    }
    write(tmp_path / "net.pth", wrap(OrderedDict((k, Tensor(v)) for k, v in arrays.items())))
    got = read_torch_file(tmp_path / "net.pth")
    assert got.keys() == arrays.keys()
    for key, array in arrays.items():
        assert got[key].dtype == array.dtype
        np.testing.assert_array_equal(got[key], array)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("pwned"), "x")


@both
def test_executes_nothing(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.pth", {"w": Evil()})
    with pytest.raises(ModelError, match="nothing was executed"):
        read_torch_file(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


@both
@pytest.mark.parametrize(("shape", "offset"), [((5,), 0), ((4,), 1), ((2, 3), 0)])
def test_view_outside_its_storage(tmp_path: Path, write: Write, shape: tuple[int, ...], offset: int) -> None:
    write(tmp_path / "bad.pth", {"w": Tensor(np.zeros(4, np.float32), shape, offset)})
    with pytest.raises(ModelError, match="outside its storage"):
        read_torch_file(tmp_path / "bad.pth")


@both
@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.98])
def test_truncated(tmp_path: Path, write: Write, keep: float) -> None:
    write(tmp_path / "net.pth", {"w": Tensor(np.arange(200, dtype=np.float32))})
    data = (tmp_path / "net.pth").read_bytes()
    (tmp_path / "net.pth").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError):
        read_torch_file(tmp_path / "net.pth")


@both
@pytest.mark.parametrize("content", [[1, 2], {"w": 3}, "text", {}])
def test_no_state_dict(tmp_path: Path, write: Write, content: Any) -> None:
    write(tmp_path / "net.pth", content)
    with pytest.raises(ModelError, match=r"state dict|no tensors"):
        read_torch_file(tmp_path / "net.pth")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_torch_file(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ModelError, match="not a readable"):
        read_torch_file(tmp_path / "text.pth")
