"""Execution: one `Session` over several backends that give the same bits for integer graphs."""

if __name__ != "qir.runtime":  # the same class must not exist twice
    raise ImportError("import qir.runtime, not runtime")

from .session import BACKENDS, Backend, Session, default_backend

__all__ = ["BACKENDS", "Backend", "Session", "default_backend"]
