"""Registers, shared memory and spills of every CUDA kernel instance; writes kernels.md beside this file.

python benchmarks/kernels.py [--kept]        (needs pip install qir[nvrtc], no GPU)
--kept: compile nothing, write what earlier runs have kept and "?" for the rest.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from qir.runtime.cuda.device.compile_report import compile_all, kept_usage, table
from qir.runtime.cuda.device.nvrtc import Nvrtc


def main() -> None:
    started = time.perf_counter()
    found = kept_usage() if "--kept" in sys.argv[1:] else compile_all()
    Path(__file__).with_suffix(".md").write_text(table(found, Nvrtc().version()))
    print(f"{len(found)} instances in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
