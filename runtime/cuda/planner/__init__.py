"""A graph as launches: where tensors lie, which nodes share a launch, which kernel does it."""
