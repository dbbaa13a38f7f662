"""qfml: from time-stamped market data and stochastic models to trained, validated, shippable networks."""

from qfml.backtest import WalkForwardResult, walk_forward
from qfml.engine import SGD, AdamW, Bar, Fit, Member, Trainer
from qfml.losses import (
    BCE,
    MAE,
    MSE,
    EntropicRisk,
    ExpectedShortfall,
    Focal,
    Huber,
    MeanVariance,
    NegativeSharpe,
    Pinball,
    WeightedBCE,
)
from qfml.networks import GRU, LSTM, MLP, TCN, ConvexMLP, MonotoneMLP, ResidualMLP, TabM, Transformer
from qfml.predict import predict
from qfml.run import resume, run

__version__ = "0.1.0"

__all__ = [
    "BCE",
    "GRU",
    "LSTM",
    "MAE",
    "MLP",
    "MSE",
    "SGD",
    "TCN",
    "AdamW",
    "Bar",
    "ConvexMLP",
    "EntropicRisk",
    "ExpectedShortfall",
    "Fit",
    "Focal",
    "Huber",
    "MeanVariance",
    "Member",
    "MonotoneMLP",
    "NegativeSharpe",
    "Pinball",
    "ResidualMLP",
    "TabM",
    "Trainer",
    "Transformer",
    "WalkForwardResult",
    "WeightedBCE",
    "predict",
    "resume",
    "run",
    "walk_forward",
]
