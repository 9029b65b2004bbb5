"""A saved run as an engine: values are read from a file."""
