"""passes.data: every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qir.errors import DataError
from qir.passes.calibration.data import batches
from qir.passes.calibration.images import Images
from qir.types import DType, TensorType

ONE = {"x": TensorType(DType.FLOAT32, ("N", 3, 4))}
TWO = {**ONE, "m": TensorType(DType.FLOAT32, ("N", 2))}
X = np.arange(20 * 12, dtype=np.float32).reshape(20, 3, 4)
M = np.arange(40, dtype=np.float32).reshape(20, 2)


def joined(found: Any, name: str = "x") -> np.ndarray:
    return np.concatenate([b[name] for b in found])


def test_array_and_dict() -> None:
    found = batches(X, ONE, batch_size=6)
    assert found.samples == 20
    assert [len(b["x"]) for b in found] == [6, 6, 6, 2]
    assert (joined(found) == X).all()  # a second time
    both = batches({"m": M, "x": X}, TWO, samples=7)
    assert both.samples == 7
    assert (joined(both, "m") == M[:7]).all()


def test_npy_is_memory_mapped_and_npz_streams(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    first = next(iter(batches(tmp_path / "x.npy", ONE)))
    assert isinstance(first["x"], np.memmap)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "both.npz", x=X, m=M)
        found = batches(str(tmp_path / "both.npz"), TWO, batch_size=3)
        for _ in range(2):
            assert (joined(found) == X).all()
        assert (joined(found, "m") == M).all()
    np.savez(tmp_path / "fortran.npz", anything=np.asfortranarray(X))
    assert (joined(batches(tmp_path / "fortran.npz", ONE)) == X).all()  # a lone array needs no name


@pytest.mark.parametrize("pieces", [[X], [X[:5], X[5:6], X[6:]], list(X)], ids=["one", "uneven", "samples"])
def test_iterables_are_regrouped(pieces: list[np.ndarray]) -> None:
    assert [len(b["x"]) for b in batches(iter(pieces), ONE, batch_size=8)] == [8, 8, 4]
    assert (joined(batches(pieces, ONE, batch_size=7)) == X).all()
    assert (joined(batches(({"x": p} for p in pieces), ONE, batch_size=7, samples=9)) == X[:9]).all()


def test_fixed_batch_leaves_the_rest_out() -> None:
    fixed = {"x": TensorType(DType.FLOAT32, (6, 3, 4))}
    assert [len(b["x"]) for b in batches(X, fixed, batch_size=4)] == [6, 6, 6]
    assert [len(b["x"]) for b in batches(list(X), fixed)] == [6, 6, 6]


BAD = np.full((4, 3, 4), np.nan, np.float32)
CASES: list[tuple[str, Any, Any, str]] = [
    ("no input given", {"m": M}, TWO, "'x': is missing"),
    ("unknown input", {"x": X, "y": X}, ONE, "'y': is no input"),
    ("one array for two", X, TWO, "graph with 2 inputs"),
    ("dtype", X.astype(np.complex64), ONE, "float32 expected, complex64 given"),
    ("shape", X[:, :2], ONE, r"\['N', 3, 4\] expected"),
    ("no batch axis", X[0], ONE, "add a batch axis"),
    ("empty", X[:0], ONE, "no samples"),
    ("empty iterable", [], ONE, "no samples"),
    ("different lengths", {"x": X, "m": M[:3]}, TWO, "different numbers of samples"),
    ("different lengths in a batch", [{"x": X, "m": M[:3]}], TWO, "different numbers of samples"),
    ("NaN", BAD, ONE, "NaN"),
    ("NaN in an iterable", [BAD], ONE, "NaN"),
    ("a number", 3, ONE, "int is no data"),
    ("too few for a fixed batch", X[:3], {"x": TensorType(DType.FLOAT32, (6, 3, 4))}, "6 at a time"),
    ("too few in an iterable", [X[:3]], {"x": TensorType(DType.FLOAT32, (6, 3, 4))}, "6 at a time"),
    ("missing file", "nowhere.npy", ONE, "no such file"),
    ("no inputs", X, {}, "no inputs"),
]


@pytest.mark.parametrize(("source", "inputs", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_data(source: Any, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(batches(source, inputs))


def test_bad_files(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "a.txt"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(DataError, match=r"cannot be read|is no"):
            batches(tmp_path / name, ONE)
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        batches(tmp_path / "o.npy", ONE)


IMAGE = {"x": TensorType(DType.FLOAT32, ("N", 3, 8, 8))}


def write_images(folder: Path, count: int = 5) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(3).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for i, p in enumerate(pixels):
        image.fromarray(p).save(folder / f"{i}.png")
    return pixels


def test_images(tmp_path: Path) -> None:
    pixels = write_images(tmp_path)
    x = joined(batches(Images(tmp_path, crop=1.0, mean=(1, 2, 3), std=2.0), IMAGE, batch_size=2))
    want = np.moveaxis((pixels.astype(np.float32) - np.asarray([1, 2, 3], np.float32)) / 2, -1, 1)
    assert (x == want).all()
    swapped = joined(batches(Images(tmp_path, crop=1.0, order="BGR"), IMAGE))
    assert (swapped == np.moveaxis(pixels[..., ::-1], -1, 1)).all()
    last = {"x": TensorType(DType.UINT8, ("N", 8, 8, 3))}
    assert (joined(batches(Images(tmp_path, crop=1.0), last)) == pixels).all()
    gray = {"x": TensorType(DType.FLOAT32, ("N", 1, 4, 6))}
    assert joined(batches(tmp_path, gray)).shape == (5, 1, 4, 6)
    free = {"x": TensorType(DType.FLOAT32, ("N", 3, "4*N", 5))}
    assert joined(batches(Images(tmp_path, size=(6, 5)), free)).shape == (5, 3, 6, 5)


def test_bad_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        batches(tmp_path, IMAGE)
    write_images(tmp_path, 1)
    with pytest.raises(DataError, match="rank of 4"):
        batches(tmp_path, ONE)
    with pytest.raises(DataError, match="2 values of mean"):
        batches(Images(tmp_path, mean=(1, 2)), IMAGE)
    with pytest.raises(DataError, match="8 channels"):
        batches(Images(tmp_path, layout="NHWC"), IMAGE)
    for wrong in ({"layout": "CHW"}, {"order": "GRB"}, {"crop": 0.0}, {"std": 0.0}):
        with pytest.raises(DataError):
            Images(tmp_path, **wrong)  # type: ignore[arg-type]
    (tmp_path / "9.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="no readable image"):
        list(batches(tmp_path, IMAGE))


class Tensor:
    """As torch's: NumPy must not have it before detach() and cpu()."""

    def __init__(self, array: np.ndarray, ready: bool = False) -> None:
        self.array, self.ready, self.shape = array, ready, array.shape

    def detach(self) -> Tensor:
        return Tensor(self.array)

    def cpu(self) -> Tensor:
        return Tensor(self.array, ready=True)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        if not self.ready:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


def test_loaders_of_others() -> None:
    labels = np.arange(20)
    pairs = [(Tensor(X[i : i + 5]), Tensor(labels[i : i + 5])) for i in range(0, 20, 5)]
    assert (joined(batches(pairs, ONE, batch_size=8)) == X).all()
    assert (joined(batches([list(p) for p in pairs], ONE)) == X).all()
    assert (joined(batches(((Tensor(x), np.int64(3)) for x in X), ONE)) == X).all()
    samples = [{"x": Tensor(X[i]), "m": Tensor(M[i]), "label": i, "file": "a.png"} for i in range(20)]
    both = list(batches(samples, TWO, batch_size=7))
    assert (joined(both) == X).all() and (joined(both, "m") == M).all()
    assert batches(iter([X]), ONE).once and not batches([X], ONE).once


def test_lists_of_files_and_broken_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = write_images(tmp_path)
    files = [tmp_path / f"{i}.png" for i in (3, 1)]
    assert (joined(batches([str(f) for f in files], {"x": TensorType(DType.UINT8, ("N", 8, 8, 3))})).shape) == (
        2,
        8,
        8,
        3,
    )
    whole = joined(batches(Images(files, crop=1.0), IMAGE))
    assert (whole == np.moveaxis(pixels[[3, 1]].astype(np.float32), -1, 1)).all()
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png: is no readable image.*--skip-broken"):
        list(batches(tmp_path, IMAGE))
    found = joined(batches(Images(tmp_path, crop=1.0, skip_broken=True), IMAGE, batch_size=3))
    assert (found == np.moveaxis(pixels[[0, 2, 3, 4]].astype(np.float32), -1, 1)).all()
    assert "left out" in caplog.text and "1.png" in caplog.text


# -- other axes, other lengths --------------------------------------------------------------------
F, INT = DType.FLOAT32, DType.INT64


def test_samples_of_many_lengths_are_batches_of_one_length_each() -> None:
    types = {"ids": TensorType(INT, ("N", "S"))}
    items = [np.arange(n) for n in (3, 3, 5, 5, 5, 2)]
    assert [b["ids"].shape for b in batches(iter(items), types, batch_size=2)] == [(2, 3), (2, 5), (1, 5), (1, 2)]


def test_states_have_their_samples_on_another_axis() -> None:
    types = {"x": TensorType(F, ("N", 4)), "h": TensorType(F, (2, "N", 3))}
    x, h = np.ones((5, 4), np.float32), np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    found = list(batches({"x": x, "h": h}, types, batch_size=2))
    assert [b["h"].shape for b in found] == [(2, 2, 3), (2, 2, 3), (2, 1, 3)]
    assert np.array_equal(np.concatenate([b["h"] for b in found], axis=1), h)
    streamed = list(batches(iter([{"x": x[i], "h": h[:, i]} for i in range(5)]), types, batch_size=3))
    assert [b["h"].shape for b in streamed] == [(2, 3, 3), (2, 2, 3)]
    with pytest.raises(DataError, match="different numbers of samples"):
        list(batches({"x": x, "h": h[:, :4]}, types))


def test_states_and_numbers_that_are_not_given_are_zeros(caplog: pytest.LogCaptureFixture) -> None:
    types = {"x": TensorType(F, ("N", 4)), "h": TensorType(F, (2, "N", 3)), "rate": TensorType(INT, ())}
    (found,) = batches({"x": np.ones((3, 4), np.float32)}, types)
    assert found["h"].shape == (2, 3, 3) and found["rate"].shape == () and not found["h"].any()
    assert "the data have no 'h', 'rate': zeros are fed" in caplog.text
    (given,) = batches({"x": np.ones((3, 4), np.float32), "rate": np.asarray(16000)}, types)
    assert given["rate"] == 16000
    with pytest.raises(DataError, match="input 'x': is missing"):
        batches({"h": np.ones((2, 3, 3), np.float32)}, types)


def test_inputs_without_a_batch_are_fed_whole() -> None:
    types = {"nodes": TensorType(F, ("V", 4)), "edges": TensorType(INT, (2, "E"))}
    one = {"nodes": np.ones((7, 4), np.float32), "edges": np.zeros((2, 9), np.int64)}
    two = {"nodes": np.ones((3, 4), np.float32), "edges": np.zeros((2, 5), np.int64)}
    assert [b["nodes"].shape for b in batches(iter([one, two]), types)] == [(7, 4), (3, 4)]
    assert [b["edges"].shape for b in batches(one, types)] == [(2, 9)]


def test_one_axis_more_counts_runs_where_there_is_no_batch() -> None:
    types = {"x": TensorType(F, (16,))}
    assert [b["x"].shape for b in batches(np.ones((3, 16), np.float32), types)] == [(16,)] * 3
    assert [b["x"].shape for b in batches({"x": np.ones((3, 16), np.float32)}, types, samples=2)] == [(16,)] * 2


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    types = {"x": TensorType(F, ("N", 3, "L"))}
    for i, length in enumerate((4, 4, 6)):
        np.savez(tmp_path / f"{i}.npz", x=np.full((3, length), i, np.float32))
    assert [b["x"].shape for b in batches(tmp_path, types)] == [(2, 3, 4), (1, 3, 6)]
