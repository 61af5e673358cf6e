"""What a command needs beyond the base install, said before its long work."""

from __future__ import annotations

from importlib.util import find_spec

from qir.errors import BackendError

EXTRAS = {
    "PIL": ("Pillow", "images"),
    "numba": ("numba", "cpu"),
    "cupy": ("CuPy", "cuda12"),
    "pulp": ("PuLP", "ilp"),
    "matplotlib": ("matplotlib", "plot"),
}
"""Module -> (what people call it, the extra of qir that brings it)."""


def need(module: str, what: str) -> None:
    """Raises BackendError with the pip line where a module is not installed."""
    if find_spec(module) is None:
        name, extra = EXTRAS[module]
        hint = f"pip install 'qir[{extra}]'" + (", or qir[cuda13]" if extra == "cuda12" else "")
        raise BackendError(f"{what} needs {name}, which is not installed", hint=hint)


def need_backend(name: str | None) -> None:
    """The package behind a backend that was asked for by name."""
    if name == "cpu":
        need("numba", "backend 'cpu'")
    if name == "cuda":
        need("cupy", "backend 'cuda'")
