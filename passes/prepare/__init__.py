"""Float rewrites before quantizers: batch norm, normalization, equalization and balance, bias absorption."""
