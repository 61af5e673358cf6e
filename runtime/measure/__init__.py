"""How fast and how right: timing, latency tables, comparisons, exactness."""
