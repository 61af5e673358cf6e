"""The command line: one file a command; `qir.__main__` starts it."""
