"""``audio``: what each pipeline feeds an audio encoder, and whether it is normalized right."""
