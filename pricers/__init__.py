"""pricers: stochastic models, instruments and engines; torch and mathematics only."""

from pricers.estimate import Estimate

__all__ = ["Estimate"]
