"""Three small networks for 8x8 digits: one with residuals, one of MobileNet's kind, one of Inception's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qir.graph import Graph, Value

from .layers import Net
from .mobilenet import inverted_residual

SHAPE = (1, 8, 8)
CLASSES = 10


def _net(name: str, weights: Any) -> Net:
    return Net(name, weights, SHAPE, input_name="image")


def _conv(net: Net, x: Value, key: str, channels: int, kernel: int, stride: int = 1) -> Value:
    y = net.conv(x, f"{key}.conv", channels, kernel, stride=stride)
    return net.relu(net.batch_norm(y, f"{key}.bn"))


def digits_residual(weights: Any = 0) -> Graph:
    """A ResNet of 4 basic blocks, 16 and 32 channels; (N, 1, 8, 8) -> logits (N, 10)."""
    net = _net("digits_residual", weights)
    x = _conv(net, net.input, "stem", 16, 3)
    for i, (channels, stride) in enumerate(((16, 1), (32, 2), (32, 1))):
        key = f"block{i}"
        y = _conv(net, x, f"{key}.a", channels, 3, stride)
        y = net.batch_norm(net.conv(y, f"{key}.b.conv", channels, 3), f"{key}.b.bn")
        if stride != 1:
            x = net.batch_norm(net.conv(x, f"{key}.down.conv", channels, 1, stride=stride), f"{key}.down.bn")
        x = net.relu(net.add(y, x, f"{key}.add"))
    return net.finish(net.linear(net.global_average(x), "fc", CLASSES))


def digits_mobile(weights: Any = 0) -> Graph:
    """Inverted residuals with depthwise convolutions and ReLU6; (N, 1, 8, 8) -> logits (N, 10)."""
    net = _net("digits_mobile", weights)
    x = net.relu6(net.batch_norm(net.conv(net.input, "stem.conv", 16, 3), "stem.bn"))
    for i, (channels, stride) in enumerate(((16, 1), (24, 2), (24, 1), (32, 2), (32, 1))):
        x = inverted_residual(net, x, f"block{i}", 4, channels, stride)
    x = net.relu6(net.batch_norm(net.conv(x, "head.conv", 96, 1), "head.bn"))
    return net.finish(net.linear(net.global_average(x), "fc", CLASSES))


def _inception(net: Net, x: Value, key: str, width: int) -> Value:
    """1x1, 3x3, two 3x3 and average pool, concatenated: 4 * width channels."""
    a = _conv(net, x, f"{key}.1x1", width, 1)
    b = _conv(net, _conv(net, x, f"{key}.3x3_1", width, 1), f"{key}.3x3_2", width, 3)
    c = _conv(net, _conv(net, x, f"{key}.dbl_1", width, 1), f"{key}.dbl_2", width, 3)
    c = _conv(net, c, f"{key}.dbl_3", width, 3)
    d = _conv(net, net.average_pool(x, f"{key}.pool", 3, 1, 1), f"{key}.pool_1", width, 1)
    return net.concat([a, b, c, d], f"{key}.concat")


def digits_inception(weights: Any = 0) -> Graph:
    """Two inception modules around a max pool; (N, 1, 8, 8) -> logits (N, 10)."""
    net = _net("digits_inception", weights)
    x = _conv(net, net.input, "stem", 16, 3)
    x = net.max_pool(_inception(net, x, "mixed0", 12), "maxpool", 2, 2)
    x = _inception(net, x, "mixed1", 16)
    return net.finish(net.linear(net.global_average(x), "fc", CLASSES))


DIGITS: dict[str, Callable[..., Graph]] = {
    "digits_residual": digits_residual,
    "digits_mobile": digits_mobile,
    "digits_inception": digits_inception,
}
