"""`qir demo`: the whole way, on a network and data that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import qir
from qir import cost
from qir.graph import Graph
from qir.models import bundled_path, digits
from qir.ops import op_of
from qir.runtime import Session
from qir.types import Array
from qir.verify import is_integer_only

from . import data, show


def main(args: argparse.Namespace) -> int:
    output = data.writable(args.output or Path(f"{args.network}.{args.recipe}.onnx"), stream=False)
    model, images = bundled_path(args.network), digits()
    show.say(f"1. float network   {args.network}, trained on handwritten digits: {show.size(model.stat().st_size)}")
    graph = qir.load(model)
    truth = run(graph, "onnxruntime", images.test)

    show.say(f"2. quantize        recipe {args.recipe}, calibrated with {len(images.calibration)} images")
    integer, _ = qir.quantize(graph, None if args.recipe == "data_free" else images.calibration, args.recipe)
    qir.save(integer, output)

    show.say(f"3. load and check  {output}")
    integer = qir.load(output)
    offences = is_integer_only(integer)
    show.say(f"   float values or divisions inside: {'none' if not offences else '; '.join(offences)}")

    show.say(f"4. run             {len(images.test)} images that no training and no calibration saw")
    labels = images.test_labels
    results = {backend: run(integer, backend, images.test) for backend in ("reference", "onnxruntime")}
    tensors, equal = same_bits(integer, images.test[:16])
    same = all(np.array_equal(results["reference"], r) for r in results.values()) and equal == tensors
    show.say()
    before, after = (show.size(p.stat().st_size) for p in (model, output))
    rows = [("float32", "onnxruntime", f"{accuracy(truth, labels):.2%}", "", before)]
    for backend, logits in results.items():
        agreement = float((logits.argmax(1) == truth.argmax(1)).mean())
        rows.append(("integers", backend, f"{accuracy(logits, labels):.2%}", f"{agreement:.2%}", after))
    show.say(show.table(rows, ("network", "executor", "accuracy", "same answer as float", "file"), "llrrr"))
    show.say()
    show.say(f"weights            {weights(graph)} -> {weights(integer)}")
    verdict = "yes" if same else "NO"
    show.say(f"identical bits     {verdict}: all {len(labels)} outputs, and {equal} of {tensors} inner tensors")
    show.say(f"result             {output.resolve()}")
    show.say(f"look at it         qir inspect {output} --layers")
    return 0 if same and not offences else 1


def run(graph: Graph, backend: str, images: Array) -> Array:
    session = Session(graph, backend=backend)
    parts = [session.run({"image": images[i : i + 64]})["logits"] for i in range(0, len(images), 64)]
    return np.concatenate(parts)


def accuracy(logits: Array, labels: Array) -> float:
    return float((logits.argmax(1) == labels).mean())


def same_bits(graph: Graph, images: Array) -> tuple[int, int]:
    """(inner tensors, how many of them have the same bits in both executors)."""
    names = [v.name for node in graph.nodes for v in node.outputs]
    one, two = (Session(graph, backend=b).run({"image": images}, outputs=names) for b in ("reference", "onnxruntime"))
    equal = sum(one[n].dtype == two[n].dtype and np.array_equal(one[n], two[n]) for n in names)
    return len(names), equal


def weights(graph: Graph) -> str:
    """Bytes of the linear layers' weights."""
    used = {n.input(1) for n in graph.nodes if op_of(n.op).linear and n.input(1).is_constant}
    return f"{show.size(cost.bytes_of(used))} ({', '.join(sorted({str(v.dtype) for v in used}))})"
