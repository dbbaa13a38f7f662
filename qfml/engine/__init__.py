"""The training engine: one loop that trains a stack of members."""
