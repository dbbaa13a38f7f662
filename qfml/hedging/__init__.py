"""Deep hedging: policies trained on paths of a market, judged beside the textbook's hedges and exact answers."""

from qfml.hedging.book import Book
from qfml.hedging.costs import COSTS, FixedPerTrade, Proportional, Quadratic
from qfml.hedging.gains import Gains, gains
from qfml.hedging.hedger import Hedger, deep_hedge
from qfml.hedging.holding import HOLDINGS, Band, Correction, Direct
from qfml.hedging.instruments import HEDGES, Option, Spot, VarianceSwapHedge
from qfml.hedging.markets import MARKETS, BootstrappedReturns, ModelMarket, RecordedPaths
from qfml.hedging.objectives import (
    OBJECTIVES,
    Entropic,
    ExpectedShortfall,
    ExponentialUtility,
    Isoelastic,
    MeanVariance,
    OptimizedCertaintyEquivalent,
    QuadraticShortfall,
    Spectral,
)
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import POLICIES, FeedForward

__all__ = [
    "COSTS",
    "HEDGES",
    "HOLDINGS",
    "MARKETS",
    "OBJECTIVES",
    "POLICIES",
    "Band",
    "Book",
    "BootstrappedReturns",
    "Correction",
    "Direct",
    "Entropic",
    "ExpectedShortfall",
    "ExponentialUtility",
    "FeedForward",
    "FixedPerTrade",
    "Gains",
    "Hedger",
    "Isoelastic",
    "MeanVariance",
    "ModelMarket",
    "OptimizedCertaintyEquivalent",
    "Option",
    "PathSet",
    "Proportional",
    "Quadratic",
    "QuadraticShortfall",
    "RecordedPaths",
    "Spectral",
    "Spot",
    "VarianceSwapHedge",
    "deep_hedge",
    "gains",
]
