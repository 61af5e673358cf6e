"""Broken bytes end in an error of ours that names the file, soon, and before memory is taken."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qir
from qir.cli.data import dtypes
from qir.errors import DataError, MemoryLimitError, ModelError, ParseError, QirError, VerifyError
from qir.graph import Graph
from qir.models import bundled_path, digits
from qir.passes.calibration import data
from qir.passes.mixed_precision.search import load_latency
from qir.passes.mixed_precision.sensitivity import Sensitivity
from qir.passes.quantization.ranges import Ranges
from qir.passes.recipes import Recipe


@pytest.fixture(scope="module")
def integer() -> onnx.ModelProto:
    """digits_mobile at w8a8, as `save` writes it."""
    from qir.io.export import to_onnx

    graph, _ = qir.quantize(qir.load(bundled_path("digits_mobile")), digits().calibration[:16])
    return to_onnx(graph)


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    again = onnx.ModelProto()
    again.CopyFrom(model)
    return again


def test_a_shift_that_executors_take_differently_is_refused(integer: onnx.ModelProto) -> None:
    """Shifts are 1 to 62: with 63, executors gave different bits and `inspect` said integer-only."""
    model = copy(integer)
    node = next(n for n in model.graph.node if n.op_type.startswith("Requantize"))
    shift = next(i for i in model.graph.initializer if i.name == node.input[2])
    array = onnx.numpy_helper.to_array(shift)
    shift.CopyFrom(onnx.numpy_helper.from_array(np.full_like(array, 63), shift.name))
    with pytest.raises(VerifyError, match=r"a shift is outside 1\.\.62 \(invariant"):
        qir.load(model)


def test_a_missing_function_body_names_the_file(integer: onnx.ModelProto, tmp_path: Path) -> None:
    model = copy(integer)
    del model.functions[:]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(QirError):
        qir.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_impossible_scales(integer: onnx.ModelProto, value: float) -> None:
    model = copy(integer)
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    scale = next(i for i in model.graph.initializer if i.name == node.input[1])
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(value).reshape(scale.dims), scale.name))
    with pytest.raises(QirError):
        qir.load(model)


def bomb(depth: int, calls_itself: bool = False) -> onnx.ModelProto:
    """Functions f0 ... that each call the one before twice."""
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("far", 1)]

    def body(name: str, inner: str, domain: str) -> Any:
        nodes = [
            helper.make_node(inner, ["x"], ["h"], domain=domain), helper.make_node(inner, ["h"], ["y"], domain=domain)
        ]  # fmt: skip
        return helper.make_function("far", name, ["x"], ["y"], nodes, opset)

    functions = [body("f0", "f0" if calls_itself else "Relu", "far" if calls_itself else "")]
    functions += [body(f"f{i}", f"f{i - 1}", "far") for i in range(1, depth)]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    call = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="far")
    graph = helper.make_graph([call], "bomb", [x], [y])
    return helper.make_model(graph, functions=functions, opset_imports=opset, ir_version=9)


def test_inlining_is_bounded_before_it_is_done() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"stand for 1,099,511,627,776 nodes; the limit is 1,000,000"):
        qir.load(bomb(40))
    with pytest.raises(ModelError, match="calls itself"):
        qir.load(bomb(1, calls_itself=True))
    assert len(qir.load(bomb(3)).nodes) == 8
    assert time.perf_counter() - start < 20


def archive(content: bytes, method: int = zipfile.ZIP_STORED) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("image.npy", content)
    return bytearray(file.getvalue())


def npy(header: str) -> bytes:
    text = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def plain(shape: str, descr: str = "<f4", order: bool = False) -> bytes:
    return npy(f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")


def damaged() -> dict[str, bytes]:
    array = io.BytesIO()
    np.save(array, np.zeros((8, 1, 8, 8), np.float32))
    whole = array.getvalue()
    stored, squeezed = archive(whole), archive(whole, zipfile.ZIP_LZMA)
    stored[200] ^= 255  # its checksum does not fit any more
    at = squeezed.index(b"image.npy") + len(b"image.npy") + 12
    squeezed[at : at + 8] = b"\xff" * 8
    encrypted = archive(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        encrypted[encrypted.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    return {
        "checksum.npz": bytes(stored),
        "lzma.npz": bytes(squeezed),
        "encrypted.npz": bytes(encrypted),
        "short.npz": bytes(archive(plain("(16, 1, 8, 8)") + b"12")),
        "void.npz": bytes(archive(plain("(8, 1, 8, 8)", "|V0"))),
        "huge.npz": bytes(archive(plain("(1000000000000, 1, 8, 8)", order=True))),
        "negative.npy": plain("(-8, 1, 8, 8)") + bytes(64),
        "deep.npy": npy("{'descr': " + "(" * 90) + bytes(64),
    }


@pytest.mark.parametrize("name", sorted(damaged()))
def test_damaged_arrays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damaged()[name])
    graph = qir.load(bundled_path("digits_mobile"))
    dtypes(tmp_path / name)  # what `run` and `compare` look at first; it once let zipfile's errors out
    with pytest.raises((DataError, MemoryLimitError), match=name.replace(".", r"\.")):
        list(data.batches(tmp_path / name, graph))


DEEP = "[" * 100_000
TEXTS: dict[str, tuple[Any, str]] = {
    "ranges, deep": (Ranges.load, DEEP),
    "ranges, huge": (Ranges.load, '{"format": "qir.ranges/1", "method": "mse", "samples": 1e999, "tensors": {}}'),
    "ranges, long": (
        Ranges.load,
        '{"format": "qir.ranges/1", "method": "mse", "samples": 1, "tensors": {"x": {"seen": [1'
        + "0" * 400
        + ", 1]}}}",
    ),
    "ranges, other": (Ranges.load, '{"format": "qir.ranges/9"}'),
    "ranges, a list": (Ranges.load, "[1, 2]"),
    "latency, deep": (load_latency, DEEP),
    "latency, long": (load_latency, '{"a": {"4/8": 1' + "0" * 400 + "}}"),
    "latency, bits": (load_latency, '{"a": {"4/8/2": 1}}'),
    "sensitivity, deep": (Sensitivity.load, DEEP),
    "sensitivity, none": (Sensitivity.load, "{}"),
    "recipe, deep": (Recipe.load, "a=" + "{a=" * 5000),
    "recipe, long": (Recipe.load, "equalize = " + "1" * 5000),
    "recipe, bytes": (Recipe.load, "\udcff"),
}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_broken_texts_name_their_file(name: str, tmp_path: Path) -> None:
    load, text = TEXTS[name]
    path = tmp_path / "broken.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ParseError, match=r"broken\.toml"):
        load(path)
    with pytest.raises(ParseError, match=r"cannot be read"):
        load(tmp_path / "nothing.toml")


@pytest.mark.parametrize("attrs", ["{axis={}}", '{axis={"array": 1}}', "{axis=[[1]]}", '{axis="x"}', "{axis=1e999}"])
def test_broken_graph_texts_name_their_line(attrs: str) -> None:
    lines = [
        'graph "t" stage=FLOAT {',
        "input %x: float32[N,4]",
        f"%y: float32[N,4] = Softmax(%x) {attrs}",
        "return %y}",
    ]
    with pytest.raises(ParseError, match="line 3: "):
        Graph.parse("\n".join(lines))
