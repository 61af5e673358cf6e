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
from qir.io.functions import ONNX_TYPE, carries_wide, wire_dtype
from qir.types import Array, DType

from .backend import Backend

MAX_BYTES = 2**31 - 2**20
"""Protobuf's limit, less a margin; larger models go to onnxruntime through a file with external data."""

FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


class OnnxRuntime(Backend):
    """Executes a graph of any stage through its ONNX export.

    threads: intra-operator threads (0: onnxruntime's choice).
    optimize: onnxruntime's graph optimizations ("all", "basic", "none"); by default all, but for QDQ graphs only
    the basic ones, because the others replace float simulation by kernels with a rounding of their own.
    """

    name = "onnxruntime"

    def __init__(
        self, graph: Graph, *, threads: int = 0, optimize: str | None = None, opset: int = 21, profile: bool = False
    ) -> None:
        self.graph, self.opset = graph, opset
        self.options = ort.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.log_severity_level = 4  # what it says is in its exceptions; its own lines would mix with ours
        self.options.enable_profiling = profile
        # before 1.31 a buffer of n 4-bit elements (n/2 bytes) was given again to tensors of n bytes
        self.wide = carries_wide(graph, opset)
        packed = any(v.data is None and wire_dtype(v, self.wide).bits == 4 for v in graph.values)
        self.options.enable_mem_reuse = not (old_runtime() and packed)
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
            given = {self._wire_name(self.graph.value(k)): v for k, v in feeds.items()}
            fetch = [self._wire_name(v) for v in compute]
            try:
                arrays = self._session(extra).run(fetch, given)
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise BackendError(f"onnxruntime: {_first_line(error)}", where=f"graph {self.graph.name!r}") from error
            results.update({v.name: a for v, a in zip(compute, arrays, strict=True)})
        return {v.name: results[v.name] for v in wanted}

    def _wire_name(self, value: Value) -> str:
        """What a value is called in the model that onnxruntime gets."""
        return f"{value.name}/wide" if wire_dtype(value, self.wide).bits == 4 else value.name

    def _session(self, extra: tuple[str, ...]) -> Any:
        if extra not in self._sessions:
            model = with_int4_casts(to_onnx(self.graph, self.opset, extra, declared=False), self.graph)
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


def old_runtime() -> bool:
    """Whether onnxruntime is older than 1.31, where 4-bit activations are right."""
    major, minor = (int(part) for part in ort.__version__.split(".")[:2])
    return (major, minor) < (1, 31)


def with_int4_casts(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """4-bit inputs and outputs as 8-bit ones called `<name>/wide`, cast inside: NumPy has no 4-bit dtypes to pass."""

    def widened(info: onnx.ValueInfoProto) -> tuple[onnx.ValueInfoProto, DType] | None:
        if info.type.tensor_type.elem_type not in FOUR_BITS:
            return None
        kind = graph.value(info.name).dtype
        wide = onnx.TensorProto.INT8 if kind.is_signed else onnx.TensorProto.UINT8
        return helper.make_tensor_value_info(f"{info.name}/wide", wide, list(graph.value(info.name).shape)), kind

    casts: list[onnx.NodeProto] = []
    taken: set[str] = set()
    for info in model.graph.input:
        if (pair := widened(info)) is not None:
            casts.append(helper.make_node("Cast", [pair[0].name], [info.name], to=ONNX_TYPE[pair[1]]))
            info.CopyFrom(pair[0])
            taken.add(pair[0].name)
    nodes = [*casts, *model.graph.node]
    for info in model.graph.output:
        if (pair := widened(info)) is not None:
            wide = pair[0].type.tensor_type.elem_type
            if pair[0].name not in taken:  # an input that is an output is there already
                nodes.append(helper.make_node("Cast", [info.name], [pair[0].name], to=wide))
            info.CopyFrom(pair[0])
    if len(nodes) > len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
