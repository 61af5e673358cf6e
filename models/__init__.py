if __name__ != "qir.models":  # the same class must not exist twice
    raise ImportError("import qir.models, not models")
