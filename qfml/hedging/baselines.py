r"""Textbook hedges that stand beside every policy: none, deltas, minimum variance, Whalley and Wilmott, Leland.

All is in discounted units. The first hedging instrument is the spot with its income reinvested,
$P_t = S_t\,e^{-\int_0^t (r - q)}$, so that a contract's forward is $P_t\,g_T$ with the growth $g_T$ of the forward, and
its discounted value $V = D_T B(P_t\,g_T, \dots)$ with the discount factor $D_T$. Deltas are slopes of V in P.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

import pricers as pr
from pricers.paths import SAME_DATE
from qfml.errors import ConfigError
from qfml.hedging.baseline_base import (
    Baseline,
    Dates,
    HedgingProblem,
    Held,
    Vol,
    black_scholes_delta,
    check_positive,
    check_spot,
    check_vol,
    dated_vol,
    in_spot,
    spot_of,
)
from qfml.hedging.book import Book
from qfml.hedging.hull_white import HullWhiteDelta
from qfml.hedging.instruments import Option, VarianceSwapHedge
from qfml.hedging.paths import PathSet
from qfml.hedging.price_table import TABULATED, PriceTable, expected_variance, price_table

__all__ = [
    "BASELINES",
    "Baseline",
    "BlackScholesDelta",
    "HedgingProblem",
    "HullWhiteDelta",
    "Leland",
    "MinimumVarianceDelta",
    "ModelDelta",
    "NoHedge",
    "WhalleyWilmott",
    "band_holdings",
    "black_scholes_delta",
    "leland_vol",
    "whalley_wilmott_width",
]

LEAST_VARIANCE = 1e-5  # a vol of 0.3 %: the slope in the variance is taken there where there is less
LEAST_SLOPE = 1e-6  # of the spot, per unit of variance: what has less does not hedge the variance


def leland_vol(vol: float | Tensor, cost: float, dt: float, short: bool = True) -> Any:
    r"""Vol that pays for rehedging an option every dt: $\hat\sigma^2 = \sigma^2 \pm \sigma c \sqrt{8 / (\pi\,dt)}$.

    Args:
        vol: annualised, decimal; a number or a tensor of any shape.
        cost: c, proportional cost of one trade (half of Leland's, which is of a round trip).
        dt: years between trades.
        short: whether the option is owed, +; one that is held has -.

    Raises:
        ConfigError: a vol or time that is not positive, a cost so large that a held option has no vol left.

    References:
        Leland (1985), "Option Pricing and Replication with Transactions Costs", eq. 12.

    Example:
        >>> round(leland_vol(vol=0.2, cost=1e-3, dt=1 / 365), 6)
        0.214703
    """
    least = float(torch.as_tensor(vol).min())
    if not least > 0 or not dt > 0 or not cost >= 0:
        raise ConfigError(f"`vol` and `dt` must be above 0 and `cost` at least 0, got {least}, {dt} and {cost}")
    number = cost * math.sqrt(8 / (math.pi * dt)) / vol
    if not short and (largest := cost * math.sqrt(8 / (math.pi * dt)) / least) >= 1:
        raise ConfigError(
            f"Leland's vol of a held option needs costs below {cost / largest:.2g} at this vol and step, got {cost}: "
            "trade less often"
        )
    return vol * (1 + number if short else 1 - number) ** 0.5


def whalley_wilmott_width(gamma: Tensor, spot: Tensor, cost: float, risk_aversion: float) -> Tensor:
    r"""Half the width of the no-transaction band around the delta: $(\tfrac{3}{2\lambda} c\,P\,\Gamma^2)^{1/3}$.

    Args:
        gamma: second derivative of the book's discounted value in the discounted spot.
        spot: P, discounted.
        cost: c, proportional.
        risk_aversion: :math:`\lambda` of the exponential utility, per unit of discounted cash.

    References:
        Whalley and Wilmott (1997), "An Asymptotic Analysis of an Optimal Hedging Model for Option Pricing with
        Transaction Costs", eq. 3.10.
    """
    return (1.5 * cost / risk_aversion * spot * gamma.square()).pow(1 / 3)


def band_holdings(low: Dates, high: Dates) -> Dates:
    """Holdings that move as little as a band asks for, from nothing on: the nearest point of it at each date."""
    held, before = [], torch.zeros_like(low[:, 0])
    for date in range(low.shape[1]):
        before = torch.minimum(torch.maximum(before, low[:, date]), high[:, date])
        held.append(before)
    return torch.stack(held, dim=1)


@dataclass(frozen=True)
class NoHedge:
    """No hedge at all: what the book costs without trading."""

    kind: ClassVar[str] = "none"

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """Nothing; see `Baseline.holdings`."""
        return torch.zeros_like(paths.prices[:, :-1])


@dataclass(frozen=True)
class BlackScholesDelta:
    """The delta of Black and Scholes, in the spot alone.

    Args:
        vol: annualised, decimal; or "realised", what the past returns have realised by each date.
    """

    kind: ClassVar[str] = "black_scholes_delta"
    vol: Vol

    def __post_init__(self) -> None:
        check_vol(self.vol)

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        vol = dated_vol(self.vol, paths, problem)
        delta, _ = black_scholes_delta(paths, problem, [vol] * len(problem.book.quantities))
        return in_spot(delta, paths)


@dataclass(frozen=True)
class WhalleyWilmott:
    """Whalley and Wilmott's no-transaction band around the delta of Black and Scholes, in the spot alone.

    Args:
        vol: annualised, decimal; or "realised", what the past returns have realised by each date.
        risk_aversion: of the exponential utility, per unit of discounted cash.
        cost: proportional cost of a trade, decimal.
    """

    kind: ClassVar[str] = "whalley_wilmott"
    vol: Vol
    risk_aversion: float
    cost: float

    def __post_init__(self) -> None:
        check_vol(self.vol)
        check_positive(risk_aversion=self.risk_aversion)
        _check_cost(self.cost)

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        vol = dated_vol(self.vol, paths, problem)
        delta, gamma = black_scholes_delta(paths, problem, [vol] * len(problem.book.quantities))
        width = whalley_wilmott_width(gamma, spot_of(paths), self.cost, self.risk_aversion)
        return in_spot(band_holdings(delta - width, delta + width), paths)


@dataclass(frozen=True)
class Leland:
    """The delta of Black and Scholes at Leland's vol, in the spot alone: larger for what is owed, smaller for what not.

    The time between trades is the mean period of the paths.

    Args:
        vol: annualised, decimal; or "realised", what the past returns have realised by each date.
        cost: proportional cost of a trade, decimal.
    """

    kind: ClassVar[str] = "leland"
    vol: Vol
    cost: float

    def __post_init__(self) -> None:
        check_vol(self.vol)
        _check_cost(self.cost)

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        _options(problem.book)  # of one sign of gamma each
        dt = float(paths.times[-1]) / paths.n_steps
        vol = dated_vol(self.vol, paths, problem)
        vols = [leland_vol(vol, self.cost, dt, short=quantity > 0) for quantity in problem.book.quantities]
        return in_spot(black_scholes_delta(paths, problem, vols)[0], paths)


@dataclass(frozen=True)
class ModelDelta:
    """Matches the model's Greeks of the book: the slope in the spot and, where an instrument has it, in the variance.

    Under Heston and Bates, the first option or variance swap beside the spot takes the slope in the variance, and the
    spot what is left of the slope in the spot; no further instrument is held. On paths where that instrument has no
    slope in the variance left, the spot hedges alone.
    """

    kind: ClassVar[str] = "model_delta"

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        by_spot, by_variance = _book_slopes(paths, problem)
        if len(problem.instruments) == 1 or not _has_variance(problem):
            return in_spot(by_spot, paths)
        of_spot, of_variance = _slopes_of_instrument(paths, problem, problem.instruments[1])
        hedges = of_variance.abs() > LEAST_SLOPE * spot_of(paths)
        second = torch.where(hedges, by_variance / torch.where(hedges, of_variance, 1.0), 0.0)
        held = torch.zeros_like(paths.prices[:, :-1])
        held[..., 0], held[..., 1] = by_spot - second * of_spot, second
        return held


@dataclass(frozen=True)
class MinimumVarianceDelta:
    r"""The holding of the spot that leaves the least variance at once: $V_P + \rho\,\sigma\,V_v / P$ under Heston.

    Variance moves with the spot: the correlated part of its risk is hedged there.

    References:
        Alexander and Nogueira (2007), "Model-Free Hedge Ratios and Scale-Invariant Models", section 2.
    """

    kind: ClassVar[str] = "minimum_variance_delta"

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        if not isinstance(problem.model, (pr.Heston, pr.BlackScholes)):
            raise ConfigError(
                f"the minimum variance delta is that of heston or black_scholes, got {_model_name(problem)}: jumps ask "
                "for another formula; take model_delta"
            )
        by_spot, by_variance = _book_slopes(paths, problem)
        if isinstance(problem.model, pr.Heston):
            by_spot = by_spot + float(problem.model.rho * problem.model.sigma) * by_variance / spot_of(paths)
        return in_spot(by_spot, paths)


BASELINES: dict[str, type[Baseline]] = {
    cls.kind: cls
    for cls in (NoHedge, BlackScholesDelta, ModelDelta, MinimumVarianceDelta, HullWhiteDelta, WhalleyWilmott, Leland)
}


def _book_slopes(paths: PathSet, problem: HedgingProblem) -> tuple[Dates, Dates]:
    """Slopes of the book's discounted value in the discounted spot and in the variance, (B, L - 1), float64."""
    check_spot(problem)
    model = problem.model
    if isinstance(model, pr.BlackScholes) and model.n_assets == 1 and model.vol.numel() == 1:
        delta, _ = black_scholes_delta(paths, problem, [float(model.vol)] * len(problem.book.contracts))
        return delta, torch.zeros_like(delta)
    if isinstance(model, TABULATED):
        return _table_slopes(paths, problem, _positions(problem.book))
    names = ", ".join(cls.kind for cls in (pr.BlackScholes, *TABULATED))
    raise ConfigError(
        f"the model's delta along paths is known of one asset under {names}, got {_model_name(problem)}; take "
        "black_scholes_delta"
    )


def _table_slopes(paths: PathSet, problem: HedgingProblem, positions: list[Any]) -> tuple[Dates, Dates]:
    """The same of (quantity, strike, expiry, option), from the tables that price the hedging instruments."""
    assert problem.model is not None
    spot, variance = spot_of(paths), _variance(paths, problem)
    by_spot, by_variance = torch.zeros_like(spot), torch.zeros_like(spot)
    for quantity, strike, expiry, option in positions:
        at = torch.tensor(expiry, dtype=torch.float64)
        growth, factor = problem.market.growth(at), quantity * problem.market.discount(at)
        for date, time in enumerate(paths.times[:-1].tolist()):
            if expiry - time <= SAME_DATE:
                continue
            table = _table(problem.model, expiry - time, float(paths.times[-1]))
            forward, now = spot[:, date] * growth, variance[:, date]
            by_forward, by_now = _slopes_of_table(table, forward, strike, now, option)
            by_spot[:, date] += factor * growth * by_forward
            by_variance[:, date] += factor * by_now
    return by_spot, by_variance


@lru_cache(maxsize=128)
def _table(model: pr.Model, time_left: float, horizon: float) -> PriceTable:
    """Tables of the same model object are kept: each takes a tenth of a second."""
    return price_table(model, time_left, horizon)


def _slopes_of_table(
    table: PriceTable, forward: Tensor, strike: float, variance: Tensor, option: str
) -> tuple[Tensor, Tensor]:
    """Slopes of a table's prices in forward and variance: a dual number at each path."""
    variance = variance.clamp_min(
        LEAST_VARIANCE
    )  # the coordinate, a root, has an infinite slope at 0; the price has not
    slopes = []
    for moved in (0, 1):
        with forward_ad.dual_level():
            at = [forward, variance]
            at[moved] = forward_ad.make_dual(at[moved], torch.ones_like(at[moved]))
            slopes.append(forward_ad.unpack_dual(table.price(at[0], strike, at[1], option)).tangent)
    return slopes[0], slopes[1]


def _slopes_of_instrument(paths: PathSet, problem: HedgingProblem, instrument: Any) -> tuple[Dates, Dates]:
    """Slopes of one unit of a hedging instrument in the discounted spot and in the variance."""
    if isinstance(instrument, Option):
        one = (1.0, instrument.strike, instrument.expiry, instrument.option)
        return _table_slopes(paths, problem, [one])
    if isinstance(instrument, VarianceSwapHedge) and problem.model is not None:
        expiry = torch.tensor(instrument.expiry, dtype=torch.float64)
        slope, _ = expected_variance(problem.model, expiry - paths.times[:-1])
        by_variance = (problem.market.discount(expiry) / expiry * slope).expand(len(paths), -1)
        return torch.zeros_like(by_variance), by_variance
    raise ConfigError(f"the Greeks of {instrument!r} are not known; put an option or a variance swap second")


def _positions(book: Book) -> list[Any]:
    """Quantity, strike, expiry and side of each option that is owed."""
    pairs = zip(book.quantities, _options(book), strict=True)
    return [(quantity, float(each.strike), float(each.expiry), each.option) for quantity, each in pairs]


def _options(book: Book) -> list[pr.European]:
    for name, contract in zip(book.names, book.contracts, strict=True):
        if not isinstance(contract, pr.European):
            raise ConfigError(
                f"this textbook hedge is that of European options, the book has {name}; leave it out of the "
                "baselines, or compare with none"
            )
    return [contract for contract in book.contracts if isinstance(contract, pr.European)]


def _variance(paths: PathSet, problem: HedgingProblem) -> Dates:
    """Instantaneous variance at the dates of trading, (B, L - 1), from what can be seen."""
    if isinstance(problem.model, pr.Merton):
        return float(problem.model.vol) ** 2 * torch.ones_like(spot_of(paths))
    for name, power in (("variance", 1), ("vol", 2)):
        if name in paths.feature_names:
            seen = paths.features[:, :-1, paths.feature_names.index(name)].double()
            return problem.vol**2 * seen**power
    if "variance" in paths.known:
        return paths.known["variance"][:, :-1].double()
    raise ConfigError(
        f"the delta of {_model_name(problem)} needs the variance on the paths, got the features "
        f"{', '.join(paths.feature_names)}: add 'variance' to `information`"
    )


def _has_variance(problem: HedgingProblem) -> bool:
    return isinstance(problem.model, (pr.Heston, pr.Bates))


def _model_name(problem: HedgingProblem) -> str:
    return "no model" if problem.model is None else problem.model.kind


def _check_cost(cost: float) -> None:
    if not 0 <= cost < 1:
        raise ConfigError(f"`cost` must lie in [0, 1), 1e-3 for ten basis points, got {cost}")
