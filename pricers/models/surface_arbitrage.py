"""What makes quotes of volatilities impossible: calendar, vertical and butterfly arbitrage, and how to say where."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pricers.models.smile import density_parts, natural_spline
from pricers.normal import normal_cdf

__all__ = ["FIRST_TIME", "Quotes", "check_arbitrage", "integers", "numbers", "place_of"]

N_CHECKS = 16  # parts of each interval between expiries on which the density is bounded from below
WAY_OUT = "or fit a surface to them all: VolSurface.fitted(log_moneyness, expiries, vols).surface"
LEAST_RISE = 1e-9  # of the total variance between two expiries: a local volatility of 0 has no gradient
FIRST_TIME = 1e-9  # share of the first expiry from which on the formula is read: its limit at time 0 is 0 / 0


class Quotes(NamedTuple):
    """Volatilities by expiry and log-moneyness, as in `VolSurface`."""

    log_moneyness: Tensor
    expiries: Tensor
    vols: Tensor


def check_arbitrage(quotes: Quotes, points: Tensor) -> None:
    """Refuse quotes with arbitrage, and quotes between which the interpolation would have some.

    Args:
        quotes: in order and of shapes that fit; not differentiated.
        points: log-moneyness at which the interpolation is looked at, ascending, inside the quotes of all expiries.

    Raises:
        ValueError: naming the quotes.
    """
    with torch.no_grad():
        k, variance = quotes.log_moneyness, quotes.vols**2 * quotes.expiries.unsqueeze(-1)
        if k.ndim == 1:
            _check_calendar(quotes, k, variance, "")
        _check_butterfly(quotes)
        parts = natural_spline(k, variance, points)
        _check_calendar(quotes, points, parts[0], " (interpolated)")
        _check_density(quotes, points, parts)


def _check_calendar(quotes: Quotes, points: Tensor, variance: Tensor, how: str) -> None:
    """Total variance at a constant log-moneyness must rise with the expiry."""
    failed = ~(variance.diff(dim=-2) > LEAST_RISE * variance[..., 1:, :])
    if not bool(failed.any()):
        return
    *batch, row, column = integers(failed.nonzero()[0])
    vols = torch.sqrt(variance / quotes.expiries.unsqueeze(-1))[tuple(batch)]
    times = numbers(quotes.expiries)
    raise ValueError(
        f"`vols` have calendar arbitrage: at log-moneyness {points[column].item():g} the total variance does not rise "
        f"between expiry {times[row]:g} (vol {vols[row, column].item():g}{how}) and expiry {times[row + 1]:g} "
        f"(vol {vols[row + 1, column].item():g}{how}){place_of(batch)}; correct one of the quotes, {WAY_OUT}"
    )


def _check_butterfly(quotes: Quotes) -> None:
    """Calls on a forward of 1 must be convex and falling in the strike."""
    k = quotes.log_moneyness
    root = quotes.vols * torch.sqrt(quotes.expiries).unsqueeze(-1)
    d_plus = -k / root + 0.5 * root
    cdf = [normal_cdf(d) for d in (d_plus, d_plus - root)]
    strikes = torch.exp(k)
    calls = cdf[0] - strikes * cdf[1]
    width = strikes.diff(dim=-1)
    slopes = calls.diff(dim=-1) / width
    rounding = 8.0 * torch.finfo(calls.dtype).eps / width
    steep, rising = slopes < -1.0 - rounding, slopes > rounding
    concave = slopes.diff(dim=-1) < -(rounding[..., 1:] + rounding[..., :-1])
    for failed, n_quotes, what in ((steep | rising, 2, "a vertical spread"), (concave, 3, "a butterfly")):
        if bool(failed.any()):
            *batch, row, column = integers(failed.nonzero()[0])
            places = numbers((k if k.ndim == 1 else k[row])[column : column + n_quotes])
            vols = numbers(quotes.vols[(*batch, row)][column : column + n_quotes])
            raise ValueError(
                f"`vols` have arbitrage by {what}: at expiry {quotes.expiries[row].item():g} the quotes at "
                f"log-moneyness {', '.join(f'{x:.6g}' for x in places)} (vols {', '.join(f'{x:.6g}' for x in vols)}) "
                f"contradict each other{place_of(batch)}; correct one of them, {WAY_OUT}"
            )


def _check_density(quotes: Quotes, points: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> None:
    """Bound the density between expiries from below at each point; it must stay above 0.

    Between two expiries w, w', w'' are linear in time. Dupire's denominator is then a square whose root is monotone
    plus a concave function, so on each part of the interval the sum of the two smaller ends bounds it from below.
    """
    share = torch.arange(N_CHECKS + 1, dtype=points.dtype, device=points.device)[:, None] / N_CHECKS
    for row in range(quotes.expiries.shape[0]):
        later = [part[..., row, None, :] for part in parts]
        earlier = [torch.zeros_like(part) for part in later] if row == 0 else [p[..., row - 1, None, :] for p in parts]
        # at time 0 the ratio w' / w and the limit 0 of the rest: read a moment later
        moved = share.clamp(min=FIRST_TIME) if row == 0 else share
        value, slope, curvature = (a + moved * (b - a) for a, b in zip(earlier, later, strict=True))
        root, rest = density_parts(points, value, slope, curvature)
        crosses = root[..., :-1, :] * root[..., 1:, :] <= 0.0
        squared = torch.where(crosses, 0.0, torch.minimum(root[..., :-1, :] ** 2, root[..., 1:, :] ** 2))
        failed = ~(squared + torch.minimum(rest[..., :-1, :], rest[..., 1:, :]) > 0.0)
        if bool(failed.any()):
            *batch, _, column = integers(failed.nonzero()[0])
            _refuse_density(quotes, row, points[column].item(), batch)


def _refuse_density(quotes: Quotes, row: int, point: float, batch: list[int]) -> None:
    knots = quotes.log_moneyness if quotes.log_moneyness.ndim == 1 else quotes.log_moneyness[row]
    right = int((knots < point).sum().clamp(1, knots.shape[0] - 1).item())
    vols = numbers(quotes.vols[(*batch, row)][right - 1 : right + 1])
    raise ValueError(
        f"`vols` have butterfly arbitrage once interpolated: up to expiry {quotes.expiries[row].item():g} the density "
        f"is negative at log-moneyness {point:.4g}, between the quotes at {knots[right - 1].item():.6g} and "
        f"{knots[right].item():.6g} (vols {vols[0]:.6g} and {vols[1]:.6g}){place_of(batch)}; "
        f"correct the quotes around it, {WAY_OUT}"
    )


def place_of(batch: list[int]) -> str:
    """Which surface of a batch a message means."""
    return f", surface {tuple(batch)}" if batch else ""


def numbers(vector: Tensor) -> list[float]:
    """The numbers of a vector, for a message."""
    return [float(number.item()) for number in vector.unbind()]


def integers(vector: Tensor) -> list[int]:
    """The whole numbers of a vector: an index."""
    return [int(number.item()) for number in vector.unbind()]
