"""Graph -> file: written aside, then renamed, so that a failure leaves what was there before."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import ExitStack, suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import set_external_data

from ..errors import ModelError
from ..files import aside, regular, streamed, under_way
from ..graph import Graph
from .border import strip_border
from .export import DEFAULT_OPSET, to_onnx

MAX_BYTES = 2**31 - 2**24
"""What one protobuf holds, less a margin for everything but the tensors."""

THRESHOLD, ALIGNMENT = 1024, 64
"""Tensors of fewer bytes stay in the model; the others start at multiples of 64 bytes, fit for mapping."""


def save(
    graph: Graph, path: str | Path, *, opset: int = DEFAULT_OPSET, io: str = "float", external_data: bool | None = None
) -> None:
    """Write an ONNX model.

    opset: 21 to 28.  io: "float" as the graph stands, "integer" without the border's QuantizeLinear and
    DequantizeLinear (INTEGER graphs only).  external_data: tensors in `<path>.<hash of them>.data` beside it
    (the data of the model that is replaced are removed); by default only where one protobuf cannot hold them (2 GB).
    Raises ModelError where it cannot be written (nothing is left behind), UnsupportedError on an unknown opset.
    """
    if io not in ("float", "integer"):
        raise ModelError(f"io {io!r} is neither 'float' nor 'integer'", where="save")
    model = to_onnx(strip_border(graph) if io == "integer" else graph, opset)
    path = Path(path)
    where = f"file {str(path)!r}"
    try:
        if streamed(path):
            if external_data:
                raise ModelError("is no file that could have data beside it", where=where)
            with aside(path, ModelError) as file:
                file.write_bytes(model.SerializeToString(deterministic=True))
            return
        if external_data is None:
            external_data = sum(len(t.raw_data) for t in model.graph.initializer) > MAX_BYTES
        target = regular(path, ModelError)
        before = _data_of(target)
        with ExitStack() as undo:
            with aside(target, ModelError) as file:  # there from the start: others see that a save is under way
                if external_data:  # in place first: the model must never point at data that are not there
                    data = _data_name(model, target.name)
                    beside = target.with_name(data)
                    if not beside.exists():
                        undo.callback(beside.unlink, missing_ok=True)
                    with aside(beside, ModelError) as part:
                        move_out(model, part, data)
                file.write_bytes(model.SerializeToString(deterministic=True))
            undo.pop_all()
        _remove_stale(target, before)
    except ValueError as error:
        raise ModelError("is too large for one protobuf", where=where, hint="use external_data=True") from error


def _data_name(model: onnx.ModelProto, name: str) -> str:
    """The name of the data file tells its contents: a model never meets another's data."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in model.graph.initializer:
        digest.update(tensor.raw_data)
    return f"{name}.{digest.hexdigest()}.data"


def _remove_stale(target: Path, before: set[str]) -> None:
    """Remove the data of the model that was replaced, and what killed saves left: data that no model refers to.

    Looked for in this order, so that those of another process that saves to the same name are never among them.
    """
    found = {p.name for p in target.parent.iterdir() if _ours(target.name).fullmatch(p.name)}
    if not under_way(target):
        before = before | {name for name in found if name != f"{target.name}.data"}  # that one may be anybody's
    for stale in before - _data_of(target):
        with suppress(OSError):
            os.unlink(target.with_name(stale))


def _ours(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name) + r"(\.[0-9a-f]{16})?\.data")


def _data_of(path: Path) -> set[str]:
    """The data files of ours that the model at `path` refers to, if there is one that can be read."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return set()
    named = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return {name for name in named if _ours(path.name).fullmatch(name)}


def move_out(model: onnx.ModelProto, file: Path, location: str) -> None:
    """Move the large initializers' bytes into `file`; the model refers to it as `location`."""
    with file.open("wb") as out:
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) < THRESHOLD:
                continue
            out.write(b"\0" * (-out.tell() % ALIGNMENT))
            offset = out.tell()
            out.write(tensor.raw_data)
            set_external_data(tensor, location, offset, len(tensor.raw_data))
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
