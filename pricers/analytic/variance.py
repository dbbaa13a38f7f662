"""Variance swaps and options: fair variance in closed form, by replication from a smile, by inverting its transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pricers.black.price import black_call_put
from pricers.characteristic import mean_variance
from pricers.estimate import Estimate
from pricers.instruments.base import exercised
from pricers.instruments.variance import VarianceOption, VarianceSwap
from pricers.market import Market
from pricers.models.base import Model
from pricers.models.bates import Bates, Merton
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.models.rough_bergomi import ForwardVarianceCurve, RoughBergomi
from pricers.models.rough_heston import RoughHeston
from pricers.models.rough_heston_riccati import log_moments
from pricers.parameters import broadcast_shape, within
from pricers.quadrature import gauss_legendre

__all__ = ["FORMULAS", "variance_swap_by_replication"]

N_PANELS, N_NODES = 24, 16  # of the strikes on either side of the forward
NEGLIGIBLE = 1e-15  # share of the integrand's peak at which the strikes end
WIDEST = 12.0  # deviations at the money that the strikes reach at most


def variance_swap_by_replication(
    vol_of_strike: Callable[[Tensor], Tensor],
    forward: Any,
    expiry: Any,
    strikes: tuple[float, float] | None = None,
) -> Tensor:
    r"""Fair annualised variance from a smile, by a static position in options of all strikes.

    $$K_{var} = \frac2T \Big(\int_0^F \frac{P(K)}{K^2}\,dK + \int_F^\infty \frac{C(K)}{K^2}\,dK\Big)$$

    with undiscounted puts and calls. It holds for every continuous path; a jump $J$ of the log price makes it differ
    from the expected quadratic variation by $2 (e^J - 1 - J) - J^2$.

    Args:
        vol_of_strike: implied volatility, above 0, of each of a tensor of strikes.
        forward: $F$ to the expiry, above 0, one number.
        expiry: $T$ in years, above 0, one number.
        strikes: lowest and highest strike to integrate over; None: from 12 deviations at the money below the forward to
            as many above, or less where the options are worth nothing.

    Returns:
        One number, differentiable in `forward`, `expiry` and what `vol_of_strike` depends on.

    Raises:
        ValueError: a forward or an expiry that is not above 0, strikes that do not enclose the forward, or a smile that
            is not positive and finite over the strikes.

    References:
        Demeterfi, Derman, Kamal and Zou (1999), More than you ever wanted to know about volatility swaps, eq. 26.
        Carr and Madan (1998), Towards a theory of volatility trading.

    >>> flat = lambda strike: torch.full_like(strike, 0.3)
    >>> round(variance_swap_by_replication(flat, forward=100.0, expiry=0.5).item(), 10)
    0.09
    """
    forward, expiry = within("forward", forward, above=0.0), within("expiry", expiry, above=0.0)
    if forward.ndim or expiry.ndim:
        raise ValueError(
            "`forward` and `expiry` must be one number each, for there is one smile, got shapes "
            f"{tuple(forward.shape)} and {tuple(expiry.shape)}; loop over the smiles"
        )
    low, high = _log_range(vol_of_strike, forward, expiry) if strikes is None else _given_range(strikes, forward)
    nodes, weights = gauss_legendre(N_NODES, forward)
    total = forward.new_zeros(())
    for end in (low, high):  # log(strike / forward), from the kink of the out-of-the-money price outwards
        edges = torch.linspace(0.0, end, N_PANELS + 1, dtype=forward.dtype, device=forward.device)
        half = 0.5 * edges.diff().unsqueeze(-1)
        k = (edges[:-1].unsqueeze(-1) + half * (nodes + 1.0)).flatten()
        price = _out_of_the_money(vol_of_strike, forward, expiry, k)
        total = total + (price * (half.abs() * weights).flatten()).sum()
    return 2.0 / expiry * total


def _out_of_the_money(vol_of_strike: Callable[[Tensor], Tensor], forward: Tensor, expiry: Tensor, k: Tensor) -> Tensor:
    """Out-of-the-money price over strike, at strike = forward e^k."""
    strike = forward * k.exp()
    vol = vol_of_strike(strike)
    bad = ~((vol > 0) & vol.isfinite()).detach().expand_as(strike)
    if bool(bad.any()):
        place = strike.detach()[bad][0].item()
        raise ValueError(
            f"`vol_of_strike` must be above 0 and finite, it is not at strike {place:g}; give the range of `strikes` "
            "that the smile holds for"
        )
    call, put = black_call_put(forward, strike, vol * expiry.sqrt())
    return torch.where(k < 0, put, call) / strike


def _given_range(strikes: tuple[float, float], forward: Tensor) -> tuple[float, float]:
    level = forward.item()
    if not 0.0 < strikes[0] < level < strikes[1] < math.inf:
        raise ValueError(f"`strikes` must be (low, high) with 0 < low < forward < high, got {strikes} and {level:g}")
    return math.log(strikes[0] / level), math.log(strikes[1] / level)


def _log_range(vol_of_strike: Callable[[Tensor], Tensor], forward: Tensor, expiry: Tensor) -> tuple[float, float]:
    """Where out-of-the-money prices have died away on either side, in log(strike / forward)."""
    with torch.no_grad():
        at_the_money = _out_of_the_money(vol_of_strike, forward, expiry, torch.zeros_like(forward).reshape(1))
        deviation = (vol_of_strike(forward.reshape(1)) * expiry.sqrt()).item()
        ends: list[float] = []
        for side in (-1.0, 1.0):
            end = side * deviation
            while abs(end) < WIDEST * deviation:
                price = _out_of_the_money(vol_of_strike, forward, expiry, torch.full_like(at_the_money, end))
                if (price / at_the_money).item() < NEGLIGIBLE:
                    break
                end += side * 0.5 * deviation
            ends.append(end)
    return ends[0], ends[1]


def _without_dividends(market: Market) -> None:
    if market.dividends is not None:
        raise ValueError("a cash dividend makes the price jump by an unknown share of itself; simulate it")


def swap_formula(fair_variance: Callable[[Any, Tensor], Tensor]) -> Callable[[VarianceSwap, Any, Market], Estimate]:
    """Formula of the swap under a model of which the mean of the annualised quadratic variation is known.

    Args:
        fair_variance: of the model and the expiry in years.
    """

    def formula(instrument: VarianceSwap, model: Model, market: Market) -> Estimate:
        _without_dividends(market)
        shape = broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
        gain = fair_variance(model, instrument.expiry) - instrument.strike
        value = gain * market.discount(instrument.expiry)
        return Estimate(value.expand(shape), std_error=0.0, engine="analytic")

    return formula


def black_scholes_option(instrument: VarianceOption, model: BlackScholes, market: Market) -> Estimate:
    """The realised variance is known today: the discounted intrinsic value.

    Raises:
        ValueError: the market pays cash dividends.
    """
    _without_dividends(market)
    shape = broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    value = exercised(model.vol**2, instrument.strike, instrument.option) * market.discount(instrument.expiry)
    return Estimate(value.expand(shape), std_error=0.0, engine="analytic")


def _black_scholes_variance(model: BlackScholes, expiry: Tensor) -> Tensor:
    return model.vol**2 + torch.zeros_like(expiry)


def _merton_variance(model: Merton, expiry: Tensor) -> Tensor:
    return model.vol**2 + _jump_variance(model) + torch.zeros_like(expiry)


def _heston_variance(model: Heston, expiry: Tensor) -> Tensor:
    return mean_variance(expiry, model.v0, model.kappa, model.theta)


def _bates_variance(model: Bates, expiry: Tensor) -> Tensor:
    return mean_variance(expiry, model.v0, model.kappa, model.theta) + _jump_variance(model)


def _rough_heston_variance(model: RoughHeston, expiry: Tensor) -> Tensor:
    r"""Of the mean of the log price, $E X = -\tfrac12 \int_0^T E V_t\,dt$: the path is continuous."""
    (first,) = log_moments(1, expiry, model.v0, model.kappa, model.theta, model.sigma, model.rho, model.hurst)
    return (-2.0 * first / expiry).to(torch.promote_types(model.v0.dtype, expiry.dtype))


def _rough_bergomi_variance(model: RoughBergomi, expiry: Tensor) -> Tensor:
    if isinstance(model.xi, ForwardVarianceCurve):
        return mean_of_curve(model.xi, expiry)
    return model.xi + torch.zeros_like(expiry)


def mean_of_curve(curve: ForwardVarianceCurve, expiry: Tensor) -> Tensor:
    r"""Mean forward variance until `expiry`, $\frac1T \int_0^T \xi(t)\,dt$, exactly.

    Args:
        curve: linear between its nodes and flat outside; batch `*batch`.
        expiry: years, above 0; shape `*batch`.

    Returns:
        The broadcast shape of both.

    >>> curve = ForwardVarianceCurve(times=[0.0, 1.0], variances=[0.04, 0.08])
    >>> mean_of_curve(curve, torch.tensor([0.5, 2.0], dtype=torch.float64))
    tensor([0.0500, 0.0700], dtype=torch.float64)
    """
    times, variances, end = curve.times, curve.variances, expiry.unsqueeze(-1)
    width, rise = times.diff(), variances.diff(dim=-1)
    # of each interval, before the expiry; at a node the derivative is that of one side, not of half of either
    inside = torch.where(end > times[1:], width, torch.where(end > times[:-1], end - times[:-1], 0.0))
    between = (inside * (variances[..., :-1] + 0.5 * rise * inside / width)).sum(-1)
    before = torch.where(expiry > times[0], times[0], expiry)
    after = torch.where(expiry > times[-1], expiry - times[-1], 0.0)
    return (before * variances[..., 0] + between + after * variances[..., -1]) / expiry


def _jump_variance(model: Merton | Bates) -> Tensor:
    """Mean squared log jump, a year."""
    return model.intensity * (model.jump_mean**2 + model.jump_std**2)


FORMULAS = {
    (VarianceSwap, BlackScholes): swap_formula(_black_scholes_variance),
    (VarianceSwap, Merton): swap_formula(_merton_variance),
    (VarianceSwap, Heston): swap_formula(_heston_variance),
    (VarianceSwap, Bates): swap_formula(_bates_variance),
    (VarianceSwap, RoughHeston): swap_formula(_rough_heston_variance),
    (VarianceSwap, RoughBergomi): swap_formula(_rough_bergomi_variance),
    (VarianceOption, BlackScholes): black_scholes_option,
}
