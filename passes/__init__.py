if __name__ != "qir.passes":  # the same class must not exist twice
    raise ImportError("import qir.passes, not passes")
