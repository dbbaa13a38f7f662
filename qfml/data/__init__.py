"""Time-stamped data: sources, features, labels, weights, transforms and the dataset that carries time."""

from qfml.data.asof import join_asof
from qfml.data.audit import Leak, LeakageAudit, audit_leakage
from qfml.data.barriers import MetaLabel, TripleBarrier
from qfml.data.bootstrap import draw_probabilities, sequential_bootstrap
from qfml.data.dataset import TimeDataset
from qfml.data.features import (
    FEATURES,
    CrossSectionalRank,
    Feature,
    RollingZScore,
    add_features,
    lookback_rows,
    source_columns,
)
from qfml.data.fractional import FractionalDifference
from qfml.data.labels import LABELS, ForwardReturn, ForwardSign, Label, RealisedVolAhead, VolScaledReturn
from qfml.data.overlap import Bars, concurrency
from qfml.data.price_features import RSI, Calendar, LogReturns, Momentum, MovingAverageDistance, Returns, VolumeRatio
from qfml.data.sources import (
    SOURCES,
    ArchSource,
    CsvSource,
    FrameSource,
    ParquetSource,
    SkfolioSource,
    Source,
    SqlSource,
)
from qfml.data.streaming import StreamingTimeDataset, write_shards
from qfml.data.transforms import (
    TRANSFORMS,
    QuantileNormal,
    RobustScale,
    Sklearn,
    Standardise,
    Transform,
    Winsorise,
    fit_transforms,
)
from qfml.data.validation import MISSING_POLICIES, DropMissing, ErrorOnMissing, ForwardFill, ValidationReport, validate
from qfml.data.volatility import HAR, RealisedVol
from qfml.data.weights import (
    WEIGHTS,
    AverageUniqueness,
    ReturnAttribution,
    TimeDecay,
    Weights,
    average_uniqueness,
    return_attribution,
    time_decay,
)

__all__ = [
    "FEATURES",
    "HAR",
    "LABELS",
    "MISSING_POLICIES",
    "RSI",
    "SOURCES",
    "TRANSFORMS",
    "WEIGHTS",
    "ArchSource",
    "AverageUniqueness",
    "Bars",
    "Calendar",
    "CrossSectionalRank",
    "CsvSource",
    "DropMissing",
    "ErrorOnMissing",
    "Feature",
    "ForwardFill",
    "ForwardReturn",
    "ForwardSign",
    "FractionalDifference",
    "FrameSource",
    "Label",
    "Leak",
    "LeakageAudit",
    "LogReturns",
    "MetaLabel",
    "Momentum",
    "MovingAverageDistance",
    "ParquetSource",
    "QuantileNormal",
    "RealisedVol",
    "RealisedVolAhead",
    "ReturnAttribution",
    "Returns",
    "RobustScale",
    "RollingZScore",
    "SkfolioSource",
    "Sklearn",
    "Source",
    "SqlSource",
    "Standardise",
    "StreamingTimeDataset",
    "TimeDataset",
    "TimeDecay",
    "Transform",
    "TripleBarrier",
    "ValidationReport",
    "VolScaledReturn",
    "VolumeRatio",
    "Weights",
    "Winsorise",
    "add_features",
    "audit_leakage",
    "average_uniqueness",
    "concurrency",
    "draw_probabilities",
    "fit_transforms",
    "join_asof",
    "lookback_rows",
    "return_attribution",
    "sequential_bootstrap",
    "source_columns",
    "time_decay",
    "validate",
    "write_shards",
]
