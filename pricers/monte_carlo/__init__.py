"""Monte Carlo: noise to paths to payoffs, with honest standard errors."""

from pricers.monte_carlo.engine import MonteCarlo, Sampler

__all__ = ["MonteCarlo", "Sampler"]
