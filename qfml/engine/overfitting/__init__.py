"""Overfitting: how to see it, and how sure a network is."""

from qfml.engine.overfitting.bias_variance import BiasVariance, bias_variance, bias_variance_of
from qfml.engine.overfitting.gap import Gap, train_validation_gap
from qfml.engine.overfitting.uncertainty import Uncertainty, ensemble, mc_dropout, total_variance

__all__ = [
    "BiasVariance",
    "Gap",
    "Uncertainty",
    "bias_variance",
    "bias_variance_of",
    "ensemble",
    "mc_dropout",
    "total_variance",
    "train_validation_gap",
]
