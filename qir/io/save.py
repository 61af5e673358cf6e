"""Graph -> file: written aside, then renamed, so that a failure leaves what was there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from ..errors import ModelError
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
    DequantizeLinear (INTEGER graphs only).  external_data: tensors in `<path>.data` beside it; by default only
    where the model would not fit one protobuf (2 GB).
    Raises ModelError where it cannot be written (nothing is left behind), UnsupportedError on an unknown opset.
    """
    if io not in ("float", "integer"):
        raise ModelError(f"io {io!r} is neither 'float' nor 'integer'", where="save")
    model = to_onnx(strip_border(graph) if io == "integer" else graph, opset)
    path = Path(path)
    where = f"file {str(path)!r}"
    if path.is_dir():
        raise ModelError("is a folder", where=where)
    if not path.parent.is_dir():
        raise ModelError("its folder does not exist", where=where)
    try:
        if external_data is None:
            external_data = sum(len(t.raw_data) for t in model.graph.initializer) > MAX_BYTES
        with ExitStack() as files:
            model_file = files.enter_context(_aside(path))
            if external_data:  # renamed first: the model must never point at data that are not there
                data = path.with_name(path.name + ".data")
                move_out(model, files.enter_context(_aside(data)), data.name)
            model_file.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ModelError(f"cannot be written: {error.strerror}", where=where) from error
    except ValueError as error:
        raise ModelError("is too large for one protobuf", where=where, hint="use external_data=True") from error


@contextmanager
def _aside(path: Path) -> Generator[Path]:
    """A temporary file in the same folder, renamed to `path` on success and removed on failure."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
