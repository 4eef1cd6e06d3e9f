"""Published checkpoints as parameters of our networks."""
