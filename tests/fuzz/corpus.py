"""What is mutated: small networks in float and in integers, and every kind of file that qir reads."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import qir
from qir import models
from qir.errors import QirError
from qir.graph import Graph
from qir.io import to_onnx
from qir.passes.recipe_files import as_toml
from qir.passes.recipes import RECIPES
from qir.testing import Dice, random_network
from qir.types import Array

RECIPE_NAMES = ("w8a8", "w8a8_per_tensor", "w4a8", "data_free")


@dataclass(frozen=True)
class Sample:
    """kind: which of `exercise.KINDS` reads it."""

    kind: str
    name: str
    data: bytes


def corpus(seed: int, networks: int = 24) -> list[Sample]:
    """The same samples for the same seed and version of qir."""
    found = [*_models(seed, networks), *_texts(), *_arrays()]
    return found


def _models(seed: int, count: int) -> Iterator[Sample]:
    for index in range(count):
        network = random_network(Dice(seed * 1000 + index), max_blocks=4)
        yield Sample("model", f"float{index}", to_onnx(network.graph).SerializeToString())
        recipe = RECIPE_NAMES[index % len(RECIPE_NAMES)]
        try:
            integer, _ = qir.quantize(network.graph, None if recipe == "data_free" else network.feeds(4), recipe)
        except QirError:
            continue
        opset = 28 if index % 3 == 0 else 21
        yield Sample("model", f"integer{index}", to_onnx(integer, opset).SerializeToString())
        yield Sample("graph", f"text{index}", str(_short(network.graph)).encode())


def _short(graph: Graph) -> Graph:
    return graph


def _texts() -> Iterator[Sample]:
    tensors = {f"t{i}": {"seen": [-1.5, 2.0 + i], "8": [-1.0, 2.0], "4": [0, 1]} for i in range(4)}
    ranges = {"format": "qir.ranges/1", "method": "mse", "samples": 64, "tensors": tensors}
    yield Sample("ranges", "ranges", json.dumps(ranges, indent=1).encode())
    rows = {f"layer{i}": {"4/8": 0.25 * i, "8/8": 1e-3} for i in range(4)}
    yield Sample("latency", "latency", json.dumps(rows).encode())
    sensitivity = {"format": "qir.sensitivity/1", "measure": "fisher", "layers": rows, "details": {"a": {"b": 1.0}}}
    yield Sample("sensitivity", "sensitivity", json.dumps(sensitivity).encode())
    for name in RECIPE_NAMES:
        yield Sample("recipe", name, as_toml(RECIPES[name], {"layer": (4, 8)}, whole=True).encode())


def _arrays() -> Iterator[Sample]:
    x: Array = models.digits().calibration[:16]
    plain, fortran = io.BytesIO(), io.BytesIO()
    np.save(plain, x)
    np.save(fortran, np.asfortranarray(x))
    yield Sample("npy", "plain", plain.getvalue())
    yield Sample("npy", "fortran", fortran.getvalue())
    for name, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        file = io.BytesIO()
        save(file, image=np.asfortranarray(x) if name == "deflated" else x)
        yield Sample("npz", name, file.getvalue())
