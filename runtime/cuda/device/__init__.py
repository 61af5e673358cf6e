"""What launches run on: a GPU through CuPy, or an emulation of one for tests; and the compilers of kernels."""
