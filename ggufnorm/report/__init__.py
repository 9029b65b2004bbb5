"""One document, several faces: plain data, terminal text, JSON."""
