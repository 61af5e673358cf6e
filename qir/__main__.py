"""The command line: `qir ...` or `python -m qir ...`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from qir.cli.parser import build_parser
from qir.errors import QirError

OK, ERROR, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (usage errors leave through SystemExit(2), as argparse has it)."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
    try:
        return args.main(args)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # `qir inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if args.debug:
            raise
        sys.stderr.write(f"error: {one_line(error)}\n")
        return ERROR


def one_line(error: Exception) -> str:
    """What went wrong, in one line; a fault of qir's own says so."""
    text = " ".join(str(error).split())
    if isinstance(error, QirError):
        return text
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else text
    return f"this should not happen: {type(error).__name__}: {text} (run again with --debug for the traceback)"


if __name__ == "__main__":
    sys.exit(main())
