"""From engines' observations to a :class:`~ggufnorm.core.drift.DriftReport`."""
