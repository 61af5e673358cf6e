"""NVRTC through ctypes: compiles the kernels for any architecture, without a GPU, a driver or CuPy."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qir.errors import BackendError

from ..instances import Kernel, sources


@dataclass(frozen=True)
class Usage:
    """What the assembler says of one kernel. serialized: it could not keep warpgroup products under way."""

    registers: int
    shared_bytes: int
    spill_stores: int
    spill_loads: int
    serialized: bool = False


def find_library(newest: int | None = None) -> str:
    """Path of libnvrtc: of a PyPI package nvidia-cuda-nvrtc, or the system's (CUDA_PATH, the loader's own).

    newest: the CUDA major version of the driver, if there is one: what a compiler of a later one makes does not load.
    Raises BackendError if absent.
    """
    later: list[str] = []
    for path in _libraries():
        number = re.search(r"\.so\.(\d+)", Path(path).name)
        if newest is None or number is None or int(number[1]) <= newest:
            return path
        later.append(Path(path).name)
    if newest is None:
        raise BackendError("NVRTC is not installed", hint="pip install nvidia-cuda-nvrtc")
    suffix = "" if newest >= 13 else f"-cu{newest}"
    message = f"only {later[0]} is installed, the driver is of CUDA {newest}" if later else "NVRTC is not installed"
    raise BackendError(message, hint=f"pip install 'nvidia-cuda-nvrtc{suffix}<{newest + 1}'")


def _libraries() -> Iterator[str]:
    for package in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if re.fullmatch(r"libnvrtc\.so\.\d+", Path(str(file)).name):
                yield str(file.locate())
    for root in (os.environ.get("CUDA_PATH"), os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if root:
            yield from map(str, sorted(Path(root, "lib64").glob("libnvrtc.so.*[0-9]")))
    found = ctypes.util.find_library("nvrtc")
    if found is not None:
        yield found


class Nvrtc:
    """One loaded NVRTC, no later than CUDA `newest` if that is given."""

    def __init__(self, newest: int | None = None) -> None:
        self._library = ctypes.CDLL(find_library(newest))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: str, kernels: Sequence[Kernel], architecture: str) -> tuple[bytes, dict[str, str], str]:
        """Compile one file of kernels/ with all the instances given.

        architecture: "75", "90a" ...  Returns (cubin, name expression -> lowered name, the assembler's log).
        Raises BackendError with the compiler's log.
        """
        texts = sources()
        headers = [n for n in texts if n.endswith(".cuh")]
        lib, program = self._library, ctypes.c_void_p()
        bodies = (ctypes.c_char_p * len(headers))(*(texts[n].encode() for n in headers))
        names = (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers))
        self._check(
            lib.nvrtcCreateProgram(
                ctypes.byref(program), texts[source].encode(), source.encode(), len(headers), bodies, names
            )
        )
        try:
            for k in kernels:
                self._check(lib.nvrtcAddNameExpression(program, k.expression.encode()))
            options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v"]
            array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
            failed = lib.nvrtcCompileProgram(program, len(options), array)
            log = self._text(program, "ProgramLog")
            if failed:
                raise BackendError(f"does not compile for sm_{architecture}: {log[:2000]}", where=source)
            lowered: dict[str, str] = {}
            for k in kernels:
                name = ctypes.c_char_p()
                self._check(lib.nvrtcGetLoweredName(program, k.expression.encode(), ctypes.byref(name)))
                lowered[k.expression] = (name.value or b"").decode()
            size = ctypes.c_size_t()
            self._check(lib.nvrtcGetCUBINSize(program, ctypes.byref(size)))
            cubin = ctypes.create_string_buffer(size.value)
            self._check(lib.nvrtcGetCUBIN(program, cubin))
            return cubin.raw, lowered, log
        finally:
            lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> str:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.value.decode(errors="replace")

    def _check(self, code: int) -> None:
        if code:
            raise BackendError(f"NVRTC: {self._library.nvrtcGetErrorString(code).decode()}")


def usage(log: str, lowered: str) -> Usage:
    """Registers, shared memory and spills of one kernel from the assembler's log."""
    part = log.partition(f"'{lowered}'")[2].partition("Compiling entry function")[0]
    spill = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
    registers = re.search(r"Used (\d+) registers", part)
    shared = re.search(r"(\d+) bytes smem", part)
    if registers is None or spill is None:
        raise BackendError("the assembler's report names no registers", where=lowered)
    serialized = any("serialized" in line and lowered in line for line in log.splitlines())
    return Usage(int(registers[1]), int(shared[1]) if shared else 0, int(spill[1]), int(spill[2]), serialized)
