"""InceptionV3  [Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision", table 1, fig. 5-7].

Without the auxiliary classifier, which only training uses. Pixels are expected as (x - 127.5) / 127.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qir.graph import Graph, Value

from .layers import Net, Pair

EPSILON = 1e-3


def _conv(net: Net, x: Value, key: str, channels: int, kernel: Pair = 1, stride: int = 1, pad: Pair = 0) -> Value:
    y = net.conv(x, f"{key}.conv", channels, kernel, stride=stride, pad=pad)
    return net.relu(net.batch_norm(y, f"{key}.bn", EPSILON))


def _pooled(net: Net, x: Value, key: str, channels: int) -> Value:
    return _conv(net, net.average_pool(x, f"{key}.pool", 3, 1, 1), f"{key}.branch_pool", channels)


def _module_a(net: Net, x: Value, key: str, pool_channels: int) -> Value:
    """35x35: 1x1, 5x5, two 3x3, pool (figure 5)."""
    a = _conv(net, x, f"{key}.branch1x1", 64)
    b = _conv(net, _conv(net, x, f"{key}.branch5x5_1", 48), f"{key}.branch5x5_2", 64, 5, pad=2)
    c = _conv(net, x, f"{key}.branch3x3dbl_1", 64)
    c = _conv(net, c, f"{key}.branch3x3dbl_2", 96, 3, pad=1)
    c = _conv(net, c, f"{key}.branch3x3dbl_3", 96, 3, pad=1)
    return net.concat([a, b, c, _pooled(net, x, key, pool_channels)], f"{key}.concat")


def _reduce_b(net: Net, x: Value, key: str) -> Value:
    """35x35 -> 17x17."""
    a = _conv(net, x, f"{key}.branch3x3", 384, 3, stride=2)
    b = _conv(net, x, f"{key}.branch3x3dbl_1", 64)
    b = _conv(net, b, f"{key}.branch3x3dbl_2", 96, 3, pad=1)
    b = _conv(net, b, f"{key}.branch3x3dbl_3", 96, 3, stride=2)
    return net.concat([a, b, net.max_pool(x, f"{key}.pool", 3, 2)], f"{key}.concat")


def _chain(net: Net, x: Value, key: str, layers: Sequence[tuple[int, tuple[int, int]]]) -> Value:
    """Convolutions key_1, key_2, ... of (channels, kernel), each keeping the size."""
    for i, (channels, (kh, kw)) in enumerate(layers, start=1):
        x = _conv(net, x, f"{key}_{i}", channels, (kh, kw), pad=(kh // 2, kw // 2))
    return x


def _module_c(net: Net, x: Value, key: str, width: int) -> Value:
    """17x17: 7x7 as 1x7 and 7x1 (figure 6)."""
    row, column = (1, 7), (7, 1)
    a = _conv(net, x, f"{key}.branch1x1", 192)
    b = _chain(net, x, f"{key}.branch7x7", [(width, (1, 1)), (width, row), (192, column)])
    c = _chain(net, x, f"{key}.branch7x7dbl",
               [(width, (1, 1)), (width, column), (width, row), (width, column), (192, row)])  # fmt: skip
    return net.concat([a, b, c, _pooled(net, x, key, 192)], f"{key}.concat")


def _reduce_d(net: Net, x: Value, key: str) -> Value:
    """17x17 -> 8x8."""
    a = _conv(net, _conv(net, x, f"{key}.branch3x3_1", 192), f"{key}.branch3x3_2", 320, 3, stride=2)
    b = _chain(net, x, f"{key}.branch7x7x3", [(192, (1, 1)), (192, (1, 7)), (192, (7, 1))])
    b = _conv(net, b, f"{key}.branch7x7x3_4", 192, 3, stride=2)
    return net.concat([a, b, net.max_pool(x, f"{key}.pool", 3, 2)], f"{key}.concat")


def _split(net: Net, x: Value, key: str) -> Value:
    """The expanded filter bank: a 1x3 and a 3x1 side by side."""
    row = _conv(net, x, f"{key}a", 384, (1, 3), pad=(0, 1))
    column = _conv(net, x, f"{key}b", 384, (3, 1), pad=(1, 0))
    return net.concat([row, column], f"{key}.concat")


def _module_e(net: Net, x: Value, key: str) -> Value:
    """8x8: expanded filter banks (figure 7)."""
    a = _conv(net, x, f"{key}.branch1x1", 320)
    b = _split(net, _conv(net, x, f"{key}.branch3x3_1", 384), f"{key}.branch3x3_2")
    c = _conv(net, _conv(net, x, f"{key}.branch3x3dbl_1", 448), f"{key}.branch3x3dbl_2", 384, 3, pad=1)
    c = _split(net, c, f"{key}.branch3x3dbl_3")
    return net.concat([a, b, c, _pooled(net, x, key, 192)], f"{key}.concat")


def inception_v3(weights: Any = 0, *, size: int = 299, classes: int = 1000) -> Graph:
    """InceptionV3, float32 (N, 3, size, size) -> logits (N, classes); 23.8 M parameters, 5.7 GMAC.

    weights: a seed, a mapping or a .npz/.pth file with torchvision's keys (AuxLogits.* are ignored).
    Raises ModelError, DataError where the weights do not fit.
    """
    net = Net("inception_v3", weights, (3, size, size), ignore=("AuxLogits.",))
    x = _conv(net, net.input, "Conv2d_1a_3x3", 32, 3, stride=2)
    x = _conv(net, x, "Conv2d_2a_3x3", 32, 3)
    x = net.max_pool(_conv(net, x, "Conv2d_2b_3x3", 64, 3, pad=1), "maxpool1", 3, 2)
    x = _conv(net, _conv(net, x, "Conv2d_3b_1x1", 80), "Conv2d_4a_3x3", 192, 3)
    x = net.max_pool(x, "maxpool2", 3, 2)
    for key, pool_channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _module_a(net, x, key, pool_channels)
    x = _reduce_b(net, x, "Mixed_6a")
    for key, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _module_c(net, x, key, width)
    x = _reduce_d(net, x, "Mixed_7a")
    for key in ("Mixed_7b", "Mixed_7c"):
        x = _module_e(net, x, key)
    return net.finish(net.linear(net.global_average(x), "fc", classes))
