"""Every recipe on every bundled network: accuracy, agreement, SQNR, size, equality of bits.  Writes digits.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import qir
from qir.models import DIGITS, bundled_path, digits
from qir.passes.recipes import RECIPES
from qir.runtime import Session

HEAD = """# The bundled networks

Held-out digits (454), calibrated with 256 others; integer network in onnxruntime; bits compared with the reference on
every output. Made by `python benchmarks/digits.py`.

| network | recipe | accuracy % | same answer as float % | SQNR dB | KB | bits equal |
| --- | --- | ---: | ---: | ---: | ---: | --- |
"""


def main() -> None:
    data, rows = digits(), []
    for network in DIGITS:
        path = bundled_path(network)
        truth = Session(path, backend="onnxruntime").run({"image": data.test})["logits"].astype(np.float64)
        right = (truth.argmax(1) == data.test_labels).mean()
        rows.append(f"| {network} | float | {100 * right:.2f} | | | {path.stat().st_size / 1000:.1f} | |")
        for recipe in RECIPES:
            needs = RECIPES[recipe].needs_data
            graph, _ = qir.quantize(path, data.calibration if needs else None, recipe)
            one, two = (
                Session(graph, backend=b).run({"image": data.test})["logits"] for b in ("reference", "onnxruntime")
            )
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "net.onnx"
                qir.save(graph, file)
                size = file.stat().st_size / 1000
            right, same = (two.argmax(1) == data.test_labels).mean(), (two.argmax(1) == truth.argmax(1)).mean()
            sqnr = 10 * np.log10((truth**2).sum() / ((truth - two) ** 2).sum())
            equal = "yes" if np.array_equal(one, two) else "NO"
            rows.append(
                f"| {network} | {recipe} | {100 * right:.2f} | {100 * same:.2f} | {sqnr:.1f} | {size:.1f} | {equal} |"
            )
            print(rows[-1], flush=True)
    (Path(__file__).parent / "digits.md").write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
