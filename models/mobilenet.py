"""MobileNetV2  [Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", table 2]."""

from __future__ import annotations

from typing import Any

from qir.graph import Graph, Value

from .layers import Net

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion t, channels c, repeats n, first stride s): the rows of table 2."""


def _conv_bn_relu6(net: Net, x: Value, key: str, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> Value:
    y = net.conv(x, f"{key}.0", channels, kernel, stride=stride, groups=groups)
    return net.relu6(net.batch_norm(y, f"{key}.1"))


def inverted_residual(net: Net, x: Value, key: str, expansion: int, channels: int, stride: int) -> Value:
    """Expand 1x1, depthwise 3x3, project 1x1 without an activation; a residual where the shapes allow."""
    y, i = x, 0
    hidden = net.channels(x) * expansion
    if expansion != 1:
        y, i = _conv_bn_relu6(net, y, f"{key}.conv.0", hidden, 1), 1
    y = _conv_bn_relu6(net, y, f"{key}.conv.{i}", hidden, 3, stride, groups=hidden)
    y = net.batch_norm(net.conv(y, f"{key}.conv.{i + 1}", channels, 1), f"{key}.conv.{i + 2}")
    return net.add(x, y, f"{key}.add") if stride == 1 and net.channels(x) == channels else y


def mobilenet_v2(weights: Any = 0, *, size: int = 224, classes: int = 1000) -> Graph:
    """MobileNetV2 1.0, float32 (N, 3, size, size) -> logits (N, classes); 3.50 M parameters, 0.30 GMAC.

    weights: a seed, a mapping or a .npz/.pth file with torchvision's keys.
    Raises ModelError, DataError where the weights do not fit.
    """
    net = Net("mobilenet_v2", weights, (3, size, size))
    x = _conv_bn_relu6(net, net.input, "features.0", 32, 3, 2)
    index = 1
    for expansion, channels, repeats, stride in STAGES:
        for i in range(repeats):
            x = inverted_residual(net, x, f"features.{index}", expansion, channels, stride if i == 0 else 1)
            index += 1
    x = _conv_bn_relu6(net, x, f"features.{index}", 1280, 1)
    return net.finish(net.linear(net.global_average(x), "classifier.1", classes))
