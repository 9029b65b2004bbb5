"""The commands: each turns options into one call of the library and emits the result."""
