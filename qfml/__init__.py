"""qfml: from time-stamped market data and stochastic models to trained, validated, shippable networks."""

from qfml.backtest import WalkForwardResult, walk_forward
from qfml.engine import SGD, AdamW, Bar, Fit, Member, Trainer
from qfml.losses import BCE, MSE, Huber, NegativeSharpe
from qfml.networks import MLP, TCN
from qfml.predict import predict
from qfml.run import resume, run

__version__ = "0.1.0"

__all__ = [
    "BCE",
    "MLP",
    "MSE",
    "SGD",
    "TCN",
    "AdamW",
    "Bar",
    "Fit",
    "Huber",
    "Member",
    "NegativeSharpe",
    "Trainer",
    "WalkForwardResult",
    "predict",
    "resume",
    "run",
    "walk_forward",
]
