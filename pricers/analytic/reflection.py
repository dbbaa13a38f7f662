"""What the closed forms of path-dependent options share: normal probabilities that do not overflow, flat rates."""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.market import Market, ZeroCurve
from pricers.normal import SQRT_2PI, mills_ratio, normal_cdf

__all__ = ["OTHERS", "curve_refusal", "flat_rates", "normal_option", "weighted_ndtr"]

OTHERS = "use FiniteDifference or MonteCarlo"  # the way out where a closed form does not hold


def weighted_ndtr(x: Tensor, log_weight: Tensor, log_density: Tensor) -> Tensor:
    r"""$e^w N(x)$ where $w$ may be huge while $N(x)$ is tiny: a probability of the reflected path.

    Left of 0 it is $e^{w - x^2/2}$ times Mills' ratio, so that neither factor overflows; a gradient through either
    branch is finite.

    Args:
        x: any real numbers.
        log_weight: $w$; where `x` is 0 or more, $e^w$ must be representable.
        log_density: $w - x^2/2$, from a formula in which nothing cancels.

    Returns:
        The broadcast shape.

    >>> x = torch.tensor([-40.0, 1.0], dtype=torch.float64)
    >>> weight = torch.tensor([800.0, 0.0], dtype=torch.float64)
    >>> weighted_ndtr(x, weight, weight - x**2 / 2)
    tensor([0.0100, 0.8413], dtype=torch.float64)
    """
    right = x >= 0
    direct = torch.exp(torch.where(right, log_weight, 0.0)) * normal_cdf(x)
    # N(x) = n(x) R(-x), R of Mills
    tail = torch.exp(log_density) / SQRT_2PI * mills_ratio(torch.where(right, 0.0, -x))
    return torch.where(right, direct, tail)


def normal_option(sign: float, asset: Tensor, cash: Tensor, upper: Tensor, root: Tensor) -> Tensor:
    r"""$\phi\,(A\,N(\phi d) - C\,N(\phi (d - \sqrt{w})))$: what pays asset against cash beyond a level.

    Args:
        sign: $\phi$, +1 above the level (call), -1 below it (put).
        asset: $A$, discounted expected value of the asset.
        cash: $C$, discounted cash.
        upper: $d$, distance to the level in standard deviations under the asset's own measure.
        root: $\sqrt{w}$, standard deviation of the log price.
    """
    return sign * (asset * normal_cdf(sign * upper) - cash * normal_cdf(sign * (upper - root)))


def curve_refusal(market: Market) -> str | None:
    """Why a closed form that needs flat rates does not hold in this market; None if it does."""
    if market.dividends is not None:
        return "the closed form holds without cash dividends; " + OTHERS
    if isinstance(market.rate, ZeroCurve) or isinstance(market.dividend_yield, ZeroCurve):
        return "the closed form holds for a flat rate and a flat dividend yield, not for a curve; " + OTHERS
    return None


def flat_rates(market: Market) -> tuple[Tensor, Tensor]:
    """Rate and dividend yield, where each is one number for all times.

    Raises:
        ValueError: a curve or cash dividends: the closed form of a path-dependent payoff knows neither.
    """
    rate, income = market.rate, market.dividend_yield
    reason = curve_refusal(market)
    if reason is not None or isinstance(rate, ZeroCurve) or isinstance(income, ZeroCurve):
        raise ValueError(reason)
    return rate, income
