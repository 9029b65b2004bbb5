"""Where a model is put: options, what is refused, what a run says of it."""
