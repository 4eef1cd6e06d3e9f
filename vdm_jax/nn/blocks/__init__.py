"""Parts that networks share: layers, convolutions, stacks of blocks, attention."""
