#!/usr/bin/env python3
"""The kit's TFLite models: our integer graphs beside TFLite's own interpreter -> tflite.md.

    pip install ai-edge-litert
    python benchmarks/tflite.py [--samples 64]

The QDQ forms of the models (kit, quantized/) are lowered; the integers that their QuantizeLinear makes of the images go
into the .tflite originals, executed in TFLite's two ways: its reference kernels (BUILTIN_REF: rescaling with two
roundings, as gemmlowp has it) and its default (XNNPACK).  Counted is how far the output integers are apart.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from third_party import KIT, kit_module

import qir
from qir import passes
from qir.graph import Graph, Value
from qir.runtime import Session
from qir.types import Array

HERE = Path(__file__).resolve().parent
MODELS = {
    "mlperf_ad_int8_qdq": "ad01_int8", "mlperf_dscnn_kws_int8_qdq": "kws_ref_model",
    "mlperf_resnet8_int8_qdq": "pretrainedResnet_quant", "mlperf_vww_int8_qdq": "vww_96_int8",
    "tflite_mobilenetv1_025_128_qat_u8_qdq": "mobilenet_v1_0.25_128_quant",
    "tflite_mobilenetv2_qat_u8_qdq": "mobilenet_v2_1.0_224_quant",
}  # fmt: skip
"""QDQ model -> its original.  The interpreter refuses person_detect (an axis out of range)."""
WAYS = {"reference kernels": "BUILTIN_REF", "default": "AUTO"}


def border(graph: Graph) -> tuple[Value, Value]:
    """(first integer tensor, last integer tensor)."""
    first = next(n for n in graph.nodes if n.op == "QuantizeLinear").output
    last = graph.outputs[0]
    if last.producer is not None and last.producer.op == "DequantizeLinear":
        last = last.producer.input(0)
    return first, last


def ours(name: str, samples: int) -> tuple[Array, Array]:
    """Input and output integers of the lowered model."""
    graph, _ = passes.LowerToDyadic().apply(qir.load(KIT / "quantized" / f"{name}.onnx"))
    source, ends = graph.inputs[0], border(graph)
    x = kit_module().load(name, "dev", samples)[0]
    session = Session(graph)
    step = source.shape[0] if isinstance(source.shape[0], int) else 8
    runs = [
        session.run({source.name: x[i : i + step]}, outputs=[v.name for v in ends])
        for i in range(0, len(x) - step + 1, step)
    ]
    q, y = (np.concatenate([run[v.name] for run in runs]) for v in ends)
    return q, y


def theirs(path: Path, q: Array, way: str) -> Array:
    """Output integers of TFLite's interpreter, one sample at a time."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    resolver = getattr(litert.OpResolverType, way)
    interpreter = litert.Interpreter(str(path), experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    source, end = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shape, results = tuple(source["shape"]), list[Array]()
    for sample in q:
        channels_last = np.moveaxis(sample, 0, -1) if sample.ndim == 3 else sample
        interpreter.set_tensor(source["index"], np.ascontiguousarray(channels_last.reshape(shape)))
        interpreter.invoke()
        results.append(interpreter.get_tensor(end["index"]).reshape(1, -1))
    return np.concatenate(results)


def within(a: Array, b: Array) -> str:
    steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
    return f"{100 * np.mean(steps == 0):.2f}, {100 * np.mean(steps <= 1):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    args = parser.parse_args()
    lines = [
        "# TFLite models beside TFLite's own interpreter", "",
        "Written by `benchmarks/tflite.py` (its docstring says how). Each cell: outputs equal %, outputs at most one "
        "step apart %.", "",
        "| model | samples | " + " | ".join(f"qir and TFLite's {way}" for way in WAYS) + " | TFLite's two ways |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, original in MODELS.items():
        q, y = ours(name, args.samples)
        got = {way: theirs(KIT / "tflite" / f"{original}.tflite", q, kind) for way, kind in WAYS.items()}
        pairs = [(y.reshape(len(y), -1), other) for other in got.values()] + list(
            itertools.combinations(got.values(), 2)
        )
        lines.append(f"| {name} | {len(y)} | " + " | ".join(within(a, b) for a, b in pairs) + " |")
        print(lines[-1], flush=True)
    lines += [
        "", "Where TFLite's two ways of running one file disagree, no third can agree with both; the default (XNNPACK) "
        "rescales with one rounding, as qir does, but through float32 and to even.",
    ]  # fmt: skip
    (HERE / "tflite.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
