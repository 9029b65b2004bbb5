"""Transformers as an engine: the room of torch and transformers."""
