"""From a graph to the numbers that the kernels read."""
