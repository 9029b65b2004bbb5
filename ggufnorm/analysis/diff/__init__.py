"""``diff``: what sets two files apart, nothing run."""
