"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from qir.graph import Graph

settings.register_profile("qir", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("qir")

KIT = Path(__file__).resolve().parents[2] / "shared" / "kit"


@pytest.fixture(scope="session")
def kit() -> Path:
    """The folder of real networks and images, which only the developers have."""
    if not (KIT / "nets.json").exists():
        pytest.skip("the kit of real networks (../shared/kit) is not here")
    return KIT


TWO_CONVS = """
graph "two_convs" stage=INTEGER {
  input %x: float32[N,3,8,8]
  const %s: float32[] = 0.05
  const %z: uint8[] = 3
  %x.q: uint8[N,3,8,8] @scale=0.05000000074505806 zp=3 = QuantizeLinear(%x, %s, %z)
  const %c0.w: WEIGHTS[4,3,3,3] = ...
  const %c0.bias: int32[4] = [342, -328, 147, -700]
  %c0.acc: int32[N,4,8,8] = qir.Conv(%x.q, %c0.w, %c0.bias) {dilations=[1, 1], pad_value=[3], pads=[1, 1, 1, 1], strides=[1, 1]}
  const %m: int32[4,1,1] = [1073741829, 1273741829, 1473741829, 1673741829]
  const %sh: int32[4,1,1] = [SHIFT, SHIFT, SHIFT, SHIFT]
  %c0: ACTIVATIONS[N,4,8,8] @scale=0.10000000149011612 zp=3 = qir.Requantize(%c0.acc, %m, %sh) {dtype="ACTIVATIONS", hi=TOP, lo=0, zero_point=3}
  const %c1.w: WEIGHTS[4,4,3,3] = ...
  %c1.acc: int32[N,4,8,8] = qir.Conv(%c0, %c1.w, -) {dilations=[1, 1], pad_value=[3], pads=[1, 1, 1, 1], strides=[1, 1]}
  %c1: uint8[N,4,8,8] @scale=0.20000000298023224 zp=100 = qir.Requantize(%c1.acc, %m, %sh) {dtype="uint8", hi=255, lo=0, zero_point=100}
  const %s1: float32[] = 0.2
  const %z1: uint8[] = 100
  %y: float32[N,4,8,8] = DequantizeLinear(%c1, %s1, %z1)
  return %y
}
"""  # noqa: E501


@pytest.fixture
def two_convs() -> Callable[..., Graph]:
    """two_convs(weights="int8"|"int4", activations="uint8"|"uint4"): a small integer graph with all its parts."""

    def build(weights: str = "int8", activations: str = "uint8") -> Graph:
        rng = np.random.default_rng(3)
        low, high = (-7, 8) if weights == "int4" else (-127, 128)
        arrays = {
            "c0.w": rng.integers(low, high, (4, 3, 3, 3)).astype(np.int8),
            "c1.w": rng.integers(low, high, (4, 4, 3, 3)).astype(np.int8),
        }
        text = TWO_CONVS.replace("WEIGHTS", weights).replace("ACTIVATIONS", activations)
        text = text.replace("TOP", "15" if activations == "uint4" else "255")
        shift = {"int8": 37, "int4": 33}[weights] + (4 if activations == "uint4" else 0)
        return Graph.parse(text.replace("SHIFT", str(shift)), arrays)

    return build


@pytest.fixture(scope="session")
def gpu() -> object:
    """An NVIDIA GPU as a device of the CUDA runtime."""
    from qir.errors import BackendError
    from qir.runtime.cuda.device.cupy_device import CupyDevice

    try:
        return CupyDevice()
    except BackendError as error:
        pytest.skip(f"needs a GPU: {error}")
