"""What runs models: each engine turns a model and tokens into observations."""
