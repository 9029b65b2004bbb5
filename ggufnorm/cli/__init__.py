"""The commands: each turns options into one call of the library and emits the result."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell reports it."""
AT_FAULT = 70
"""Exit code after an error that nobody foresaw: EX_SOFTWARE of sysexits.h."""
