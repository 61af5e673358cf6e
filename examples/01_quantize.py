"""The short way: one call makes the integer network, one session runs it."""

import qir
from qir import models, runtime

digits = models.digits()  # images and labels that come with qir
float_model = models.bundled_path("digits_residual")  # any float .onnx file

graph, report = qir.quantize(float_model, digits.calibration, recipe="w8a8")
qir.save(graph, "digits.int8.onnx")
print(report)

for model, backend in ((float_model, "onnxruntime"), ("digits.int8.onnx", "onnxruntime"), (graph, "reference")):
    logits = runtime.Session(model, backend=backend).run({"image": digits.test})["logits"]
    print(f"{model!s:.40} {backend}: {(logits.argmax(1) == digits.test_labels).mean():.2%}")
