"""The command line: `qir ...` or `python -m qir ...`."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing has it, which takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def entry() -> None:
    """What the script `qir` calls: leaves the interpreter at once when interrupted, whatever threads still work."""
    from qir.cli.interrupts import watch

    interrupts = watch()
    try:
        code = main()
    except BaseException:
        interrupts.check()
        raise
    interrupts.check()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (usage errors leave through SystemExit(2), as argparse has it)."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows only ASCII still shows every message
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        import logging

        from qir.cli.parser import build_parser
        from qir.cli.show import Escaping, to_stderr

        args = build_parser().parse_args(argv)
        to_stderr(False)
        handler = logging.StreamHandler()
        handler.setFormatter(Escaping("%(message)s"))
        logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, handlers=[handler])
    except KeyboardInterrupt:
        return interrupted()
    try:
        from qir.ops.memory import limited

        with limited(args.memory_limit):
            return args.main(args)
    except KeyboardInterrupt:
        return interrupted()
    except BrokenPipeError:  # `qir inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        from qir.cli import interrupts

        if interrupts.seen():  # it came in the middle of something that made another exception of it
            return interrupted()
        if args.debug:
            raise
        sys.stderr.write(f"error: {one_line(error)}\n")
        return ERROR


def interrupted() -> int:
    """Says so, once; the exit code."""
    from qir.cli import interrupts

    if not interrupts.seen():  # else what watches says it, and leaves
        sys.stderr.write("interrupted\n")
    return INTERRUPTED


def one_line(error: Exception) -> str:
    """What went wrong, in one line; a fault of qir's own says so."""
    from qir.errors import QirError, escaped

    text = escaped(" ".join(str(error).split()))
    if isinstance(error, QirError):
        return text
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {text}" if text else "there is not enough memory"
    if isinstance(error, OSError):
        return escaped(f"{error.filename}: {error.strerror}") if error.filename else text
    return f"this should not happen: {type(error).__name__}: {text} (run again with --debug for the traceback)"


if __name__ == "__main__":
    entry()
