"""Simplify: the graph an exporter should have written, by local rules."""
