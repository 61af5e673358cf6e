"""Every error a user can meet: one base class, one message form (where, what, what to do)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import TracebackType

FOREIGN = (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
"""What broken data do to Python, NumPy and onnx."""

_HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What moves a terminal's cursor, colours or hides text or turns its direction; the line feed is not among it."""


def escaped(text: str, *, lines: bool = False) -> str:
    r"""Text that a terminal shows as it is: control characters as \x1b or \u202e, line feeds too unless `lines`."""
    shown = _HARMFUL.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode("ascii"), text)
    return shown if lines else shown.replace("\n", "\\n")


class QirError(Exception):
    """Base of all errors raised on purpose by this package.

    The message names the place (`where`: a node, a value, a file), the fact, and what to do about it.
    """

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.where, self.message, self.hint = where, message, hint
        self.fact = f"{message} ({hint})" if hint else message
        super().__init__(escaped(f"{where}: {self.fact}" if where else self.fact, lines=True))


class ModelError(QirError):
    """The model file is broken, hostile or not ONNX."""


class UnsupportedError(QirError):
    """An operator, an attribute or a dtype that qir does not know."""


class TypeInferenceError(QirError):
    """Shapes or dtypes of a node's inputs do not fit its operator."""


class GraphError(QirError):
    """A structural invariant of the graph does not hold, or an edit would break it."""


class VerifyError(GraphError):
    """`verify` found an invariant broken."""


class StageError(QirError):
    """A pass was run on a graph of the wrong stage."""


class QuantizationError(QirError):
    """A scale, zero point, range or multiplier is impossible."""


class LoweringError(QuantizationError):
    """A float operator cannot leave the float world as it stands."""


class RefusedError(UnsupportedError, LoweringError):
    """All that cannot be lowered in one graph: `refusals`, an error each, in the order of the nodes."""

    SHOWN = 20
    """Lines of the message; `refusals` has them all."""

    def __init__(self, refusals: Sequence[QirError]) -> None:
        self.refusals = tuple(refusals)
        kinds: dict[tuple[str, str], list[str]] = {}
        for error in self.refusals:
            where = error.where or ""
            kinds.setdefault((where.split(" node ")[0], error.fact), []).append(where)
        lines = [f"{nodes[0]}{_more(nodes)}: {fact}" if nodes[0] else fact for (_, fact), nodes in kinds.items()]
        if len(lines) > self.SHOWN:
            lines[self.SHOWN :] = [f"and {len(lines) - self.SHOWN} more"]
        head = f"{len(self.refusals)} nodes cannot become integers"
        super().__init__("\n  ".join([f"{head}:", *lines]) if len(self.refusals) > 1 else lines[0])
        if len(self.refusals) == 1:
            self.where, self.hint = self.refusals[0].where, self.refusals[0].hint


def _more(nodes: list[str]) -> str:
    return f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""


def refuse(refusals: Sequence[QirError]) -> None:
    """Raises what was found: nothing, the one error as it is, or a RefusedError of all."""
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise RefusedError(refusals)


class OverflowProofError(QuantizationError):
    """An accumulator could leave int32."""


class CollapseError(QuantizationError):
    """A quantized graph keeps next to nothing of its float graph."""


class DataError(QirError):
    """Calibration or input data are empty, of a wrong shape or dtype, or not finite."""


class OutputError(QirError):
    """A file cannot be written, or is none that may be replaced."""


class ParseError(QirError):
    """The text form of a graph, a recipe file or a ranges file cannot be read."""


class MemoryLimitError(QirError):
    """A graph, an array or a file needs more memory than it may take."""


class BackendError(QirError):
    """A runtime backend is missing or cannot run this graph."""


class named:
    """In a `with`: what broken data do to Python, NumPy and onnx leaves as `error`, naming the place.

    Errors of ours that name no place get it.  message: what is said before the exception's own words, made when needed.
    """

    def __init__(self, error: type[QirError], where: object, message: str | Callable[[], str] = "is malformed") -> None:
        self.error, self.where, self.message = error, where, message

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, QirError):
            if error.where is None:
                raise type(error)(str(error), where=str(self.where)) from error
        elif isinstance(error, FOREIGN):
            message = self.message if isinstance(self.message, str) else self.message()
            raise self.error(f"{message}: {said(error)}", where=str(self.where)) from error


def said(error: BaseException) -> str:
    """What an exception of others says, in words where it says only a key or nothing."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is not there"
    return str(error) or type(error).__name__
