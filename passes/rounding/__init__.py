"""The integers of weights, chosen for the layer's output."""
