"""``pixels``: what each pipeline feeds an image model, and whether it is normalized right."""
