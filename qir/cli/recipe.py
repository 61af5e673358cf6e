"""`qir recipe`: a recipe as TOML."""

from __future__ import annotations

import argparse

from qir.passes.recipe_files import as_toml
from qir.passes.recipes import recipe_of

from . import show


def main(args: argparse.Namespace) -> int:
    show.say(as_toml(recipe_of(args.recipe), whole=True).rstrip("\n"))
    return 0
