"""Monte Carlo engines."""
