"""Monte Carlo: noise to paths to payoffs, with honest standard errors."""

from pricers.monte_carlo.engine import MonteCarlo, Sampler
from pricers.monte_carlo.multilevel import MultilevelMonteCarlo
from pricers.monte_carlo.scenarios import Scenarios, Simulation

__all__ = ["MonteCarlo", "MultilevelMonteCarlo", "Sampler", "Scenarios", "Simulation"]
