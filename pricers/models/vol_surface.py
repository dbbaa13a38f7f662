"""A surface of implied volatilities: interpolation without arbitrage, and Dupire's local variance of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pricers.market import Market
from pricers.parameters import dates, real, within

__all__ = ["VolSurface", "dupire_local_variance", "natural_spline", "spline_curvature"]

N_CHECKS = 16  # parts of each interval between expiries on which the density is bounded from below
_solve = cast(Callable[[Tensor, Tensor], Tensor], torch.linalg.solve)  # torch states no type
LEAST_RISE = 1e-9  # of the total variance between two expiries: a local volatility of 0 has no gradient
FIRST_TIME = 1e-9  # share of the first expiry from which on the formula is read: its limit at time 0 is 0 / 0


def dupire_local_variance(
    log_moneyness: Tensor, total_variance: Tensor, slope: Tensor, curvature: Tensor, forward_variance: Tensor
) -> Tensor:
    r"""Local variance from the implied total variance $w(k, T) = \mathrm{vol}^2\,T$ and its derivatives.

    $$v = \frac{\partial_T w}{\left(1 - \frac{k w'}{2 w}\right)^2 - \frac{w'^2}{4}\left(\frac{1}{w} + \frac14\right) +
    \frac{w''}{2}}$$

    The denominator is the density of the log price over that of a normal: below 0 there is arbitrage.

    Args:
        log_moneyness: $k = \log(K / F)$.
        total_variance: $w$, above 0.
        slope: $\partial_k w$.
        curvature: $\partial_{kk} w$.
        forward_variance: $\partial_T w$ at constant $k$, 0 or more.

    Returns:
        Squared local volatility, annual, of the shape that the arguments broadcast to.

    References:
        Gatheral (2006), The Volatility Surface, eq. 1.10.

    >>> flat = [torch.tensor(x) for x in (0.3, 0.08, 0.0, 0.0, 0.04)]
    >>> dupire_local_variance(*flat)
    tensor(0.0400)
    """
    squared, rest = _density(log_moneyness, total_variance, slope, curvature)
    return forward_variance / (squared + rest)


def _density(log_moneyness: Tensor, variance: Tensor, slope: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """The squared term of Dupire's denominator and the rest of it."""
    squared = (1.0 - 0.5 * log_moneyness * slope / variance) ** 2
    return squared, 0.5 * curvature - 0.25 * slope**2 * (1.0 / variance + 0.25)


def spline_curvature(knots: Tensor, values: Tensor) -> Tensor:
    """Second derivatives at the knots of the natural cubic spline: twice differentiable, straight at both ends.

    Args:
        knots: ascending, shape `*batch n`.
        values: what to interpolate, shape `*batch n`; batch axes broadcast.

    Returns:
        Shape `*batch n`.

    References:
        de Boor (1978), A Practical Guide to Splines, chapter IV.
    """
    slopes = values.diff(dim=-1) / knots.diff(dim=-1)
    if values.shape[-1] == 2:
        return torch.zeros_like(values + knots)
    width = knots.diff(dim=-1)
    matrix = torch.diag_embed(2.0 * (width[..., :-1] + width[..., 1:]))
    matrix = matrix + torch.diag_embed(width[..., 1:-1], offset=1) + torch.diag_embed(width[..., 1:-1], offset=-1)
    inner = _solve(matrix, 6.0 * slopes.diff(dim=-1).unsqueeze(-1)).squeeze(-1)
    return torch.nn.functional.pad(inner, (1, 1))


def natural_spline(knots: Tensor, values: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Natural cubic spline at `x`, with its first and second derivative.

    Args:
        knots: ascending, shape `*batch n`.
        values: at the knots, shape `*batch n`.
        x: between the first and the last knot, shape `*batch m`; batch axes broadcast.

    Returns:
        Value, slope and curvature, each of shape `*batch m`.

    >>> knots = torch.tensor([0.0, 1.0, 2.0])
    >>> natural_spline(knots, 3.0 * knots, torch.tensor([0.5, 1.5]))
    (tensor([1.5000, 4.5000]), tensor([3., 3.]), tensor([0., 0.]))
    """
    curvature = spline_curvature(knots, values)
    x, _ = torch.broadcast_tensors(x, curvature[..., :1])
    knots, values, curvature = (part.expand(*x.shape[:-1], part.shape[-1]) for part in (knots, values, curvature))
    right = torch.searchsorted(knots.detach().contiguous(), x.detach().contiguous()).clamp(1, knots.shape[-1] - 1)
    left = right - 1
    start, end = knots.gather(-1, left), knots.gather(-1, right)
    low, high = values.gather(-1, left), values.gather(-1, right)
    bend_low, bend_high = curvature.gather(-1, left), curvature.gather(-1, right)
    width = end - start
    b = (x - start) / width
    a = 1.0 - b
    sixth = width / 6.0
    value = a * low + b * high - a * b * ((1.0 + a) * bend_low + (1.0 + b) * bend_high) * width * sixth
    slope = (high - low) / width + ((3.0 * b * b - 1.0) * bend_high - (3.0 * a * a - 1.0) * bend_low) * sixth
    return value, slope, a * bend_low + b * bend_high


@dataclass(frozen=True, eq=False, init=False)
class VolSurface:
    r"""Implied volatilities by expiry and log-moneyness, interpolated without arbitrage.

    The total variance $w = \mathrm{vol}^2\,T$ is a natural cubic spline in log-moneyness at each expiry and linear in
    time between them at constant log-moneyness, from 0 at time 0. The density that it implies is bounded from below
    between the expiries on a fine grid of log-moneyness, and quotes whose interpolation fails are refused: the local
    variance is above 0 wherever a simulation reads it.

    Local variance is read between the outermost quotes that all expiries share. Beyond them, and after the last expiry,
    it keeps its value at the edge.

    Args:
        log_moneyness: log(strike / forward) of the quotes, ascending, at least two; shape `(n_quotes,)`, or
            `(n_expiries, n_quotes)` where it differs by expiry.
        expiries: years, ascending; shape `(n_expiries,)`.
        vols: annual Black volatilities; shape `*batch n_expiries n_quotes`.

    Raises:
        ValueError: numbers out of order or out of range, shapes that do not fit, quotes with calendar or butterfly
            arbitrage (they are named).

    References:
        Gatheral and Jacquier (2014), Arbitrage-free SVI volatility surfaces, section 2.

    >>> surface = VolSurface(log_moneyness=[-0.2, 0.0, 0.2], expiries=[0.5, 1.0], vols=[[0.24, 0.2, 0.19]] * 2)
    >>> surface.vol(torch.zeros(1, dtype=torch.float64), torch.tensor(0.75, dtype=torch.float64))
    tensor([0.2000], dtype=torch.float64)
    """

    log_moneyness: Tensor
    expiries: Tensor
    vols: Tensor

    def __init__(self, log_moneyness: Any, expiries: Any, vols: Any) -> None:
        expiries, vols = dates("expiries", expiries), within("vols", vols, above=0.0)
        log_moneyness = real("log_moneyness", log_moneyness)
        _check_shapes(log_moneyness, expiries, vols)
        object.__setattr__(self, "log_moneyness", log_moneyness)
        object.__setattr__(self, "expiries", expiries)
        object.__setattr__(self, "vols", vols)
        _check_arbitrage(self)

    @classmethod
    def from_strikes(cls, strikes: Any, expiries: Any, vols: Any, market: Market) -> VolSurface:
        """A surface quoted by strike.

        Args:
            strikes: ascending, above 0; shape `(n_quotes,)` or `(n_expiries, n_quotes)`.
            expiries: years, ascending; shape `(n_expiries,)`.
            vols: annual Black volatilities; shape `*batch n_expiries n_quotes`.
            market: one market without batch axes, for the forwards.

        Raises:
            ValueError: as the class, or a market with batch axes.

        >>> market = Market(spot=100.0, rate=0.05)
        >>> surface = VolSurface.from_strikes([90.0, 110.0], [0.5, 1.0], [[0.2, 0.2], [0.2, 0.2]], market)
        >>> surface.log_moneyness.shape
        torch.Size([2, 2])
        """
        strikes, expiries = within("strikes", strikes, above=0.0), dates("expiries", expiries)
        if market.batch_shape():
            raise ValueError(
                f"`market` of a surface must have no batch axes, got {tuple(market.batch_shape())}; "
                "give `log_moneyness` to VolSurface, or one surface for each market"
            )
        return cls(torch.log(strikes) - torch.log(market.forward(expiries)).unsqueeze(-1), expiries, vols)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of surfaces."""
        return self.vols.shape[:-2]

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest log-moneyness that all expiries quote."""
        return self.log_moneyness[..., 0].max(), self.log_moneyness[..., -1].min()

    def vol(self, log_moneyness: Tensor, time: Tensor) -> Tensor:
        """Implied volatility between the quotes.

        Args:
            log_moneyness: log(strike / forward), shape `*batch n`.
            time: years, above 0; shape `*batch`.

        Returns:
            Annual Black volatility, shape `*batch n`.

        Raises:
            ValueError: a point outside the quotes that all expiries share, or after the last expiry.
        """
        low, high = self.edges
        points, times = log_moneyness.detach(), time.detach()
        if bool(((points < low.detach()) | (points > high.detach())).any()):
            raise ValueError(f"`log_moneyness` must lie in [{low.item():g}, {high.item():g}], where there are quotes")
        if bool(((times <= 0.0) | (times > self.expiries[-1].detach())).any()):
            raise ValueError(f"`time` must lie in (0, {self.expiries[-1].item():g}], where there are quotes")
        variance, _, _, _ = self.total_variance(log_moneyness, time)
        return torch.sqrt(variance / time.unsqueeze(-1))

    def local_variance(self, log_moneyness: Tensor, time: Tensor) -> Tensor:
        """Dupire's local variance; constant beyond the edges of the quotes and after the last expiry.

        At an expiry it is that of the interval which ends there.

        Args:
            log_moneyness: log(spot / forward to `time`), shape `*batch n`.
            time: years, 0 or more; shape `*batch`.

        Returns:
            Squared local volatility, annual, shape `*batch n`.
        """
        low, high = self.edges
        log_moneyness = torch.minimum(torch.maximum(log_moneyness, low), high)
        return dupire_local_variance(log_moneyness, *self.total_variance(log_moneyness, time))

    def total_variance(self, log_moneyness: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Total variance, its slope and curvature in log-moneyness and its derivative in time.

        Args:
            log_moneyness: inside the edges, shape `*batch n`.
            time: years; read between 0 (exclusive) and the last expiry; shape `*batch`.

        Returns:
            Four tensors of shape `*batch n`.
        """
        nodes = torch.cat([self.expiries.new_zeros(1), self.expiries])
        time = torch.minimum(torch.maximum(time, FIRST_TIME * nodes[1]), nodes[-1])
        right = torch.searchsorted(nodes.detach(), time.detach().contiguous()).clamp(1, nodes.shape[0] - 1)
        start, end = nodes[right - 1], nodes[right]
        share = ((time - start) / (end - start)).unsqueeze(-1)
        # rows of the expiries before and after; before the first expiry the variance grows from 0
        index = torch.stack([(right - 2).clamp(min=0), right - 1], dim=-1)
        exists = torch.stack([right > 1, right > 0], dim=-1)
        rows = torch.nn.functional.one_hot(index, self.expiries.shape[0]) * exists.unsqueeze(-1)
        variance = torch.matmul(rows.to(self.vols.dtype), self.vols**2 * self.expiries.unsqueeze(-1))
        knots = self.log_moneyness if self.log_moneyness.ndim == 1 else self.log_moneyness[index]
        pairs = natural_spline(knots, variance, log_moneyness.unsqueeze(-2))
        earlier, later = ([part[..., row, :] for part in pairs] for row in (0, 1))
        value, slope, curvature = (torch.lerp(a, b, share) for a, b in zip(earlier, later, strict=True))
        return value, slope, curvature, (later[0] - earlier[0]) / (end - start).unsqueeze(-1)

    def nodes(self) -> Tensor:
        """Even grid of log-moneyness between the edges, eight points or more to a quote: for a table."""
        low, high = self.edges
        spacing = self.log_moneyness.detach().diff(dim=-1).min()
        per_quote = math.ceil(8.0 * ((high - low).detach() / spacing).item())
        n_nodes = min(max(per_quote, 256), 4096) + 1
        share = torch.arange(n_nodes, dtype=self.vols.dtype, device=self.vols.device) / (n_nodes - 1)
        return low + (high - low) * share


def _check_shapes(log_moneyness: Tensor, expiries: Tensor, vols: Tensor) -> None:
    if expiries.ndim != 1:
        raise ValueError(f"`expiries` must have one axis, got shape {tuple(expiries.shape)}")
    if log_moneyness.ndim not in (1, 2) or log_moneyness.shape[-1] < 2:
        raise ValueError(
            "`log_moneyness` must hold two quotes or more, shape (n_quotes,) or (n_expiries, n_quotes), "
            f"got shape {tuple(log_moneyness.shape)}"
        )
    expected = (expiries.shape[0], log_moneyness.shape[-1])
    if vols.shape[-2:] != expected or (log_moneyness.ndim == 2 and log_moneyness.shape != expected):
        raise ValueError(
            f"`vols` must end in axes of expiries and quotes, got shape {tuple(vols.shape)} beside `expiries` of shape "
            f"{tuple(expiries.shape)} and `log_moneyness` of shape {tuple(log_moneyness.shape)}"
        )
    if bool((log_moneyness.detach().diff(dim=-1) <= 0.0).any()):
        raise ValueError("`log_moneyness` (or `strikes`) must ascend strictly along its last axis; sort the quotes")
    if bool(log_moneyness.detach()[..., 0].max() >= log_moneyness.detach()[..., -1].min()):
        raise ValueError("`log_moneyness` of all expiries must overlap, got expiries that share no range of strikes")


def _check_arbitrage(surface: VolSurface) -> None:
    """Refuse quotes with arbitrage, and quotes between which the interpolation would have some."""
    with torch.no_grad():
        k, variance = surface.log_moneyness, surface.vols**2 * surface.expiries.unsqueeze(-1)
        if k.ndim == 1:
            _check_calendar(surface, k, variance, "")
        _check_butterfly(surface)
        points = surface.nodes()
        parts = natural_spline(k, variance, points)
        _check_calendar(surface, points, parts[0], " (interpolated)")
        _check_density(surface, points, parts)


def _check_calendar(surface: VolSurface, points: Tensor, variance: Tensor, how: str) -> None:
    """Total variance at a constant log-moneyness must rise with the expiry."""
    failed = ~(variance.diff(dim=-2) > LEAST_RISE * variance[..., 1:, :])
    if not bool(failed.any()):
        return
    *batch, row, column = _integers(failed.nonzero()[0])
    vols = torch.sqrt(variance / surface.expiries.unsqueeze(-1))[tuple(batch)]
    times = _numbers(surface.expiries)
    raise ValueError(
        f"`vols` have calendar arbitrage: at log-moneyness {points[column].item():g} the total variance does not rise "
        f"between expiry {times[row]:g} (vol {vols[row, column].item():g}{how}) and expiry {times[row + 1]:g} "
        f"(vol {vols[row + 1, column].item():g}{how}){_where(batch)}; correct one of the quotes"
    )


def _check_butterfly(surface: VolSurface) -> None:
    """Calls on a forward of 1 must be convex and falling in the strike."""
    k = surface.log_moneyness
    root = surface.vols * torch.sqrt(surface.expiries).unsqueeze(-1)
    d_plus = -k / root + 0.5 * root
    cdf = [0.5 * torch.erfc(-math.sqrt(0.5) * d) for d in (d_plus, d_plus - root)]
    strikes = torch.exp(k)
    calls = cdf[0] - strikes * cdf[1]
    width = strikes.diff(dim=-1)
    slopes = calls.diff(dim=-1) / width
    rounding = 8.0 * torch.finfo(calls.dtype).eps / width
    steep, rising = slopes < -1.0 - rounding, slopes > rounding
    concave = slopes.diff(dim=-1) < -(rounding[..., 1:] + rounding[..., :-1])
    for failed, n_quotes, what in ((steep | rising, 2, "a vertical spread"), (concave, 3, "a butterfly")):
        if bool(failed.any()):
            *batch, row, column = _integers(failed.nonzero()[0])
            quoted = _numbers((k if k.ndim == 1 else k[row])[column : column + n_quotes])
            vols = _numbers(surface.vols[(*batch, row)][column : column + n_quotes])
            raise ValueError(
                f"`vols` have arbitrage by {what}: at expiry {surface.expiries[row].item():g} the quotes at "
                f"log-moneyness {', '.join(f'{x:.6g}' for x in quoted)} (vols {', '.join(f'{x:.6g}' for x in vols)}) "
                f"contradict each other{_where(batch)}; correct one of them"
            )


def _check_density(surface: VolSurface, points: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> None:
    """Bound the density between expiries from below at each point; it must stay above 0.

    Between two expiries w, w', w'' are linear in time. Dupire's denominator is then a square whose root is monotone
    plus a concave function, so on each part of the interval the sum of the two smaller ends bounds it from below.
    """
    share = torch.arange(N_CHECKS + 1, dtype=points.dtype, device=points.device)[:, None] / N_CHECKS
    for row in range(surface.expiries.shape[0]):
        later = [part[..., row, None, :] for part in parts]
        earlier = [torch.zeros_like(part) for part in later] if row == 0 else [p[..., row - 1, None, :] for p in parts]
        # at time 0 the ratio w' / w and the limit 0 of the rest: read a moment later
        moved = share.clamp(min=FIRST_TIME) if row == 0 else share
        value, slope, curvature = (a + moved * (b - a) for a, b in zip(earlier, later, strict=True))
        _, rest = _density(points, value, slope, curvature)
        root = 1.0 - 0.5 * points * slope / value
        crosses = root[..., :-1, :] * root[..., 1:, :] <= 0.0
        squared = torch.where(crosses, 0.0, torch.minimum(root[..., :-1, :] ** 2, root[..., 1:, :] ** 2))
        failed = ~(squared + torch.minimum(rest[..., :-1, :], rest[..., 1:, :]) > 0.0)
        if bool(failed.any()):
            *batch, _, column = _integers(failed.nonzero()[0])
            _refuse_density(surface, row, points[column].item(), batch)


def _refuse_density(surface: VolSurface, row: int, point: float, batch: list[int]) -> None:
    knots = surface.log_moneyness if surface.log_moneyness.ndim == 1 else surface.log_moneyness[row]
    right = int((knots < point).sum().clamp(1, knots.shape[0] - 1).item())
    vols = _numbers(surface.vols[(*batch, row)][right - 1 : right + 1])
    raise ValueError(
        f"`vols` have butterfly arbitrage once interpolated: up to expiry {surface.expiries[row].item():g} the density "
        f"is negative at log-moneyness {point:.4g}, between the quotes at {knots[right - 1].item():.6g} and "
        f"{knots[right].item():.6g} (vols {vols[0]:.6g} and {vols[1]:.6g}){_where(batch)}; "
        "correct or smooth the quotes around it"
    )


def _where(batch: list[int]) -> str:
    return f", surface {tuple(batch)}" if batch else ""


def _numbers(vector: Tensor) -> list[float]:
    return [float(number.item()) for number in vector.unbind()]


def _integers(vector: Tensor) -> list[int]:
    return [int(number.item()) for number in vector.unbind()]
