"""A run folder made readable: one self-contained HTML page."""
