"""Every executor gives the same bits on every tensor after rounding from data and mixed precision."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.graph import Graph
from qir.passes import PassManager
from qir.passes.calibration.collect import calibrate
from qir.passes.mixed_precision.cost_model import Bits
from qir.passes.mixed_precision.search import search
from qir.passes.quantization.insert_qdq import linear_nodes
from qir.passes.quantization.lower_to_dyadic import LowerToDyadic
from qir.passes.recipes import RECIPES
from qir.passes.rounding.adaround import AdaRoundOptions
from qir.passes.rounding.round_weights import RoundWeights
from qir.runtime import Session
from qir.runtime.measure.exactness import computed
from qir.types import Array
from qir.verify import is_integer_only, verify

MODELS = Path(qir.__file__).resolve().parents[1] / "models"
COMPILER = any(shutil.which(c) for c in ("c++", "g++", "clang++"))


def check(graph: Graph, feeds: dict[str, Array]) -> None:
    """The reference's dtype, shape and bits on every computed tensor, from each executor that is here."""
    verify(graph)
    assert not is_integer_only(graph)
    names = computed(graph)
    want = Session(graph, "reference").run(feeds, outputs=names)
    sessions = {name: Session(graph, name) for name in ("onnxruntime", "cpu")}
    if COMPILER:
        from qir.runtime.cuda.device.emulated import EmulatedDevice

        sessions["cuda"] = Session(graph, "cuda", device=EmulatedDevice(1))
    for backend, session in sessions.items():
        got = session.run(feeds, outputs=names)
        for name in names:
            assert got[name].dtype == want[name].dtype, (backend, name)
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{backend}: {name}")


def widths(graph: Graph) -> set[int]:
    """Bits of the integer layers' weights."""
    return {n.input(1).dtype.bits for n in graph.nodes if n.op in ("qir.Conv", "qir.MatMul")}


def mixed(graph: Graph, batches: list[dict[str, Array]], steps: list[str], small: AdaRoundOptions) -> Graph:
    """Bits by the integer program at three quarters of the size, then the rounding methods `steps`, lowered."""
    recipe = RECIPES["w4a8"].but(strip_softmax=True)
    prepared, _ = recipe.prepare.run(graph)
    ranges = calibrate(prepared, batches, method=recipe.method, bits=(4, 8))
    found = search(prepared, batches[:1], ranges, {"size": "0.75x"}, measure="mse")
    choice: set[Bits] = set(found.layers.values())
    assert (8, 8) in choice and choice & {(4, 4), (4, 8)}
    insert = replace(recipe, layers=found.layers).insert(ranges)
    rounding = [RoundWeights(prepared, batches, method, learning=small) for method in steps]
    done, report = PassManager([insert, *rounding, LowerToDyadic()]).run(prepared)
    assert report["round_weights"].count == len(linear_nodes(prepared))  # of the last one
    assert widths(done) == {4, 8}
    return done


@pytest.mark.parametrize("steps", [["gptq"], ["gptq", "adaround"]], ids="+".join)
def test_executors_agree_after_rounding_and_mixed_precision(steps: list[str]) -> None:
    graph = qir.load(MODELS / "digits_residual.onnx")
    x = graph.inputs[0]
    with np.load(MODELS / "digits.npz") as arrays:
        images = next(arrays[k] for k in arrays.files if arrays[k].ndim > 1)
    pixels = (images.reshape(-1, *(int(d) for d in x.shape[1:])) / images.max()).astype(np.float32)
    done = mixed(graph, [{x.name: pixels[:32]}, {x.name: pixels[32:64]}], steps, AdaRoundOptions(iterations=40))
    check(done, {x.name: pixels[64:67]})


@pytest.mark.kit
def test_a_network_of_the_kit_after_rounding_and_mixed_precision(kit: Path) -> None:
    graph = qir.load(kit / "models" / "mlperf_resnet8.onnx")
    x = graph.inputs[0]
    with np.load(kit / "cifar10.npz") as arrays:
        images = next(arrays[k] for k in arrays.files if arrays[k].ndim == 4)[:18].astype(np.float32)
    shape = tuple(int(d) for d in x.shape[1:])
    pixels = images if images.shape[1:] == shape else np.ascontiguousarray(np.moveaxis(images, -1, 1))
    assert pixels.shape[1:] == shape
    done = mixed(graph, [{x.name: pixels[:16]}], ["gptq", "adaround"], AdaRoundOptions(iterations=20))
    check(done, {x.name: pixels[16:18]})
