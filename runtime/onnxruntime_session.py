"""The exported model on onnxruntime: what a user of the file gets."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import helper

from qir.errors import BackendError
from qir.graph import Graph, Stage, Value
from qir.io import to_onnx
from qir.types import Array, DType

MAX_BYTES = 2**31 - 2**20
"""Protobuf's limit, less a margin; larger models go to onnxruntime through a file with external data."""


class OnnxRuntime:
    """Executes a graph of any stage through its ONNX export.

    threads: intra-operator threads (0: onnxruntime's choice).
    optimize: onnxruntime's graph optimizations ("all", "basic", "none"); by default all, but for QDQ graphs only
    the basic ones, because the others replace float simulation by kernels with a rounding of their own.
    """

    def __init__(
        self, graph: Graph, *, threads: int = 0, optimize: str | None = None, opset: int = 21, profile: bool = False
    ) -> None:
        self.graph, self.opset = graph, opset
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.log_severity_level = 3
        self.options.enable_profiling = profile
        level = optimize or ("basic" if graph.stage is Stage.QDQ else "all")
        self.options.graph_optimization_level = {
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }[level]
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._session(())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Arrays by name; 4-bit tensors come as int8/uint8.  Raises BackendError with onnxruntime's message."""
        wanted = list(self.graph.outputs) if outputs is None else [self.graph.value(n) for n in outputs]
        results: dict[str, Array] = {}
        compute: list[Value] = []
        for value in wanted:
            if value.data is not None:
                results[value.name] = value.data
            elif value.producer is None:
                results[value.name] = feeds[value.name]
            else:
                compute.append(value)
        if compute:
            own = set(self.graph.outputs)
            extra = tuple(dict.fromkeys(v.name for v in compute if v not in own))
            given = {k: _pack(v, self.graph.value(k).dtype) for k, v in feeds.items()}
            fetch = [_fetch_name(v) for v in compute]
            try:
                arrays = self._session(extra).run(fetch, given)
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise BackendError(f"onnxruntime: {_first_line(error)}", where=f"graph {self.graph.name!r}") from error
            results.update({v.name: a for v, a in zip(compute, arrays, strict=True)})
        return {v.name: results[v.name] for v in wanted}

    def _session(self, extra: tuple[str, ...]) -> Any:
        if extra not in self._sessions:
            model = with_int4_casts(to_onnx(self.graph, self.opset, extra), self.graph)
            try:
                self._sessions[extra] = _open(model, self.options)
            except Exception as error:
                raise BackendError(
                    f"onnxruntime cannot load it: {_first_line(error)}", where=f"graph {self.graph.name!r}"
                ) from error
        return self._sessions[extra]


def _open(model: onnx.ModelProto, options: Any) -> Any:
    providers = ["CPUExecutionProvider"]
    if model.ByteSize() < MAX_BYTES:
        return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="model.bin", size_threshold=1024)
        return ort.InferenceSession(str(path), options, providers=providers)


def _fetch_name(value: Value) -> str:
    return f"{value.name}/wide" if value.dtype.bits == 4 else value.name


def _pack(array: Array, dtype: DType) -> Any:
    """4-bit inputs as the ml_dtypes arrays that onnxruntime takes."""
    if dtype.bits != 4:
        return array
    import ml_dtypes

    return array.astype(ml_dtypes.int4 if dtype.is_signed else ml_dtypes.uint4)


def with_int4_casts(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """4-bit outputs cast to 8 bits under the name `<name>/wide`: NumPy has no such dtype to fetch them in."""
    for i, output in enumerate(model.graph.output):
        if output.name in graph and graph.value(output.name).dtype.bits == 4:
            kind = onnx.TensorProto.INT8 if graph.value(output.name).dtype.is_signed else onnx.TensorProto.UINT8
            wide = helper.make_tensor_value_info(f"{output.name}/wide", kind, list(graph.value(output.name).shape))
            model.graph.node.append(helper.make_node("Cast", [output.name], [wide.name], to=kind))
            model.graph.output[i].CopyFrom(wide)
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
