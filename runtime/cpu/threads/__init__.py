"""Who executes a plan: the interpreter, the threads, and the first compilation."""
