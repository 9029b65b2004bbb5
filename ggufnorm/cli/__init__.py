"""The commands: each parses options, calls one function of the API and emits the result."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""
