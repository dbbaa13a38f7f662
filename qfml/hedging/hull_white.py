r"""Minimum variance on prices without a model: the delta of Black and Scholes, corrected as past paths have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qfml.errors import ConfigError, DataError
from qfml.hedging.baseline_base import (
    Dates,
    HedgingProblem,
    Held,
    Vol,
    check_spot,
    check_vol,
    dated_vol,
    in_spot,
    spot_of,
)
from qfml.hedging.contract_greeks import alive_feature, black_scholes_slopes
from qfml.hedging.paths import PathSet

__all__ = ["HullWhiteDelta", "fitted_hull_white"]


@dataclass(frozen=True)
class HullWhiteDelta:
    r"""Hull and White's minimum variance delta: the spot moves, and with it the vol, by a known mean.

    .. math:: \delta + \frac{\mathcal V}{P \sqrt{\tau}} (a + b\,\delta + c\,\delta^2)

    for each contract, with the delta :math:`\delta` and vega :math:`\mathcal V = P^2 \Gamma \sigma \tau` of Black and
    Scholes. The authors fit the three numbers to moves of quoted options; `fitted_hull_white` does so to the P&L of the
    book on paths, for a history that has no quotes.

    Args:
        vol: annualised, decimal; or "realised", what the past returns have realised by each date.
        coefficients: a, b and c.

    References:
        Hull and White (2017), "Optimal delta hedging for options", the quadratic model of their section on it.
    """

    kind: ClassVar[str] = "hull_white_delta"
    vol: Vol
    coefficients: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_vol(self.vol)
        if len(self.coefficients) != 3 or not all(torch.isfinite(torch.tensor(self.coefficients)).tolist()):
            raise ConfigError(f"`coefficients` must be three finite numbers a, b, c, got {self.coefficients}")

    def holdings(self, paths: PathSet, problem: HedgingProblem) -> Held:
        """See `Baseline.holdings`."""
        delta, corrections = _parts(paths, problem, self.vol)
        pairs = zip(self.coefficients, corrections, strict=True)
        return in_spot(delta + sum(number * part for number, part in pairs), paths)


def fitted_hull_white(paths: PathSet, problem: HedgingProblem, vol: Vol) -> HullWhiteDelta:
    r"""The coefficients with which the P&L on these paths, costs aside, has the least variance.

    The P&L is linear in them: least squares of what the delta leaves open on the gains of the three corrections.

    Raises:
        ConfigError, DataError: as `HullWhiteDelta.holdings`; fewer paths than coefficients.
    """
    if len(paths) < 5:
        raise DataError(f"three coefficients need more paths to be fitted to, got {len(paths)}")
    delta, corrections = _parts(paths, problem, vol)
    moves = paths.prices[:, :, 0].double().diff(dim=1)
    open_pnl = (delta * moves).sum(1) - paths.liability.double()
    gains = torch.stack([torch.ones_like(open_pnl), *((part * moves).sum(1) for part in corrections)], 1)
    found = torch.linalg.lstsq(gains, -open_pnl[:, None], driver="gelsd").solution[1:, 0].tolist()
    return HullWhiteDelta(vol, (found[0], found[1], found[2]))


def _parts(paths: PathSet, problem: HedgingProblem, vol: Vol) -> tuple[Dates, list[Tensor]]:
    """Delta of the book, and what multiplies each coefficient, all (B, L - 1)."""
    check_spot(problem)
    spot, book, believed = spot_of(paths), problem.book, dated_vol(vol, paths, problem)
    total, corrections = torch.zeros_like(spot), [torch.zeros_like(spot) for _ in range(3)]
    for place, (quantity, contract) in enumerate(zip(book.quantities, book.contracts, strict=True)):
        delta, gamma = black_scholes_slopes(contract, paths, problem.market, believed, alive_feature(book, place))
        left = (contract.horizon.double() - paths.times[:-1]).clamp_min(0.0)
        weight = quantity * spot * gamma * believed * left.sqrt()  # vega over P and the root of the time left
        total = total + quantity * delta
        corrections = [part + weight * delta**power for power, part in enumerate(corrections)]
    return total, corrections
