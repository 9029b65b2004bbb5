"""The commands: each parses options, calls one function of the API and emits the result."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""
AT_FAULT = 70
"""Exit code after an error that nobody foresaw: EX_SOFTWARE of sysexits.h."""
