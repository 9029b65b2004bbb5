"""Two machines: write down what a run saw, and compare it with another run later."""
