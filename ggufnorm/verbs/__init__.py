"""What the verbs of :mod:`ggufnorm.api` do with the kinds of their locations."""
