"""Budgets: what a file, an array or an image asks for is known and refused by name before it is allocated."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qir
from qir.__main__ import main
from qir.errors import DataError, MemoryLimitError, QirError
from qir.graph import Graph
from qir.models import bundled_path
from qir.ops import memory
from qir.passes.calibration.data import batches
from qir.runtime import Session
from qir.types import DType, TensorType

node = helper.make_node


def model(nodes: list[onnx.NodeProto], shape: list[Any], **constants: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def filled(*sizes: int) -> onnx.ModelProto:
    """x + sum(ones(sizes))"""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [
        node("ConstantOfShape", ["s"], ["c"], name="fill", value=one),
        node("ReduceSum", ["c"], ["r"], keepdims=0),
        node("Add", ["x", "r"], ["y"]),
    ]
    return model(nodes, ["N", 3, 8, 8], s=np.array(sizes))


def padded(width: int) -> onnx.ModelProto:
    return model([node("Pad", ["x", "p"], ["y"], name="pad")], ["N", 16], p=np.array([0, 0, 0, width]))


def resized(factor: float) -> onnx.ModelProto:
    made = node("Resize", ["x", "", "f"], ["y"], name="grow", mode="linear",
                coordinate_transformation_mode="asymmetric")  # fmt: skip
    return model([made], ["N", 10, 12], f=np.array([1, factor, 1], np.float32))


def convolved(width: int) -> onnx.ModelProto:
    made = node("Conv", ["x", "w"], ["y"], name="wide", pads=[0, 0, width, width])
    return model([made], ["N", 1, 8, 8], w=np.ones((4, 1, 3, 3), np.float32))


CASES = {
    "terabytes": (filled(1_000_000, 1_000_000), "'fill': .*needs|'fill': computes"),
    "2.4 GB of constants": (filled(600_000_000), "'fill': computes 600,000,000 elements of constants alone"),
    "padding": (padded(10**12), "'pad': makes"),
    "padding of little": (padded(1 << 26), "'pad': makes 67,108,880 elements of 16 for one sample"),
    "resizing": (resized(1e6), "'grow': makes 120,000,000 elements of 120 for one sample"),
    "a convolution": (convolved(40_000), "'wide': "),
}


@pytest.mark.parametrize("name", CASES)
def test_graphs_that_ask_for_too_much(name: str) -> None:
    broken, message = CASES[name]
    began = time.perf_counter()
    with pytest.raises(MemoryLimitError, match=message):
        qir.load(broken)
    assert time.perf_counter() - began < 20


def test_a_mask_of_a_large_context_is_none_of_these() -> None:
    """8192 by 8192 ones are made of a shape, not of a small tensor."""
    nodes = [node("Expand", ["one", "s"], ["m"]), node("Add", ["x", "m"], ["y"])]
    small = model(nodes, ["N", 1024, 1024], one=np.ones((1, 1), np.float32), s=np.array([1024, 1024]))
    assert len(qir.load(small).nodes) >= 1


def test_the_limit_is_an_option(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    onnx.save(model([node("Relu", ["x"], ["y"], name="act")], ["N", 1000, 1000]), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    capsys.readouterr()
    for arguments in (["--memory-limit", "1MB", "inspect"], ["inspect", "--memory-limit", "1MB"]):
        assert main([*arguments, str(tmp_path / "m.onnx")]) == 1
        said = capsys.readouterr().err
        assert "'act': running one sample needs 7.629 MB, the limit is 1 MB" in said and "--memory-limit" in said
    monkeypatch.setenv(memory.VARIABLE, "2 MB")
    with pytest.raises(MemoryLimitError, match="the limit is 2 MB"):
        qir.load(tmp_path / "m.onnx")
    monkeypatch.setenv(memory.VARIABLE, "plenty")
    with pytest.raises(DataError, match="'plenty' is no amount of memory"):
        qir.load(tmp_path / "m.onnx")


def test_amounts() -> None:
    assert [memory.bytes_of(t) for t in ("7", "1k", "1.5 GB", "2MiB")] == [7, 1024, 3 << 29, 2 << 20]
    assert [memory.shown(n) for n in (5, 1536, 1 << 33)] == ["5 bytes", "1.5 KB", "8 GB"]


def chain() -> Graph:
    graph = Graph("g")
    h = graph.add_input("x", TensorType(DType.FLOAT32, ("N", 1000)))
    for i in range(5):
        h = graph.add_node("Relu", [h], outputs=[f"h{i}"]).output
    graph.set_outputs([h])
    return graph


def test_what_is_alive_at_once_counts() -> None:
    graph = chain()
    assert memory.peak(graph, 3)[0] == 2 * 3 * 4000  # one in, one out
    assert memory.peak(graph, 1, graph.values)[0] == 6 * 4000  # calibration keeps them all


def test_a_batch_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(chain(), "reference")
    monkeypatch.setenv(memory.VARIABLE, "100KB")
    assert session.run({"x": np.ones((2, 1000), np.float32)})["h4"].shape == (2, 1000)
    with pytest.raises(MemoryLimitError, match=r"running it at a batch of 200 needs 1\.526 MB"):
        session.run({"x": np.ones((200, 1000), np.float32)})


def test_running_out_says_what_was_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(chain(), "reference")

    def nothing_left(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(session.executor, "run", nothing_left)
    with pytest.raises(MemoryLimitError, match=r"needs more memory than there is, at least 15\.62 KB at a batch of 2"):
        session.run({"x": np.ones((2, 1000), np.float32)})


def archived(shape: str, order: bool, content: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("image.npy", raw)
    return file.getvalue()


@pytest.mark.parametrize(("shape", "order"), [("(100000000, 1, 8, 8)", True), ("(16, 1, 1000000, 1000000)", False)])
def test_members_of_archives(shape: str, order: bool, tmp_path: Path) -> None:
    (tmp_path / "bomb.npz").write_bytes(archived(shape, order, bytes(4096)))
    with pytest.raises(QirError, match=r"bomb\.npz: member 'image\.npy' needs .* the limit is 4 GB"):
        list(batches(tmp_path / "bomb.npz", qir.load(bundled_path("digits_mobile"))))


def test_images_of_too_many_pixels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("1", (30_000, 3_000)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"wide\.png: .* Image size \(90000000 pixels\) exceeds limit"):
        list(batches(tmp_path, qir.load(bundled_path("digits_mobile"))))


def test_external_data_of_a_sparse_file(tmp_path: Path) -> None:
    broken = model([node("Add", ["x", "w"], ["y"])], ["N", 4], w=np.ones(4, np.float32))
    weight = broken.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.dims[:] = [1 << 34]
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "w.bin"
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(1 << 36)
    onnx_bytes = broken.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(onnx_bytes)
    with pytest.raises(MemoryLimitError, match=r"initializer 'w': its external data needs 64 GB"):
        qir.load(tmp_path / "m.onnx")
