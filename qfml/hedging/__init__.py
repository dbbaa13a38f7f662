"""Deep hedging: policies trained on paths of a market, judged beside the textbook's hedges and exact answers."""

from qfml.hedging.baselines import (
    BASELINES,
    BlackScholesDelta,
    HedgingProblem,
    HullWhiteDelta,
    Leland,
    MinimumVarianceDelta,
    ModelDelta,
    NoHedge,
    WhalleyWilmott,
)
from qfml.hedging.book import Book
from qfml.hedging.costs import COSTS, FixedPerTrade, Proportional, Quadratic
from qfml.hedging.deep_hedging import deep_hedge, deep_hedges
from qfml.hedging.gains import Gains, gains
from qfml.hedging.hedger import Hedger
from qfml.hedging.holding import HOLDINGS, Band, Correction, Direct
from qfml.hedging.instruments import HEDGES, Option, Spot, VarianceSwapHedge
from qfml.hedging.judgement import Judgement, JudgementSettings, judge
from qfml.hedging.markets import (
    MARKETS,
    BootstrappedReturns,
    DriftRemoved,
    HedgingMarket,
    ModelMarket,
    RecordedPaths,
)
from qfml.hedging.objectives import (
    OBJECTIVES,
    OCE_LOSSES,
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
from qfml.hedging.policies import POLICIES, Attention, FeedForward, Recurrent
from qfml.hedging.policy_base import Policy
from qfml.hedging.rules import TradingRules
from qfml.hedging.saved import load_hedger, save_hedger
from qfml.hedging.walk_forward import WalkForwardHedge, walk_forward_hedge

__all__ = [
    "BASELINES",
    "COSTS",
    "HEDGES",
    "HOLDINGS",
    "MARKETS",
    "OBJECTIVES",
    "OCE_LOSSES",
    "POLICIES",
    "Attention",
    "Band",
    "BlackScholesDelta",
    "Book",
    "BootstrappedReturns",
    "Correction",
    "Direct",
    "DriftRemoved",
    "Entropic",
    "ExpectedShortfall",
    "ExponentialUtility",
    "FeedForward",
    "FixedPerTrade",
    "Gains",
    "Hedger",
    "HedgingMarket",
    "HedgingProblem",
    "HullWhiteDelta",
    "Isoelastic",
    "Judgement",
    "JudgementSettings",
    "Leland",
    "MeanVariance",
    "MinimumVarianceDelta",
    "ModelDelta",
    "ModelMarket",
    "NoHedge",
    "OptimizedCertaintyEquivalent",
    "Option",
    "PathSet",
    "Policy",
    "Proportional",
    "Quadratic",
    "QuadraticShortfall",
    "RecordedPaths",
    "Recurrent",
    "Spectral",
    "Spot",
    "TradingRules",
    "VarianceSwapHedge",
    "WalkForwardHedge",
    "WhalleyWilmott",
    "deep_hedge",
    "deep_hedges",
    "gains",
    "judge",
    "load_hedger",
    "save_hedger",
    "walk_forward_hedge",
]
