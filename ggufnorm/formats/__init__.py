"""From bytes to a :class:`~ggufnorm.core.model.Model`."""
