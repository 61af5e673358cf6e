"""Execution: one `Session` over several backends that give the same bits for integer graphs."""

if __name__ != "qir.runtime":  # the same class must not exist twice
    raise ImportError("import qir.runtime, not runtime")

from .backend import Backend
from .profile import Profile
from .session import BACKENDS, Session, default_backend

__all__ = ["BACKENDS", "Backend", "Profile", "Session", "default_backend"]
