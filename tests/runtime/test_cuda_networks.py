"""Whole networks on the emulated GPU: random ones and the developers' kit, against the reference, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import qir
from qir.errors import QirError
from qir.graph import Graph
from qir.runtime.session import Session
from qir.testing import Dice, random_network
from qir.types import Array

pytestmark = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")), reason="the CUDA emulation needs a C++ compiler"
)


def compare(graph: Graph, feeds: dict[str, Array]) -> None:
    from qir.runtime.cuda.device.emulated import EmulatedDevice

    want = Session(graph, "reference").run(feeds)
    got = Session(graph, "cuda", device=EmulatedDevice(1)).run(feeds)
    for name, expected in want.items():
        np.testing.assert_array_equal(got[name], expected, err_msg=name)


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("seed", range(0, 12))
def test_random_network(seed: int, recipe: str) -> None:
    network = random_network(Dice(seed))
    try:
        graph, _ = qir.quantize(network.graph, [network.feeds(4)], recipe=recipe)
    except QirError as error:
        pytest.skip(f"seed {seed} cannot be quantized: {error}")
    compare(graph, network.feeds(3, salt=1))


@pytest.mark.kit
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
def test_kit_network(kit: Path, recipe: str) -> None:
    images = np.load(kit / "cifar10.npz")
    name = next(k for k in images.files if images[k].ndim == 4)
    graph = qir.load(str(kit / "models" / "cifar_resnet20.onnx"))
    x = graph.inputs[0]
    shape = (2, *(int(d) for d in x.shape[1:]))
    pixels = images[name][:2]
    data = pixels if pixels.shape == shape else pixels.transpose(0, 3, 1, 2)
    feeds = {x.name: (data.astype(np.float32) / 128 - 1).reshape(shape)}
    integer, _ = qir.quantize(graph, [feeds], recipe=recipe)
    compare(integer, feeds)
