"""Every kernel instance compiles for every architecture, without spills that matter; no GPU is needed."""

from __future__ import annotations

import pytest

from qir.errors import BackendError
from qir.runtime.cuda.kernels import ARCHITECTURES, INSTANCES
from qir.runtime.cuda.nvrtc import Nvrtc, usage

pytestmark = pytest.mark.slow  # minutes of compiling: `pytest -m slow tests/runtime/test_cuda_compile.py`


@pytest.fixture(scope="module")
def compiler() -> Nvrtc:
    try:
        return Nvrtc()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instances_compile(compiler: Nvrtc, architecture: str) -> None:
    for source in sorted({k.source for k in INSTANCES}):
        family = [k for k in INSTANCES if k.source == source]
        cubin, lowered, log = compiler.compile(source, family, architecture)
        assert cubin[:4] == b"\x7fELF"
        for kernel in family:
            used = usage(log, lowered[kernel.expression])
            assert used.registers * kernel.threads <= 65536, kernel
            assert used.spill_stores <= 64, (kernel, used)
            assert kernel.shared_bytes + used.shared_bytes <= 48 << 10, kernel


def test_an_error_names_the_file(compiler: Nvrtc) -> None:
    from qir.runtime.cuda.kernels import Kernel

    with pytest.raises(BackendError, match="elementwise"):
        compiler.compile("elementwise.cu", [Kernel("elementwise.cu", "qir::no_such_kernel")], "80")
