"""Recipes as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

from .recipes import RECIPES, Recipe

Bits = tuple[int, int]


def as_toml(recipe: Recipe, layers: Mapping[str, Bits] | None = None, *, whole: bool = False) -> str:
    """A recipe file with the bits of each layer, and what the recipe does not have from its base (whole: all)."""
    base = RECIPES.get(recipe.name, RECIPES["w8a8"])
    lines = [f"base = {quoted(base.name)}"]
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name not in ("name", "layers", "extra") and (whole or value != getattr(base, field.name)):
            text = quoted(value) if isinstance(value, str) else str(value).lower()
            lines.append(f"{field.name} = {text}")
    bits = recipe.layers if layers is None else layers
    lines += ["", "[layers]", *(f"{quoted(name)} = [{w}, {a}]" for name, (w, a) in bits.items())] if bits else []
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A TOML string."""
    return json.dumps(text, ensure_ascii=False)
