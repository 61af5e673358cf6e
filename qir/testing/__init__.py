"""What tests and benchmarks share: random float networks (`networks`, `blocks`) and integer cases (`integer`)."""

from .networks import Choices, Dice, RandomNetwork, networks, random_network

__all__ = ["Choices", "Dice", "RandomNetwork", "networks", "random_network"]
