"""The arrows between packages, by reading the source: imports inside functions count as much as those at the top.

What does not hold yet stands in a table of exceptions, each with its reason.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from qir.ops import REGISTRY

ROOT = Path(__file__).parent.parent
LIBRARY = ("qir", "passes", "runtime", "models")
LINKS = tuple(ROOT / "qir" / name for name in ("passes", "runtime", "models"))


def files(*folders: str) -> list[Path]:
    """Python files below folders, by the one path that is not a link."""
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return [p for p in found if not any(link in p.parents for link in LINKS)]


FILES = files(*LIBRARY)


def module_of(path: Path) -> str:
    """ "passes/report.py" -> "qir.passes.report"."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "qir":
        parts.insert(0, "qir")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(p): p for p in FILES}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, *, types: bool = False) -> Iterator[str]:
    """Modules that a file imports, anywhere in it; under TYPE_CHECKING only if `types`."""
    tree = parsed(path)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                yield inner if inner in MODULES else name


def layer(module: str) -> str:
    """ "qir.passes.report" -> "passes"; the IR's own modules -> "qir"; the command line and the facade -> "top"."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in ("passes", "runtime", "models"):
        return parts[1]
    return "top" if module in ("qir", "qir.__main__") or parts[1:2] == ["cli"] else "qir"


FORBIDDEN_ARROWS = {
    "qir": {"passes", "runtime", "models", "top"},
    "passes": {"runtime", "models", "top"},
    "runtime": {"passes", "models", "top"},
}
"""`import qir` inside passes or runtime would be an arrow to the top: they import qir's modules."""

KNOWN_ARROWS: dict[tuple[str, str], str] = {}
"""(module, imported) -> why it is still there."""


def test_arrows_point_down() -> None:
    found = {
        (module_of(p), name)
        for p in FILES
        for name in imports(p)
        if name.split(".")[0] == "qir" and layer(name) in FORBIDDEN_ARROWS.get(layer(module_of(p)), set())
    }
    assert found <= set(KNOWN_ARROWS)


KNOWN_DEVICES: dict[tuple[str, str], str] = {}


def test_what_both_backends_share_knows_no_device() -> None:
    found = {
        (module_of(p), name)
        for p in FILES
        if module_of(p).startswith("qir.runtime.compile")
        for name in imports(p)
        if name.startswith(("qir.runtime.cpu", "qir.runtime.cuda"))
    }
    assert found <= set(KNOWN_DEVICES)


def test_kernels_know_no_planner() -> None:
    for path in FILES:
        if "kernels" in path.parts:
            assert not [n for n in imports(path) if "planner" in n.split(".")], path


# -- cycles -----------------------------------------------------------------------------------------------------------
ROOMS = ("qir", "qir.io", "qir.passes", "qir.runtime", "qir.runtime.cpu", "qir.runtime.cuda")
"""Folders with folders in them: their own modules lie below some and above others, each counts by itself."""


def package_of(module: str) -> str:
    """The folder that a module lies in."""
    if MODULES[module].name == "__init__.py":
        return module
    folder = module.rpartition(".")[0]
    return module if folder in ROOMS else folder


KNOWN_CYCLES: dict[frozenset[str], str] = {
    frozenset({"qir.graph", "qir.lowering", "qir.ops", "qir.text", "qir.text_parser"}): (
        "a graph asks the registry what a node may be, and has its text form as methods; operators name graphs"
    ),
}
"""Packages that import each other -> why."""


def test_no_cycle_between_packages() -> None:
    arrows: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        own = package_of(module_of(path))
        if layer(module_of(path)) == "top":
            continue
        for name in imports(path):
            if name in MODULES and package_of(name) != own and layer(name) != "top":
                arrows[own].add(package_of(name))
    assert {c for c in components(arrows) if len(c) > 1} <= set(KNOWN_CYCLES)


def components(arrows: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components: nodes that reach each other."""

    def reach(start: str) -> set[str]:
        seen, stack = set[str](), [start]
        while stack:
            for following in arrows.get(stack.pop(), set()) - seen:
                seen.add(following)
                stack.append(following)
        return seen

    reached = {name: reach(name) for name in list(arrows)}
    return {frozenset({a, *(b for b in reached[a] if a in reached.get(b, set()))}) for a in reached}


# -- names ------------------------------------------------------------------------------------------------------------
KNOWN_NAMES: dict[str, str] = {}
"""Class names defined more than once -> why."""


def test_no_class_name_is_defined_twice() -> None:
    names: Counter[str] = Counter()
    for path in FILES:
        tree = parsed(path)
        names.update(n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} <= set(KNOWN_NAMES)


KNOWN_FOLDERS: dict[str, str] = {
    "qir/ops": "a registry: one file an operator or family of operators",
}
MOST_FILES = 15


def test_folders_are_small() -> None:
    sizes = Counter(str(p.parent.relative_to(ROOT)) for p in FILES)
    assert {folder for folder, n in sizes.items() if n > MOST_FILES} <= set(KNOWN_FOLDERS)


def test_abilities_are_not_found_by_peeking() -> None:
    """Sessions, measurements and the command line ask a `Backend`, which says what it cannot do."""
    for path in (ROOT / "runtime" / "session.py", *(ROOT / "runtime" / "measure").glob("*.py")):
        calls = [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Call)]
        names = [(ast.unparse(c.func), c.args) for c in calls if len(c.args) > 1]
        assert not [f for f, args in names if f in ("hasattr", "getattr") and isinstance(args[1], ast.Constant)], path


def test_numbers_in_records_have_names() -> None:
    """Steps and epilogues are encoded as rows of numbers, written by encoder.py and read by kernels: by name only."""
    rows = ("t", "step", "record", "records", "program", "fields")
    for path in (p for p in FILES if "cpu" in p.parts):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in rows:
                numbers = [n for n in ast.walk(node.slice) if isinstance(n, ast.Constant)]
                assert not numbers, f"{path}:{node.lineno}"


def test_every_folder_is_packaged() -> None:
    """`packages` of pyproject.toml: what is missing there is missing in an installation only."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {module_of(p.parent / "__init__.py") for p in FILES}
    assert not [p for p in packages if f'    "{p}",\n' not in text]


# -- words about files ------------------------------------------------------------------------------------------------
def words(path: Path) -> Iterator[str]:
    """Docstrings and comments of a file."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and '"""' in token.string):
                yield token.string


PATHS = re.compile(r"(?<![\w/.{<*-])((?:[\w-]+/)*[\w-]+\.(?:py|md|cuh|cu|h|toml))\b(?![\w({*])")


KNOWN_REFERENCES: dict[tuple[str, str], str] = {
    ("qir/cli/parser.py", "mixed.toml"): "a file that a command of the help text writes",
    ("qir/cli/parser.py", "mine.toml"): "a file that a command of the help text writes",
}
"""(file, reference) -> why it names nothing."""


NAMES = {
    p.name
    for folder in (*LIBRARY, "docs", "benchmarks", "tests", ".")
    for p in (ROOT / folder).glob("**/*" if folder != "." else "*")
}


def missing(path: Path) -> Iterator[str]:
    """References of a file's words to files and modules that are not there."""
    for text in words(path):
        if "[ARITHMETIC" in text:
            yield "[ARITHMETIC"
        for found in PATHS.findall(text):
            bases = (ROOT, ROOT / "qir", path.parent, path.parent.parent)
            if ("/" in found and not any((b / found).exists() for b in bases)) or found.split("/")[-1] not in NAMES:
                yield found


def test_references_lead_somewhere() -> None:
    found = {(str(p.relative_to(ROOT)), name) for p in FILES for name in missing(p)}
    assert found <= set(KNOWN_REFERENCES)


# -- tables of operators ----------------------------------------------------------------------------------------------
TRAITS = (
    "linear", "trained", "additive", "affine", "pools", "clamps", "limits", "moves", "keeps_order", "chooses", "orders",
    "commutative", "pointwise", "homogeneous", "nonnegative", "flat", "float_only", "border",
)  # fmt: skip

KNOWN_TABLES: dict[tuple[str, str], str] = {}
"""(file, trait) -> why a collection of names that equals what a trait says is no restatement of it."""


@pytest.mark.parametrize("trait", TRAITS)
def test_no_table_restates_a_trait(trait: str) -> None:
    """Sets, tuples and lists of operator names outside qir/ops, with exactly the operators that have a trait."""
    having = {n for n, op in REGISTRY.items() if getattr(op, trait)}
    same = [having, {n for n in having if not n.startswith("qir.")}, {n for n in having if n.startswith("qir.")}]
    found: set[tuple[str, str]] = set()
    for path in FILES:
        if path.parent == ROOT / "qir" / "ops" or "testing" in path.parts:
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.Set, ast.List, ast.Tuple)):
                literals = {e.value for e in node.elts if isinstance(e, ast.Constant)}
                if len(literals) > 1 and literals in same:
                    found.add((str(path.relative_to(ROOT)), trait))
    assert found <= {k for k in KNOWN_TABLES if k[1] == trait}


def test_rounding_is_written_once() -> None:
    """The half that is added before a shift: `qir.dyadic.rounding`; kernels say it in their own terms."""
    found = re.compile(r"<< \((?:shift\w*|s|s64) - 1\)")
    plain = [p for p in FILES if "kernels" not in p.parts and p.name not in ("dyadic.py", "qonnx.py")]
    assert not [str(p) for p in plain if found.search(p.read_text(encoding="utf-8"))]


def test_kernels_cite_what_users_have() -> None:
    """The .cu files are not Python, so that `words` does not read them."""
    sources = sorted(p for room in LIBRARY for p in (ROOT / room).rglob("*.cu*"))
    assert sources and not [p.name for p in sources if "ARITHMETIC" in p.read_text()]
