"""Training losses of a stack: outputs (M, B), or (M, B, K) of several, in, one loss a member (M,) out.

An additive loss is a weighted mean over rows, and may be taken batch by batch. A loss of the whole sample (the Sharpe
ratio, a risk measure of the P&L) is a function of all rows at once: it is trained with `batch_size=None` and sees its
rows sorted by asset and time.
"""

from qfml.losses.additive import BCE, MAE, MSE, Focal, Huber, Pinball, WeightedBCE
from qfml.losses.base import Additive, Loss, Panel, weighted_mean
from qfml.losses.sample import EntropicRisk, ExpectedShortfall, MeanVariance, NegativeSharpe, PnLLoss
from qfml.losses.several import CrossEntropy, Quantiles
from qfml.losses.twin import Twin

__all__ = [
    "BCE",
    "LOSSES",
    "MAE",
    "MSE",
    "Additive",
    "CrossEntropy",
    "EntropicRisk",
    "ExpectedShortfall",
    "Focal",
    "Huber",
    "Loss",
    "MeanVariance",
    "NegativeSharpe",
    "Panel",
    "Pinball",
    "PnLLoss",
    "Quantiles",
    "Twin",
    "WeightedBCE",
    "weighted_mean",
]

LOSSES: dict[str, type] = {
    cls.kind: cls
    for cls in (
        MSE,
        MAE,
        Huber,
        Pinball,
        BCE,
        WeightedBCE,
        Focal,
        CrossEntropy,
        Quantiles,
        Twin,
        NegativeSharpe,
        ExpectedShortfall,
        EntropicRisk,
        MeanVariance,
    )
}
