"""Train the bundled networks on scikit-learn's digits, in NumPy, and write them with their data and accuracy.

    python -m qir.models.train_digits [--epochs 40] [--seed 7] [--only digits_mobile] [-o FOLDER]

SGD with Nesterov momentum, a cosine learning rate, weight decay, and images shifted by up to a pixel.
Needs scikit-learn (pip install qir[train]); a network takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from qir.graph import Value
from qir.io import save
from qir.types import Array

from .backprop import TrainingTape
from .bundle import FOLDER, Digits, normalize
from .digit_networks import DIGITS

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH = 0.08, 0.9, 5e-4, 64


def split() -> tuple[Array, Array, Digits]:
    """(training pixels, training labels, the bundled split); every fourth image of each class is for testing."""
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for c in range(10):
        test[np.flatnonzero(labels == c)[::4]] = True
    train_pixels, train_labels = pixels[~test], labels[~test]
    chosen = np.sort(np.random.default_rng(0).choice(len(train_labels), 256, replace=False))
    bundle = Digits(train_pixels[chosen], train_labels[chosen], pixels[test], labels[test])
    return train_pixels, train_labels, bundle


def shifted(x: Array, rng: np.random.Generator) -> Array:
    """Each image moved by -1, 0 or 1 pixels both ways; what comes in is paper (pixel 0)."""
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=x.min())
    dy, dx = rng.integers(0, 3, (2, len(x)))
    return np.stack([p[:, i : i + 8, j : j + 8] for p, i, j in zip(padded, dy, dx, strict=True)])


def cross_entropy_gradient(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean loss and its gradient."""
    shifted_logits = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted_logits)
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = float(-np.log(p[rows, labels] + 1e-12).mean())
    p[rows, labels] -= 1
    return loss, (p / len(labels)).astype(np.float32)


def accuracy(tape: TrainingTape, x: Array, labels: Array) -> float:
    return float((tape.forward(x).argmax(1) == labels).mean())


def train(name: str, pixels: Array, labels: Array, epochs: int, seed: int) -> TrainingTape:
    """One network from He initialization, BatchNorm at its usual start (gamma 1, beta 0)."""
    tape = TrainingTape(DIGITS[name](seed))
    for value, array in tape.parameters.items():
        if array.ndim == 1:
            ones = value.name.endswith(("weight", "running_var"))
            tape.parameters[value] = np.full_like(array, float(ones))
    rng = np.random.default_rng(seed)
    images = normalize(pixels)
    velocity: dict[Value, Array] = {}
    steps = epochs * (len(labels) // BATCH)
    step = 0
    for epoch in range(epochs):
        order = rng.permutation(len(labels))
        losses: list[float] = []
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss, d = cross_entropy_gradient(tape.forward(shifted(images[chosen], rng), training=True), labels[chosen])
            losses.append(loss)
            rate = np.float32(LEARNING_RATE * 0.5 * (1 + np.cos(np.pi * step / steps)))
            for value, grad in tape.backward(d).items():
                w = tape.parameters[value]
                g = grad + np.float32(WEIGHT_DECAY) * w if w.ndim > 1 else grad
                v = velocity[value] = np.float32(MOMENTUM) * velocity.get(value, np.zeros_like(w)) + g
                tape.parameters[value] = w - rate * (g + np.float32(MOMENTUM) * v)
            step += 1
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"{name} epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)
    return tape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=sorted(DIGITS), help="train one network and keep the others")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    pixels, labels, bundle = split()
    np.savez_compressed(args.output / "digits.npz", **{n: getattr(bundle, n) for n in Digits.__dataclass_fields__})
    path = args.output / "digits.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in [args.only] if args.only else DIGITS:
        tape = train(name, pixels, labels, args.epochs, args.seed)
        share = accuracy(tape, bundle.test, bundle.test_labels)
        save(tape.store(), args.output / f"{name}.onnx")
        results[name] = {
            "accuracy": round(share, 6), "test_images": len(bundle.test_labels),
            "parameters": int(sum(v.size for p, v in tape.parameters.items() if p not in tape.statistics)),
            "epochs": args.epochs, "seed": args.seed,
        }  # fmt: skip
        print(f"{name}: {share:.2%} of {len(bundle.test_labels)} held-out digits", flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
