"""Geometric Asian options under Heston, by Fourier: the log average is an affine functional of the path."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pricers.analytic.asian import exceeded_asian_formula, forwards_at, mean_log_forward, model_free_refusal
from pricers.estimate import Estimate
from pricers.instruments.asian import Asian
from pricers.market import Market
from pricers.models.heston import Heston
from pricers.parameters import broadcast_shape

__all__ = ["FORMULAS", "Average", "geometric_average_price", "weighted_log_transform"]

N_NODES = 64  # of the trapezoidal rule for each unit of x; the error falls geometrically with them
N_PIECES, N_LEVELS = 12, 4  # of a continuous average: pieces to begin with, and doublings to extrapolate from
GOOD = 1e-9  # error of the price over the strike; above it nodes or pieces are four times as many
N_REFINEMENTS = 2
NEGLIGIBLE = 1e-17  # share of the integrand's peak at which the integral ends
FARTHEST = 48  # candidates for its end, a quarter apart in x

Law = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # v0, kappa, theta, sigma, rho


def weighted_log_transform(slopes: Tensor, shifts: Tensor, lengths: Tensor, z: Tensor, law: Law) -> Tensor:
    r"""$\log E \exp \int_0^T a(t)\,dX_t$ under Heston, $X_t = \log(S_t / F_t)$, for $a$ constant on pieces of $[0, T]$.

    With $\tau$ the time to the end it is $A + B v_0$ of the Riccati equations

    $$B' = \tfrac12 \sigma^2 B^2 + (\rho\sigma a - \kappa) B + \tfrac12 (a^2 - a), \quad A' = \kappa\theta B,$$

    solved exactly over each piece, from the last one back, in a form that keeps its digits for small $\sigma$.

    Args:
        slopes: $a = \mathrm{slope}\;z + \mathrm{shift}$ on each piece, in the order of time; shape `*batch n_pieces`.
        shifts: the same shape.
        lengths: of the pieces in years, 0 or more; the same shape.
        z: complex arguments with $0 \le \Re a \le 1$, shape `*batch n_z`.
        law: v0, kappa, theta, sigma and rho, each `*batch`.

    Returns:
        Complex, shape `*batch n_z`.

    References:
        Kim and Wee (2014), Pricing of geometric Asian options under Heston's stochastic volatility model.
        Duffie, Pan and Singleton (2000), Transform analysis and asset pricing for affine jump-diffusions, section 2.
    """
    v0, kappa, theta, sigma, rho = (parameter.unsqueeze(-1) for parameter in law)
    loading, constant = torch.zeros_like(z), torch.zeros_like(z)
    pieces = (tensor.unsqueeze(-1).unbind(-2) for tensor in (slopes, shifts, lengths))
    for slope, shift, length in reversed(list(zip(*pieces, strict=True))):
        a = slope * z + shift
        b = kappa - rho * sigma * a
        d = (b * b + sigma**2 * (a - a * a)).sqrt()
        limit = (a * a - a) / (b + d)  # the stable root of the equation, where B tends to
        gap = loading - limit
        fallen = -torch.expm1(-d * length)
        loading = limit + 2.0 * d * gap * (1.0 - fallen) / (2.0 * d - sigma**2 * gap * fallen)
        constant = constant + limit * length - 2.0 / sigma**2 * torch.log1p(-(sigma**2) * gap * fallen / (2.0 * d))
    return kappa * theta * constant + loading * v0


@dataclass(frozen=True)
class Average:
    """What is averaged, and against what.

    Args:
        times: fixing dates in years, shape `*batch n`; None for a continuous average.
        expiry: end of the average in years, shape `*batch`.
        free: share of the average that is yet to come, shape `*batch`.
        floating: whether the average is measured in the asset at the end, under the measure of that numeraire.
    """

    times: Tensor | None
    expiry: Tensor
    free: Tensor
    floating: bool

    def pieces(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes, shifts and lengths of `weighted_log_transform`: what part of the average is yet to come when.

        That part steps down at each fixing; of a continuous average it falls linearly, and n pieces take its middles.
        """
        if self.times is None:
            share = 1.0 - (torch.arange(n, dtype=self.expiry.dtype, device=self.expiry.device) + 0.5) / n
            lengths = (self.expiry / n).unsqueeze(-1).expand(*self.expiry.shape, n)
        else:
            n = self.times.shape[-1]
            share = torch.arange(n, 0, -1, dtype=self.times.dtype, device=self.times.device) / n
            lengths = torch.cat([self.times[..., :1], self.times.diff(dim=-1)], dim=-1)
        share = share * self.free.unsqueeze(-1)
        if self.floating:  # the numeraire gives the path the weight 1, and the average over it the weight share - 1
            return share - 1.0, torch.ones_like(share), lengths
        return share, torch.zeros_like(share), lengths

    def log_transform(self, z: Tensor, law: Law, n: int) -> tuple[Tensor, Tensor]:
        """`weighted_log_transform` of the average, and a less accurate one to judge it by.

        A continuous average is extrapolated (Romberg) in the square of the length of a piece, from n pieces on.
        """
        if self.times is not None:
            exact = weighted_log_transform(*self.pieces(n), z, law)
            return exact, exact
        row = [weighted_log_transform(*self.pieces(n * 2**level), z, law) for level in range(N_LEVELS)]
        power = 4.0
        while len(row) > 2:
            row = [(power * fine - coarse) / (power - 1.0) for coarse, fine in pairwise(row)]
            power *= 4.0
        return (power * row[1] - row[0]) / (power - 1.0), row[1]


def geometric_average_price(
    strike: Tensor | None, log_level: Tensor, last_forward: Tensor, average: Average, law: Law, option: str
) -> tuple[Tensor, Tensor]:
    r"""Undiscounted price of an option on the geometric average $G = e^{m + X}$ under Heston.

    By Lewis' formula, with $\phi(z) = E\,e^{zX}$ and $E \min(G, K)$ as the integral

    $$\frac{\sqrt{e^m K}}{\pi} \int_0^\infty \Re\big[e^{iu (m - \log K)}\,\phi(\tfrac12 + iu)\big]
      \frac{du}{u^2 + \tfrac14}, \qquad u = \tfrac12 \sinh x.$$

    A floating strike is the same with $G / S_T$ for $G$ and 1 for $K$, under the measure whose numeraire is the asset.

    Args:
        strike: $K$, shape `*batch`; None for a floating strike.
        log_level: $m$: the log average if all prices came out at their forwards, shape `*batch`.
        last_forward: $F_T$, shape `*batch`; strikes and levels may have more axes than the average and the law.
        average: fixings or the whole path; `floating` goes with a strike of None.
        law: v0, kappa, theta, sigma and rho, each `*batch`.
        option: "call" or "put".

    Returns:
        The price and a bound of its error: the change on halving the nodes, that on extrapolating once less, and
        rounding.

    References:
        Kim and Wee (2014), Pricing of geometric Asian options under Heston's stochastic volatility model.
        Lewis (2001), A simple option formula for general jump-diffusion and other exponential Levy processes.
    """
    level = log_level - (last_forward if strike is None else strike).log()  # log of the average over K, or over S_T
    with torch.no_grad():
        end = _end(average, law)
    density, n_pieces = N_NODES, N_PIECES
    mean, smaller, errors = _mean_and_minimum(level, end, density, average, law, n_pieces)
    for _ in range(N_REFINEMENTS):
        too_few_nodes, too_few_pieces = (error.max().item() > GOOD for error in errors)
        if not (too_few_nodes or too_few_pieces):
            break
        density, n_pieces = density * (4 if too_few_nodes else 1), n_pieces * (4 if too_few_pieces else 1)
        mean, smaller, errors = _mean_and_minimum(level, end, density, average, law, n_pieces)
    by_nodes, by_pieces = errors
    by_nodes = torch.where(by_nodes > GOOD, by_nodes.max(), by_nodes)  # where aliases remain, some cancel by chance
    error = by_nodes + by_pieces + 16.0 * torch.finfo(level.dtype).eps * (1.0 + mean.detach())
    unit = last_forward if strike is None else strike
    pays_average = (option == "call") != average.floating
    value = unit * (mean - smaller if pays_average else 1.0 - smaller)
    return value, error * unit.detach()


def _mean_and_minimum(
    level: Tensor, end: Tensor, density: int, average: Average, law: Law, n_pieces: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Mean of $e^{level + X}$ and of its minimum with 1, and the errors of the latter by nodes and by pieces."""
    with torch.no_grad():
        n = density * math.ceil(end.max().item())
        x = end.unsqueeze(-1) * torch.arange(n + 1, dtype=level.dtype, device=level.device) / n
        u, step = 0.5 * x.sinh(), end / n
        z = torch.complex(torch.full_like(u, 0.5), u)
        z = torch.cat([z, torch.ones_like(z[..., :1])], dim=-1)  # the last one: the mean
        weight = 2.0 / math.pi / x.cosh() * step.unsqueeze(-1)  # du / (u^2 + 1/4) = 2 dx / cosh x
        weight[..., 0] *= 0.5
    fine, coarse = average.log_transform(z, law, n_pieces)
    mean = level.exp() * fine[..., -1].real.exp()
    level = level.unsqueeze(-1)
    shift = torch.complex(0.5 * level + torch.zeros_like(u), u * level)  # z level
    integrand = (fine[..., :-1] + shift).exp().real * weight
    smaller = integrand.sum(-1)
    with torch.no_grad():
        by_nodes = (smaller - 2.0 * integrand[..., ::2].sum(-1)).abs()
        by_pieces = (smaller - ((coarse[..., :-1] + shift).exp().real * weight).sum(-1)).abs()
    return mean, smaller, (by_nodes, by_pieces)


def _end(average: Average, law: Law) -> Tensor:
    """Value of x from which the integrand is negligible."""
    expiry = average.expiry
    x = torch.arange(1, FARTHEST + 1, dtype=expiry.dtype, device=expiry.device) * 0.25
    z = torch.complex(torch.full_like(x, 0.5), 0.5 * x.sinh())
    size = weighted_log_transform(*average.pieces(N_PIECES), z, law).real - x.cosh().log()
    return 0.25 * (size > math.log(NEGLIGIBLE)).to(x).cumprod(-1).sum(-1) + 0.25


def heston_asian_formula(instrument: Asian, model: Heston, market: Market) -> Estimate:
    """Geometric average: fixed and floating strike, fixings and continuous, seasoned and new.

    Raises:
        ValueError: the average is arithmetic and uncertain to exceed the strike, or the market pays cash dividends.
    """
    if instrument.average == "arithmetic":
        return exceeded_asian_formula(instrument, model, market)
    if market.dividends is not None:
        raise ValueError("cash dividends take the forward out of the logarithm; simulate it")
    broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
    expiry, weight = instrument.horizon, instrument.past_weight
    past = (market.spot if instrument.running_average is None else instrument.running_average).log()
    if instrument.continuous:
        times, mean = None, mean_log_forward(market, expiry)
    else:
        times, mean = instrument.dates, forwards_at(market, instrument.dates).log().mean(-1)
    # The transform is made once for all strikes and spots.
    shape = broadcast_shape(model=model.batch_shape, expiry=expiry, weight=weight)
    average = Average(
        None if times is None else times.expand(*shape, times.shape[-1]),
        expiry.expand(shape),
        (1.0 - weight).expand(shape),
        instrument.floating,
    )
    law = (model.v0, model.kappa, model.theta, model.sigma, model.rho)
    log_level = weight * past + (1.0 - weight) * mean
    value, bound = geometric_average_price(
        instrument.strike, log_level, market.forward(expiry), average, law, instrument.option
    )
    discount = market.discount(expiry)
    return Estimate(value * discount, std_error=0.0, error_bound=bound * discount.detach(), engine="analytic")


def _refusal(instrument: Asian, model: Heston, market: Market) -> str | None:
    """Why there is no closed form, or None."""
    return model_free_refusal(instrument, model, market) if instrument.average == "arithmetic" else None


FORMULAS = {(Asian, Heston): heston_asian_formula}
REFUSALS = {(Asian, Heston): _refusal}
