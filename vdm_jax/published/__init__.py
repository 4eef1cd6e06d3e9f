"""Published checkpoints as parameters of this library's networks."""
