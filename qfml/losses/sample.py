"""Losses of the whole sample: risk and reward of the P&L that positions earn after costs, period by period."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.errors import UserError
from qfml.losses.base import Panel, PerMember, Rows, weighted_mean

Periods = Float[Tensor, "member period"]


def pnl_after_costs(
    position: Rows, returns: Rows, weight: Rows, panel: Panel, cost_bps: float
) -> tuple[Periods, Periods]:
    r"""The P&L of each period after costs, and 1 where a period has rows, else 0.

    With position :math:`p_{t,a}` in each of the assets of a period, the P&L of a period is
    :math:`\frac1A \sum_a p_{t,a} r_{t,a} - c\,|p_{t,a} - p_{t-1,a}|`, the first trade charged, and A the largest number
    of assets in a period.

    Args:
        position: share of an asset's equal part of the capital, shape (M, B).
        returns: simple return that each position earns, decimal, shape (M, B).
        weight: weight of each row, 0 on rows that only fill up, shape (M, B).
        panel: where the rows, sorted by asset and time, stand in time.
        cost_bps: proportional cost of trading, in basis points of notional.

    Returns:
        P&L as a fraction of the capital, and whether a period counts, both (M, T).
    """
    before = torch.where(panel.first, torch.zeros_like(position), position.roll(1, dims=1))
    row_pnl = weight * (position * returns - cost_bps * 1e-4 * (position - before).abs())
    empty = row_pnl.new_zeros(len(position), int(panel.period.max()) + 1)
    assets = empty.scatter_add(1, panel.period, weight)
    pnl = empty.scatter_add(1, panel.period, row_pnl) / assets.amax(1, keepdim=True)
    return pnl, (assets > 0).to(pnl.dtype)


def mean_and_variance(pnl: Periods, used: Periods) -> tuple[PerMember, PerMember]:
    """Mean and variance (ddof 1) over the periods that are used."""
    mean = weighted_mean(pnl, used)
    return mean, ((pnl - mean[:, None]).square() * used).sum(1) / (used.sum(1) - 1)


def expected_shortfall(pnl: Periods, used: Periods, tail: float) -> PerMember:
    r"""Mean loss of the worst share `tail` of the periods, the last of these with its fraction.

    .. math:: \min_z\; z + \frac{1}{\alpha n} \sum_t (-x_t - z)^+
        = \frac{1}{\alpha n} \sum_{j=1}^{n} \min(\max(\alpha n - j + 1, 0), 1)\, (-x_{(j)})

    with the P&L :math:`x_{(1)} \le x_{(2)} \le \dots` in rising order.

    Args:
        pnl: shape (M, T).
        used: 1 for periods that count, else 0, shape (M, T).
        tail: probability :math:`\alpha` of the tail, in (0, 1].

    Returns:
        Shape (M,), in the unit of `pnl`; positive is a loss.

    References:
        Rockafellar and Uryasev (2000), "Optimization of Conditional Value-at-Risk", theorem 1.
        Acerbi and Tasche (2002), "On the Coherence of Expected Shortfall", proposition 4.1.

    Example:
        >>> pnl = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
        >>> expected_shortfall(pnl, torch.ones_like(pnl), tail=0.5)
        tensor([2.5000])
    """
    order = torch.where(used > 0, pnl.detach(), math.inf).sort(dim=1, stable=True).indices  # unused periods come last
    in_tail = tail * used.sum(1, keepdim=True)  # periods, with a fraction
    place = torch.arange(pnl.shape[1], dtype=pnl.dtype, device=pnl.device)
    share = (in_tail - place).clamp(0, 1) / in_tail
    return -(pnl.gather(1, order) * share).sum(1)


def entropic_risk(pnl: Periods, used: Periods, risk_aversion: float) -> PerMember:
    r"""Entropic risk measure :math:`\frac1\lambda \log \frac1n \sum_t e^{-\lambda x_t}` of the periods that are used.

    Args:
        pnl: shape (M, T).
        used: 1 for periods that count, else 0, shape (M, T).
        risk_aversion: :math:`\lambda`, in units of one over the P&L.

    Returns:
        Shape (M,), in the unit of `pnl`; positive is a loss.

    References:
        Föllmer and Schied (2002), "Convex Measures of Risk and Trading Constraints".

    Example:
        >>> pnl = torch.tensor([[1.0, 1.0, 1.0]])
        >>> entropic_risk(pnl, torch.ones_like(pnl), risk_aversion=2.0)
        tensor([-1.])
    """
    # in double precision: an exponent near 0 would leave few digits of its logarithm in single
    exponent = torch.where(used > 0, -risk_aversion * pnl.double(), -math.inf)
    largest = exponent.detach().amax(1, keepdim=True)
    mean = (exponent - largest).exp().sum(1) / used.double().sum(1)
    return ((largest[:, 0] + mean.log()) / risk_aversion).to(pnl.dtype)


@dataclass(frozen=True)
class PnLLoss:
    """A loss of the P&L of the positions `tanh(output)` after costs: a subclass says what a series of P&L is worth.

    The P&L of a period is that of `pnl_after_costs`.

    Args:
        cost_bps: proportional cost of trading, in basis points of notional. Never defaulted.
    """

    kind: ClassVar[str]
    additive: ClassVar[bool] = False
    differential: ClassVar[bool] = False
    predicts: ClassVar[str] = "position"
    least_periods: ClassVar[int] = 1
    cost_bps: float

    def __post_init__(self) -> None:
        if not 0 <= self.cost_bps < 10_000:
            raise UserError(f"`cost_bps` must lie in [0, 10000) basis points, got {self.cost_bps}")

    @property
    def n_outputs(self) -> int:
        """One position a row."""
        return 1

    def of_pnl(self, pnl: Periods, used: Periods) -> PerMember:
        """The loss of each member's P&L (M, T); periods where `used` is 0 do not count."""
        raise NotImplementedError

    def __call__(self, output: Rows, y: Rows, weight: Rows, panel: Panel | None = None) -> PerMember:
        """The loss of each member."""
        if panel is None:
            raise UserError(f"`{self.kind}` needs the whole sample in time order: train with batch_size=None")
        pnl, used = pnl_after_costs(torch.tanh(output), y, weight, panel, self.cost_bps)
        if pnl.shape[1] < self.least_periods:
            raise UserError(
                f"`{self.kind}` needs rows of at least {self.least_periods} periods, got {pnl.shape[1]}: "
                "a single one has no deviation"
            )
        return self.of_pnl(pnl, used)

    def prediction(self, output: Tensor) -> Tensor:
        """The position, between -1 and 1."""
        return torch.tanh(output)

    def check_labels(self, y: Tensor) -> None:
        """Labels must be simple returns."""
        if bool((y < -1).any()):
            raise UserError(f"`{self.kind}` needs simple returns >= -1 as labels, got {float(y.min()):g}")


@dataclass(frozen=True)
class NegativeSharpe(PnLLoss):
    """Minus the per-period Sharpe ratio, after costs, of the positions `tanh(output)`.

    The mean of the P&L (`pnl_after_costs`) over its standard deviation (ddof 1), negated.

    Args:
        cost_bps: proportional cost of trading, in basis points of notional. Never defaulted.

    References:
        Sharpe (1994), "The Sharpe Ratio".
    """

    kind: ClassVar[str] = "negative_sharpe"
    least_periods: ClassVar[int] = 2

    def of_pnl(self, pnl: Periods, used: Periods) -> PerMember:
        """Minus the mean over the standard deviation."""
        mean, variance = mean_and_variance(pnl, used)
        return -mean / (variance + 1e-12).sqrt()  # a flat book has Sharpe ratio 0, and a gradient


@dataclass(frozen=True)
class ExpectedShortfall(PnLLoss):
    """Expected shortfall of the P&L, after costs, of the positions `tanh(output)`: the mean of the worst periods.

    The formula is that of `expected_shortfall`. A flat book has a loss of 0: unless some book earns even in the mean of
    its worst periods, none is held. With a larger `tail` the mean counts for more.

    Args:
        cost_bps: proportional cost of trading, in basis points of notional. Never defaulted.
        tail: probability of the tail, in (0, 1], not the confidence level; 1 is minus the mean P&L.

    References:
        Rockafellar and Uryasev (2000), "Optimization of Conditional Value-at-Risk".
    """

    kind: ClassVar[str] = "expected_shortfall"
    tail: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tail <= 1:
            raise UserError(f"`tail` must lie in (0, 1], 0.05 for the worst 5 % of periods, got {self.tail}")

    def of_pnl(self, pnl: Periods, used: Periods) -> PerMember:
        """The mean loss of the worst periods."""
        return expected_shortfall(pnl, used, self.tail)


@dataclass(frozen=True)
class EntropicRisk(PnLLoss):
    """Entropic risk of the P&L, after costs, of the positions `tanh(output)`: minus the certainty equivalent.

    The formula is that of `entropic_risk`: minus the sure P&L that is worth as much to an exponential utility.

    Args:
        cost_bps: proportional cost of trading, in basis points of notional. Never defaulted.
        risk_aversion: curvature of the utility, per unit of P&L of one period as a fraction of the capital. For small
            P&L half of it multiplies the variance.

    References:
        Föllmer and Schied (2002), "Convex Measures of Risk and Trading Constraints".
    """

    kind: ClassVar[str] = "entropic_risk"
    risk_aversion: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_risk_aversion(self.risk_aversion)

    def of_pnl(self, pnl: Periods, used: Periods) -> PerMember:
        """The logarithm of the mean exponential loss."""
        return entropic_risk(pnl, used, self.risk_aversion)


@dataclass(frozen=True)
class MeanVariance(PnLLoss):
    r"""Minus the mean of the P&L plus its variance times half the risk aversion: turnover is paid for in the P&L.

    With gross P&L :math:`g_t`, turnover :math:`u_t = \frac1A \sum_a |p_{t,a} - p_{t-1,a}|` and
    :math:`x_t = g_t - c\,u_t`, the loss is :math:`-\bar g + c\,\bar u + \frac\lambda2 \operatorname{var} x` (ddof 1).

    Args:
        cost_bps: penalty c on the turnover, in basis points of notional. Never defaulted.
        risk_aversion: :math:`\lambda`, per unit of P&L of one period as a fraction of the capital.

    References:
        Markowitz (1952), "Portfolio Selection".
        Gârleanu and Pedersen (2013), "Dynamic Trading with Predictable Returns and Transaction Costs" (there with
        quadratic costs).
    """

    kind: ClassVar[str] = "mean_variance"
    least_periods: ClassVar[int] = 2
    risk_aversion: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_risk_aversion(self.risk_aversion)

    def of_pnl(self, pnl: Periods, used: Periods) -> PerMember:
        """Minus the mean, plus half the risk aversion times the variance."""
        mean, variance = mean_and_variance(pnl, used)
        return 0.5 * self.risk_aversion * variance - mean


def _check_risk_aversion(value: float) -> None:
    if not 0 < value < math.inf:
        raise UserError(f"`risk_aversion` must be positive and finite, per unit of P&L, got {value}")
