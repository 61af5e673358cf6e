"""What the README says works: its Python runs, its command lines parse, its links and options exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from qir.cli.parser import METHODS, RECIPES, build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
QIR = [line for line in SHELL if line.startswith("qir ")]


@pytest.mark.parametrize("code", PYTHON, ids=lambda c: c.splitlines()[0])
def test_python_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", QIR)
def test_command_lines_parse(line: str) -> None:
    assert callable(build_parser().parse_args(shlex.split(line)[1:]).main)


def test_there_is_something_to_test() -> None:
    assert PYTHON and len(QIR) >= 4
    assert any(line.endswith("qir demo") for line in SHELL) and any("pytest" in line for line in SHELL)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_options_of_the_table_exist() -> None:
    known = build_parser()
    for option in re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE):
        assert option in _help(known), option
    for word in (*RECIPES, *METHODS):
        assert f"`{word}`" in README


def _help(parser: object) -> str:
    actions = getattr(parser, "_subparsers")._group_actions[0].choices  # noqa: B009
    return actions["quantize"].format_help()


def test_the_parser_knows_what_the_library_knows() -> None:
    """The parser repeats names, so that --help need not import everything; here they are compared."""
    from qir.cli.parser import BACKENDS as backends
    from qir.passes.calibration.range_methods import METHODS as range_methods
    from qir.passes.recipes import RECIPES as recipes
    from qir.runtime import BACKENDS

    assert set(RECIPES) <= set(recipes)
    assert set(METHODS) == {*range_methods, "bn"}
    assert set(backends) == set(BACKENDS)
