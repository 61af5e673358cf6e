"""ResNet18 and ResNet50  [He et al. 2015, "Deep Residual Learning for Image Recognition", table 1].

ResNet50 strides in the 3x3 convolution of its bottlenecks ("v1.5"), as torchvision and HAWQ-V3 do.
"""

from __future__ import annotations

from typing import Any

from qir.graph import Graph, Value

from .layers import Net

WIDTHS = (64, 128, 256, 512)


def _shortcut(net: Net, x: Value, key: str, channels: int, stride: int) -> Value:
    if stride == 1 and net.channels(x) == channels:
        return x
    return net.batch_norm(net.conv(x, f"{key}.downsample.0", channels, 1, stride=stride), f"{key}.downsample.1")


def _basic(net: Net, x: Value, key: str, width: int, stride: int) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, f"{key}.conv1", width, 3, stride=stride), f"{key}.bn1"))
    y = net.batch_norm(net.conv(y, f"{key}.conv2", width, 3), f"{key}.bn2")
    return net.relu(net.add(y, _shortcut(net, x, key, width, stride), f"{key}.add"))


def _bottleneck(net: Net, x: Value, key: str, width: int, stride: int) -> Value:
    y = net.relu(net.batch_norm(net.conv(x, f"{key}.conv1", width, 1), f"{key}.bn1"))
    y = net.relu(net.batch_norm(net.conv(y, f"{key}.conv2", width, 3, stride=stride), f"{key}.bn2"))
    y = net.batch_norm(net.conv(y, f"{key}.conv3", 4 * width, 1), f"{key}.bn3")
    return net.relu(net.add(y, _shortcut(net, x, key, 4 * width, stride), f"{key}.add"))


def _resnet(name: str, block: Any, depths: tuple[int, ...], weights: Any, size: int, classes: int) -> Graph:
    net = Net(name, weights, (3, size, size))
    x = net.relu(net.batch_norm(net.conv(net.input, "conv1", 64, 7, stride=2), "bn1"))
    x = net.max_pool(x, "maxpool", 3, 2, 1)
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
        for i in range(depth):
            x = block(net, x, f"layer{stage}.{i}", width, 2 if stage > 1 and i == 0 else 1)
    return net.finish(net.linear(net.global_average(x), "fc", classes))


def resnet18(weights: Any = 0, *, size: int = 224, classes: int = 1000) -> Graph:
    """ResNet18, float32 (N, 3, size, size) -> logits (N, classes); 11.69 M parameters, 1.8 GMAC.

    weights: a seed, a mapping or a .npz/.pth file with torchvision's keys.
    Raises ModelError, DataError where the weights do not fit.
    """
    return _resnet("resnet18", _basic, (2, 2, 2, 2), weights, size, classes)


def resnet50(weights: Any = 0, *, size: int = 224, classes: int = 1000) -> Graph:
    """ResNet50, float32 (N, 3, size, size) -> logits (N, classes); 25.56 M parameters, 4.1 GMAC.

    weights: a seed, a mapping or a .npz/.pth file with torchvision's keys.
    Raises ModelError, DataError where the weights do not fit.
    """
    return _resnet("resnet50", _bottleneck, (3, 4, 6, 3), weights, size, classes)
