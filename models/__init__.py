"""Networks to try things on: the papers' topologies, and small ones that come trained.

Builders give a float Graph (BatchNorm present, batch size symbolic): `resnet18`, `resnet50`, `inception_v3`,
`mobilenet_v2`, `efficientnet_lite0`.  Weights: a seed, a state dict, a .npz or a .pth (read without PyTorch).
Bundled and trained: `bundled()` lists them, `bundled_path(name)` is the file, `digits()` the images.
"""

if __name__ != "qir.models":  # the same class must not exist twice
    raise ImportError("import qir.models, not models")

from .bundle import Digits, bundled, bundled_path, digits
from .digit_networks import DIGITS, digits_inception, digits_mobile, digits_residual
from .efficientnet import efficientnet_lite0
from .inception import inception_v3
from .mobilenet import mobilenet_v2
from .resnet import resnet18, resnet50
from .torch_file import read_torch_file
from .weights import load_state_dict

PAPERS = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "inception_v3": inception_v3,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_lite0": efficientnet_lite0,
}
"""Builder by name."""

__all__ = [
    "DIGITS", "PAPERS", "Digits", "bundled", "bundled_path", "digits", "digits_inception", "digits_mobile",
    "digits_residual", "efficientnet_lite0", "inception_v3", "load_state_dict", "mobilenet_v2", "read_torch_file",
    "resnet18", "resnet50",
]  # fmt: skip
