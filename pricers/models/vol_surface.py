"""A surface of implied volatilities: interpolation without arbitrage, and Dupire's local variance of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.smile import dupire_local_variance, natural_spline
from pricers.models.surface_arbitrage import FIRST_TIME, Quotes, check_arbitrage, integers, numbers, place_of
from pricers.models.surface_fit import knots_around, nearest_vols
from pricers.parameters import broadcast_shape, dates, number, plausible, real, time_of, volatility, whole, within

__all__ = ["SurfaceFit", "VolSurface"]

MOST_LOG_MONEYNESS = 20.0, "are these strikes? use VolSurface.from_strikes"  # e^20: no strike is so far out
FIT_POINTS = (256, 1024)  # at which arbitrage is excluded from a fit, and again if that was not enough


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
        log_moneyness: log(strike / forward) of the quotes, in [-20, 20], ascending, at least two; shape `(n_quotes,)`,
            or `(n_expiries, n_quotes)` where it differs by expiry.
        expiries: years, ascending; shape `(n_expiries,)`.
        vols: annual Black volatilities, in (0, 10]; shape `*batch n_expiries n_quotes`.

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
        expiries, vols = dates("expiries", expiries), volatility("vols", vols)
        log_moneyness = plausible("log_moneyness", real("log_moneyness", log_moneyness), *MOST_LOG_MONEYNESS)
        _check_shapes(log_moneyness, expiries, vols)
        object.__setattr__(self, "log_moneyness", log_moneyness)
        object.__setattr__(self, "expiries", expiries)
        object.__setattr__(self, "vols", vols)
        check_arbitrage(Quotes(log_moneyness.detach(), expiries.detach(), vols.detach()), self.nodes().detach())

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
        if not isinstance(market, Market):
            raise ValueError(f"`market` must be a Market, for the forwards, got {market!r}; write Market(spot, rate)")
        if market.batch_shape():
            raise ValueError(
                f"`market` of a surface must have no batch axes, got {tuple(market.batch_shape())}; "
                "give `log_moneyness` to VolSurface, or one surface for each market"
            )
        return cls(torch.log(strikes) - torch.log(market.forward(expiries)).unsqueeze(-1), expiries, vols)

    @classmethod
    def fitted(
        cls,
        log_moneyness: Any,
        expiries: Any,
        vols: Any,
        weights: Any = 1.0,
        smoothing: float = 1e-4,
        knots_per_quote: int = 2,
        reach: float = 4.0,
    ) -> SurfaceFit:
        r"""The surface without arbitrage that is closest to quotes, which may contain some and may be missing.

        Weighted least squares in volatility, plus `smoothing` times the bends of each smile, over the surfaces that
        this class accepts: see `surface_fit.nearest_vols` for the formula. Density, forward variance and the tails
        keep a small distance from 0, so that the local volatility stays moderate.

        Args:
            log_moneyness: log(strike / forward), ascending, shape `(n_quotes,)` or `(n_expiries, n_quotes)`; of strikes
                `torch.log(strikes) - torch.log(market.forward(expiries))[:, None]`.
            expiries: years, ascending; shape `(n_expiries,)`.
            vols: annual Black volatilities, NaN where there is no quote; shape `*batch n_expiries n_quotes`.
            weights: of the squared errors, 0 or more, broadcast with `vols`; say 1 / (width of the market)^2. Only
                their ratios matter.
            smoothing: weight of the integral of the squared second derivative of the volatility in standard deviations.
                1e-4 moves smooth smiles by a fraction of a basis point; 1e-2 smooths noise of some ten basis points.
            knots_per_quote: knots of the surface for each quote. With one the knots are the quotes, which extreme
                smiles of short expiries cannot follow without arbitrage in the spline between.
            reach: how far the surface goes to each side, in standard deviations at the last expiry (further where the
                quotes go further): all expiries then share their range, and the spot rarely leaves it. Beyond the
                quotes the total variance is as straight as the absence of arbitrage allows.

        Returns:
            The surface and what separates it from the quotes. Its vols are differentiable in `vols`, once, by the
            implicit function theorem; not in the places of the quotes.

        Raises:
            ValueError: numbers out of range, shapes that do not fit, fewer than two quotes at an expiry.
            RuntimeError: the fit does not converge.

        References:
            Fengler (2009), Arbitrage-free smoothing of the implied volatility surface.

        >>> fit = VolSurface.fitted([-0.1, 0.0, 0.1], [1.0], [[0.22, 0.24, 0.21]])  # a butterfly
        >>> print(fit)
        expiry    quotes   rms error   largest, bp of vol
        1              3       16.06       23.28
        all            3       16.06       23.28
        """
        expiries, log_moneyness = dates("expiries", expiries), real("log_moneyness", log_moneyness)
        log_moneyness = plausible("log_moneyness", log_moneyness, *MOST_LOG_MONEYNESS)
        vols, weights = _quotes(vols), within("weights", weights, at_least=0.0)
        _check_shapes(log_moneyness, expiries, vols)
        broadcast_shape(vols=vols, weights=weights)
        smoothing, reach = number("smoothing", smoothing, above=0.0), number("reach", reach, above=0.0)
        knots_per_quote = whole("knots_per_quote", knots_per_quote, at_least=1)
        quoted = torch.where(vols.detach().isnan(), 0.0, weights.detach().to(vols)).expand(vols.shape)
        _check_enough(quoted, expiries)
        grid = knots_per_quote, reach
        surface, columns = _nearest_surface(log_moneyness, expiries, vols, quoted, smoothing, grid)
        return SurfaceFit(surface, surface.vols[..., columns] - vols)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of surfaces."""
        return self.vols.shape[:-2]

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest log-moneyness that all expiries quote."""
        return self.log_moneyness[..., 0].max(), self.log_moneyness[..., -1].min()

    def vol(self, log_moneyness: Any, time: Any) -> Tensor:
        """Implied volatility between the quotes.

        Args:
            log_moneyness: log(strike / forward), shape `*batch n`.
            time: years, above 0; shape `*batch`.

        Returns:
            Annual Black volatility, shape `*batch n`.

        Raises:
            ValueError: a point outside the quotes that all expiries share, or after the last expiry.
        """
        log_moneyness, time = real("log_moneyness", log_moneyness), real("time", time)
        low, high = self.edges
        points, times = log_moneyness.detach(), time.detach()
        if bool(((points < low.detach()) | (points > high.detach())).any()):
            raise ValueError(f"`log_moneyness` must lie in [{low.item():g}, {high.item():g}], where there are quotes")
        if bool(((times <= 0.0) | (times > self.expiries[-1].detach())).any()):
            raise ValueError(f"`time` must lie in (0, {self.expiries[-1].item():g}], where there are quotes")
        variance, _, _, _ = self.total_variance(log_moneyness, time)
        return torch.sqrt(variance / time.unsqueeze(-1))

    def local_variance(self, log_moneyness: Any, time: Any) -> Tensor:
        """Dupire's local variance; constant beyond the edges of the quotes and after the last expiry.

        At an expiry it is that of the interval which ends there.

        Args:
            log_moneyness: log(spot / forward to `time`), shape `*batch n`.
            time: years, 0 or more; shape `*batch`.

        Returns:
            Squared local volatility, annual, shape `*batch n`.
        """
        log_moneyness, time = _point(log_moneyness, time)
        low, high = self.edges
        log_moneyness = torch.minimum(torch.maximum(log_moneyness, low), high)
        return dupire_local_variance(log_moneyness, *self.total_variance(log_moneyness, time))

    def total_variance(self, log_moneyness: Any, time: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Total variance, its slope and curvature in log-moneyness and its derivative in time.

        Args:
            log_moneyness: inside the edges, shape `*batch n`.
            time: years; read between 0 (exclusive) and the last expiry; shape `*batch`.

        Returns:
            Four tensors of shape `*batch n`.
        """
        log_moneyness, time = _point(log_moneyness, time)
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


@dataclass(frozen=True, eq=False)
class SurfaceFit:
    """A surface fitted to quotes, and how far it is from them; printed in basis points of volatility.

    Args:
        surface: free of arbitrage.
        errors: fitted less quoted volatility, NaN where there is no quote; shape `*batch n_expiries n_quotes`.
    """

    surface: VolSurface
    errors: Tensor

    @property
    def rms(self) -> Tensor:
        """Root of the mean square of `errors`, whatever the weights; shape `*batch`."""
        return torch.sqrt(self.errors.square().nanmean(dim=(-2, -1)))

    @property
    def largest(self) -> Tensor:
        """The largest of the absolute `errors`, shape `*batch`."""
        return self.errors.abs().nan_to_num(0.0).amax(dim=(-2, -1))

    def __str__(self) -> str:
        errors = 1e4 * self.errors.detach()
        lines = ["expiry    quotes   rms error   largest, bp of vol"]
        per_row = errors.movedim(-2, 0).flatten(1)
        for expiry, row in zip([*numbers(self.surface.expiries), None], [*per_row, per_row.flatten()], strict=True):
            quoted = row[~row.isnan()]
            name = "all" if expiry is None else f"{expiry:.4g}"
            rms, largest = quoted.square().mean().sqrt().item(), quoted.abs().max().item()
            lines.append(f"{name:<8}{quoted.numel():>8}{rms:>12.2f}{largest:>12.2f}")
        return "\n".join(lines)


def _point(log_moneyness: Any, time: Any) -> tuple[Tensor, Tensor]:
    """Tensors as they are, numbers as tensors, and at least one axis of log-moneyness."""
    if not isinstance(log_moneyness, Tensor):
        log_moneyness = real("log_moneyness", log_moneyness)
    if log_moneyness.ndim == 0:
        raise ValueError("`log_moneyness` must have a last axis of points, got one number; write [k]")
    return log_moneyness, time_of(time)


def _quotes(vols: Any) -> Tensor:
    """Volatilities with NaN for what is missing."""
    try:
        tensor = vols if isinstance(vols, Tensor) else torch.as_tensor(vols, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`vols` must be an array of real numbers, or NaN where there is no quote, got {vols!r}"
        ) from error
    volatility("vols", torch.where(tensor.detach().isnan(), 1.0, tensor.detach()))
    return tensor


def _check_enough(weights: Tensor, expiries: Tensor) -> None:
    few = (weights > 0.0).sum(-1) < 2
    if bool(few.any()):
        *batch, row = integers(few.nonzero()[0])
        raise ValueError(
            "`vols` must hold two quotes or more (with weights above 0) at each expiry, got fewer at expiry "
            f"{expiries[row].item():g}{place_of(batch)}; leave that expiry out"
        )


def _nearest_surface(
    log_moneyness: Tensor, expiries: Tensor, vols: Tensor, weights: Tensor, smoothing: float, grid: tuple[int, float]
) -> tuple[VolSurface, Tensor]:
    """Fit each surface of the batch in double precision; also the columns of the quotes among its knots."""
    exact = torch.float64
    places, times = log_moneyness.detach().to(exact).expand(expiries.shape[0], -1), expiries.detach().to(exact)
    knots, columns = knots_around(places, times, vols.detach().to(exact), weights.to(exact), *grid)
    shape = (*vols.shape[:-1], knots.shape[-1])
    quotes = vols.new_full(shape, math.nan, dtype=exact).index_copy(-1, columns, vols.to(exact))
    weights = vols.new_zeros(shape, dtype=exact).index_copy(-1, columns, weights.to(exact))
    weights = weights * (weights > 0.0).sum((-2, -1), keepdim=True) / weights.sum((-2, -1), keepdim=True)
    pairs = list(zip(quotes.reshape(-1, *shape[-2:]), weights.reshape(-1, *shape[-2:]), strict=True))
    reason = None
    for n_points in FIT_POINTS:  # between its points the fit may fail the checks
        fitted = torch.stack([nearest_vols(knots, times, *pair, smoothing, n_points) for pair in pairs])
        try:
            surface = VolSurface(knots.to(log_moneyness.dtype), expiries, fitted.reshape(shape).to(vols.dtype))
        except ValueError as error:
            reason = error
            continue
        return surface, columns
    raise RuntimeError("the fit of the surface kept an arbitrage between its points; raise `smoothing`") from reason


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
