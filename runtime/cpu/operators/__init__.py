"""One function an operator: graph node to steps of a plan."""
