"""Parts that several networks share: layers, convolutions, stacks of blocks, attention."""
