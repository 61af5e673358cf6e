"""From a prepared float graph to integers: where grids go, their scales, quantizers, lowering, packing."""
