"""Masks of attention, in whatever way an exporter writes them."""
