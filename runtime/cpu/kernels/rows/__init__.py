"""Kernels that work on whole rows: softmax, normalization, interpolation, products of two activations."""
