"""Time-stamped data: sources, features, labels, weights, transforms and the dataset that carries time."""

from qfml.data.audit import Leak, LeakageAudit, audit_leakage
from qfml.data.bootstrap import draw_probabilities, sequential_bootstrap
from qfml.data.dataset import TimeDataset
from qfml.data.features import FEATURES, Feature, add_features, lookback_rows, source_columns
from qfml.data.labels import LABELS, Label
from qfml.data.overlap import Bars, concurrency
from qfml.data.weights import WEIGHTS, Weights, average_uniqueness, return_attribution, time_decay

__all__ = [
    "FEATURES",
    "LABELS",
    "WEIGHTS",
    "Bars",
    "Feature",
    "Label",
    "Leak",
    "LeakageAudit",
    "TimeDataset",
    "Weights",
    "add_features",
    "audit_leakage",
    "average_uniqueness",
    "concurrency",
    "draw_probabilities",
    "lookback_rows",
    "return_attribution",
    "sequential_bootstrap",
    "source_columns",
    "time_decay",
]
