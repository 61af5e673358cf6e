"""Reverse-mode differentiation of a graph, and second derivatives by it."""
