"""Rewriting: terms, rules as two functions, matching at a node, and the driver that applies them."""
