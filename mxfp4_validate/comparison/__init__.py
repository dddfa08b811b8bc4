"""Bits, norms, rows and tiles, explained bits, and the first mismatch by coordinate and value."""
