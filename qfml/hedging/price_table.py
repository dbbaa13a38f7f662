r"""Option prices along simulated paths: a table of exact prices by log-moneyness and variance, one for each date.

With $s^2$ the variance of the log price that is expected to the expiry, $y = \log(K / F) / s$ and $B$ Black's price, a
call is $F\,(B(y s, s) + s\,D(y, v))$ where $D$ is smooth and vanishes in both wings. $D$ is tabulated on nodes even in
$\operatorname{arsinh}$ of $y$ and of $\sqrt v$ in its natural unit, and read by cubics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.black import black_call_put
from pricers.models.heston_exact import bicubic
from pricers.noise import address
from qfml.errors import DataError

__all__ = ["TABULATED", "PriceTable", "expected_variance", "price_table"]

ACCURACY = 1e-6  # of the forward: largest error of a table at the points where it is tried
STATE_STEP, MONEYNESS_STEP = 0.06, 0.05  # of the coordinates
FINER = 3  # times that both steps are halved for the accuracy
FLAT = 1e-9  # of the forward: what is left of the correction at the last strikes
FEWEST_DEVIATIONS, MOST_DEVIATIONS = 32.0, 4096.0  # of the last strikes
FARTHEST = 300.0  # log-moneyness of a strike, which must remain a number
VARIANCE_REACH = 7.0  # standard deviations of the root of the variance that a table covers
TRIED = 16, 64  # variances, and strikes of each, at which a table is compared with the exact price
TABULATED: tuple[type[pr.Model], ...] = (pr.Heston, pr.Bates, pr.Merton)


def expected_variance(model: pr.Model, time_left: Tensor) -> tuple[Tensor, Tensor]:
    r"""Slope and intercept in today's variance of the quadratic variation of $\log S$ expected until the end.

    $$E_t [\log S]_t^{t + \tau} = v_t \frac{1 - e^{-\kappa\tau}}{\kappa}
      + \theta\Big(\tau - \frac{1 - e^{-\kappa\tau}}{\kappa}\Big) + \lambda\tau(\mu_J^2 + \sigma_J^2)$$

    with the terms that the model has; a constant variance has the slope $\tau$.

    Args:
        model: BlackScholes or Merton; Heston or Bates.
        time_left: $\tau$ in years, 0 or more.

    Example:
        >>> slope, intercept = expected_variance(pr.BlackScholes(0.2), torch.tensor(0.5))
        >>> slope.item(), intercept.item()
        (0.5, 0.0)
    """
    values = model.parameters()
    slope, intercept = time_left, torch.zeros_like(time_left)
    if "kappa" in values:
        slope = -torch.expm1(-values["kappa"] * time_left) / values["kappa"]
        intercept = values["theta"] * (time_left - slope)
    if "intensity" in values:
        intercept = intercept + values["intensity"] * time_left * (values["jump_mean"] ** 2 + values["jump_std"] ** 2)
    return slope, intercept


@dataclass(frozen=True, eq=False)
class PriceTable:
    """Undiscounted calls and puts on the forward, of one time to expiry.

    Args:
        correction: $D$ on the nodes, shape `(rows, columns)`; the second row is that of variance 0, the first mirrors
            the third.
        slope: of the expected variance in today's.
        intercept: of the same.
        unit: natural unit of the root of the variance; 0 where the variance is constant.
        steps: of the two coordinates, variance first.
        highest: largest variance of the table.
        error: largest error at the points that were tried, in units of the forward.
    """

    correction: Tensor
    slope: float
    intercept: float
    unit: float
    steps: tuple[float, float]
    highest: float
    error: float

    def price(self, forward: Tensor, strike: float, variance: Tensor, option: str) -> Tensor:
        """Undiscounted price of an option; its slope in a variance below 1e-5 is not that of the price.

        Args:
            forward: to the expiry, any shape.
            strike: above 0.
            variance: today's, per year, of the same shape.
            option: "call" or "put".

        Raises:
            DataError: a variance that the table does not reach.
        """
        most = float(variance.detach().max())
        if most > self.highest * (1.0 + 1e-6):
            raise DataError(
                f"variances on the paths must be {self.highest:.4g} or less, where the table of option prices ends, "
                f"got {most:.4g}; use paths of the same model"
            )
        deviation = torch.sqrt(self.slope * variance + self.intercept)
        ratio = forward / strike
        column = self._column(-torch.log(ratio) / deviation)
        row = torch.zeros_like(column) if self.unit == 0.0 else self._row(variance)
        correction = bicubic(self.correction.to(forward), row, column)
        ones = torch.ones_like(ratio)
        call, put = black_call_put(ratio, ones, deviation)
        value = (call if option == "call" else put) + ratio * deviation * correction
        return strike * value

    def to(self, device: torch.device) -> PriceTable:
        """The same table on a device."""
        return replace(self, correction=self.correction.to(device))

    def _row(self, variance: Tensor) -> Tensor:
        return torch.asinh(variance.sqrt() / self.unit) / self.steps[0]

    def _column(self, moneyness: Tensor) -> Tensor:
        last = (self.correction.shape[1] - 3) // 2  # but one, which a cubic needs
        place = torch.asinh(moneyness) / self.steps[1]
        # beyond the last strikes the correction is 0, as it is there
        return place.clamp(-last, last) + last


def price_table(model: pr.Model, time_left: float, horizon: float) -> PriceTable:
    """Table of a model for one time to expiry, fine enough for an error of 1e-6 of the forward where it is tried.

    Args:
        model: one of `TABULATED`, of one parameter set.
        time_left: years to the expiry, above 0.
        horizon: years over which the variance may have moved from today's.

    Raises:
        DataError: no table is accurate enough.

    Example:
        >>> model = pr.Heston(v0=0.04, kappa=2.0, theta=0.05, sigma=0.5, rho=-0.6)
        >>> table = price_table(model, 0.25, 0.5)
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> call = table.price(100.0 * one, 95.0, 0.04 * one, "call")
        >>> exact = pr.price(pr.European(95.0, 0.25), model, pr.Market(100.0)).value
        >>> bool((call - exact).abs() < 1e-6 * 100.0)
        True
    """
    slope, intercept = (float(part) for part in expected_variance(model, torch.tensor(time_left, dtype=torch.float64)))
    values = {name: float(value) for name, value in model.parameters().items()}
    law = _Law(model, values, time_left, slope, intercept)
    highest, unit = _variances(values, time_left, horizon)
    deviations = FEWEST_DEVIATIONS
    while deviations < MOST_DEVIATIONS and law.left_at(deviations, highest) > FLAT:
        deviations *= 2.0
    step = (STATE_STEP, MONEYNESS_STEP)
    table = _tabulated(law, highest, unit, deviations, step)
    for _ in range(FINER):
        if table.error <= ACCURACY:
            break
        step = (0.5 * step[0], 0.5 * step[1])
        table = _tabulated(law, highest, unit, deviations, step)
    if table.error > ACCURACY or law.left_at(deviations, highest) > FLAT:
        raise DataError(
            f"option prices {time_left:.4g} years before the expiry must be tabulated to {ACCURACY:g} of the forward, "
            f"got {table.error:.2g} with {tuple(table.correction.shape)} nodes; hedge with a longer expiry"
        )
    return table


@dataclass(frozen=True)
class _Law:
    """Exact prices of one time to expiry."""

    model: pr.Model
    values: Mapping[str, float]
    time_left: float
    slope: float
    intercept: float

    def correction(self, moneyness: Tensor, variance: Tensor) -> Tensor:
        """$D$ at `moneyness` (n, m) in standard deviations and `variance` (n,)."""
        deviation = torch.sqrt(self.slope * variance + self.intercept).unsqueeze(-1)
        strike = torch.exp((moneyness * deviation).clamp(-FARTHEST, FARTHEST))  # nothing is left to correct before that
        parameters: dict[str, Any] = dict(self.values)
        if "v0" in parameters:
            parameters["v0"] = variance.unsqueeze(-1)
        model = type(self.model)(**parameters)
        # the cheaper side, which keeps its digits: the other differs from Black's by the same
        calls = pr.Fourier().price(pr.European(strike, self.time_left), model, pr.Market(1.0)).value
        return (calls - black_call_put(torch.ones_like(strike), strike, deviation)[0]) / deviation

    def left_at(self, deviations: float, highest: float) -> float:
        """Largest correction at strikes so many standard deviations away, in units of the forward."""
        variance = torch.linspace(0.0, math.sqrt(highest), 9, dtype=torch.float64) ** 2
        reach = torch.tensor([-deviations, deviations], dtype=torch.float64)
        found = self.correction(reach.expand(9, 2), variance)
        return float((found * torch.sqrt(self.slope * variance + self.intercept).unsqueeze(-1)).abs().max())


def _variances(values: Mapping[str, float], time_left: float, horizon: float) -> tuple[float, float]:
    """Largest variance of a table, and the natural unit of its root; of a constant variance, itself and 0."""
    if "kappa" not in values:
        return values["vol"] ** 2, 0.0
    kappa, sigma = values["kappa"], values["sigma"]
    spread = 0.5 * sigma * math.sqrt(-math.expm1(-kappa * horizon) / kappa)
    highest = (math.sqrt(max(values["v0"], values["theta"])) + VARIANCE_REACH * spread) ** 2
    return highest, 0.5 * sigma * math.sqrt(-math.expm1(-kappa * time_left) / kappa)


def _tabulated(law: _Law, highest: float, unit: float, deviations: float, steps: tuple[float, float]) -> PriceTable:
    n_side = math.ceil(math.asinh(deviations) / steps[1]) + 1
    moneyness = torch.sinh(torch.arange(-n_side, n_side + 1, dtype=torch.float64) * steps[1])
    if unit == 0.0:
        variance = torch.tensor([highest], dtype=torch.float64)
    else:
        n_rows = math.ceil(math.asinh(math.sqrt(highest) / unit) / steps[0]) + 3
        variance = (unit * torch.sinh(torch.arange(n_rows, dtype=torch.float64) * steps[0])) ** 2
    nodes = law.correction(moneyness.expand(len(variance), -1), variance)
    nodes = nodes.expand(4, -1) if unit == 0.0 else torch.cat([nodes[1:2], nodes])
    table = PriceTable(nodes, law.slope, law.intercept, unit, steps, highest, math.inf)
    return replace(table, error=_error(law, table, math.asinh(deviations)))


def _error(law: _Law, table: PriceTable, reach: float) -> float:
    """Largest error of the correction at random points, in units of the forward."""
    generator = torch.Generator().manual_seed(address("price table"))
    n_laws, n_strikes = TRIED
    places = torch.rand(n_laws, n_strikes + 1, dtype=torch.float64, generator=generator)
    moneyness = torch.sinh((2.0 * places[:, 1:] - 1.0) * reach)
    variance = table.highest * places[:, 0] ** 2  # even in its root
    if table.unit == 0.0:
        variance = torch.full_like(variance, table.highest)
    exact = law.correction(moneyness, variance)
    row = torch.zeros_like(variance) if table.unit == 0.0 else table._row(variance)
    found = bicubic(table.correction, row.unsqueeze(-1).expand_as(moneyness), table._column(moneyness))
    deviation = torch.sqrt(table.slope * variance + table.intercept)
    return float(((found - exact) * deviation.unsqueeze(-1)).abs().max())
