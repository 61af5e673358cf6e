if __name__ != "qir.runtime":  # the same class must not exist twice
    raise ImportError("import qir.runtime, not runtime")
