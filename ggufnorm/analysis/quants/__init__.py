"""``quants``: several files beside one reference."""
