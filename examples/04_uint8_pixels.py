"""The graph takes the camera's uint8 pixels: (pixel - mean) / std is folded into the first convolution."""

import numpy as np

import qir
from qir import models, passes, runtime
from qir.io import strip_border
from qir.models.bundle import MEAN, STD
from qir.passes.prepare.fold_normalization import PIXELS

digits = models.digits()
graph = qir.load(models.bundled_path("digits_inception"))

on_pixels, _ = passes.FoldNormalization(mean=(MEAN,), std=(STD,)).apply(graph)
calibration = digits.calibration_pixels.astype(np.float32)
integer, _ = qir.quantize(on_pixels, calibration, input_ranges={"image": PIXELS})
integer = strip_border(integer, outputs=False)  # uint8 in, real scores out
qir.save(integer, "digits.pixels.onnx")

session = runtime.Session("digits.pixels.onnx", backend="onnxruntime")
print(session.graph.inputs[0])
logits = session.run({"image": digits.test_pixels})["logits"]
print(f"{(logits.argmax(1) == digits.test_labels).mean():.2%} from {digits.test_pixels.dtype} pixels")
