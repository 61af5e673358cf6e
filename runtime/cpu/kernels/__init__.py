"""Numba kernels: numbers and memory in, memory out; none knows a graph or a plan."""
