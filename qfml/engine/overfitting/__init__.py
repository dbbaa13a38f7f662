"""Overfitting: how to see it, and how sure a network is."""

from qfml.engine.overfitting.bias_variance import BiasVariance, bias_variance, bias_variance_of
from qfml.engine.overfitting.curves import ScoreCurve, learning_curve, validation_curve
from qfml.engine.overfitting.gap import Gap, train_validation_gap
from qfml.engine.overfitting.one_batch import OneBatch, overfit_one_batch
from qfml.engine.overfitting.uncertainty import Uncertainty, ensemble, mc_dropout, total_variance

__all__ = [
    "BiasVariance",
    "Gap",
    "OneBatch",
    "ScoreCurve",
    "Uncertainty",
    "bias_variance",
    "bias_variance_of",
    "ensemble",
    "learning_curve",
    "mc_dropout",
    "overfit_one_batch",
    "total_variance",
    "train_validation_gap",
    "validation_curve",
]
