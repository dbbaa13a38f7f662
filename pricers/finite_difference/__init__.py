"""Prices from the pricing equation on a grid."""

from pricers.finite_difference.engine import FiniteDifference, refusal

__all__ = ["FiniteDifference", "refusal"]
