"""Thousands of models through the rules: at once, on several machines, and never twice."""
