"""The trained networks: their accuracy is what the file says, and the training that made them is right."""

from __future__ import annotations

import numpy as np
import pytest

from qir.errors import DataError, UnsupportedError
from qir.models import DIGITS, bundled, bundled_path, digits
from qir.models.backprop import TrainingTape
from qir.models.layers import Net
from qir.models.train_digits import cross_entropy_gradient, train
from qir.runtime import Session


@pytest.mark.parametrize("name", DIGITS)
def test_bundled_accuracy(name: str) -> None:
    data = digits()
    logits = Session(bundled_path(name), backend="onnxruntime").run({"image": data.test})["logits"]
    share = float((logits.argmax(1) == data.test_labels).mean())
    assert share == pytest.approx(bundled()[name]["accuracy"], abs=0.003)
    assert share >= 0.97
    assert bundled_path(name).stat().st_size < 300_000


def test_splits_are_apart() -> None:
    data = digits()
    seen = {p.tobytes() for p in data.calibration_pixels}
    assert not any(p.tobytes() in seen for p in data.test_pixels)
    assert len(data.calibration) == 256 and len(data.test) == 454
    assert data.test.dtype == np.float32 and data.test.shape == (454, 1, 8, 8)


@pytest.mark.parametrize("name", DIGITS)
def test_gradients(name: str) -> None:
    """Against central differences, in float64."""
    rng = np.random.default_rng(3)
    tape = TrainingTape(DIGITS[name](1))
    tape.parameters = {k: v.astype(np.float64) for k, v in tape.parameters.items()}
    x, labels = rng.normal(size=(4, 1, 8, 8)), rng.integers(0, 10, 4)
    _, d = cross_entropy_gradient(tape.forward(x, training=True), labels)
    grads = tape.backward(d.astype(np.float64))
    assert len(grads) == len([v for v in tape.parameters if v not in tape.statistics and "relu6" not in v.name])
    checked = 0
    for value in list(grads)[::7]:
        at = tuple(int(rng.integers(0, n)) for n in value.array().shape)
        slopes: list[float] = []
        for step in (1e-4, 1e-5):
            losses: list[float] = []
            keep = tape.parameters[value]
            for sign in (1, -1):
                moved = keep.copy()
                moved[at] += sign * step
                tape.parameters[value] = moved
                losses.append(cross_entropy_gradient(tape.forward(x, training=True), labels)[0])
            tape.parameters[value] = keep
            slopes.append((losses[0] - losses[1]) / (2 * step))
        if abs(slopes[0] - slopes[1]) > 1e-4 * max(1.0, abs(slopes[0])):
            continue  # a kink of ReLU or ReLU6 lies between the two points
        assert grads[value][at] == pytest.approx(slopes[1], rel=2e-3, abs=2e-5), value.name
        checked += 1
    assert checked >= 3


def test_training_learns() -> None:
    data = digits()
    tape = train("digits_inception", data.calibration_pixels, data.calibration_labels, epochs=12, seed=0)
    share = float((tape.forward(data.test).argmax(1) == data.test_labels).mean())
    assert share > 0.6


def test_what_cannot_be_trained() -> None:
    net = Net("odd", 0, (1, 8, 8))
    graph = net.finish(net._op("Sigmoid", [net.input], "s"))
    with pytest.raises(UnsupportedError, match="no gradient rule"):
        TrainingTape(graph)


def test_unknown_bundled_network() -> None:
    with pytest.raises(DataError, match="digits_residual"):
        bundled_path("alexnet")
