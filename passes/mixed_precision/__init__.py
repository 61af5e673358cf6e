"""How many bits for which layer: sensitivities, costs, and the integer program."""
