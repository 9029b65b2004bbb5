"""Runs models under watch: runners side by side, chunk after chunk, with probes on their hooks."""
