"""`qir recipe`: a recipe as TOML."""

from __future__ import annotations

import argparse

from qir.passes.recipes import recipe_of

from . import show
from .search import as_toml


def main(args: argparse.Namespace) -> int:
    show.say(as_toml(recipe_of(args.recipe), whole=True).rstrip("\n"))
    return 0
