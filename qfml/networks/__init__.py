"""Network specifications, built as stacks of members."""
