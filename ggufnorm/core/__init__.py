"""Formulae, metrics and plain data types: NumPy and the standard library, no I/O."""
