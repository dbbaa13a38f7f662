"""What the market says today: spot, rates and dividends, and the forwards and discount factors that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pricers.parameters import broadcast_shape, dates, plausible, real, time_of, within

__all__ = ["CashDividends", "Market", "ZeroCurve"]

MOST_RATE = 10.0  # a factor of 22,000 a year: what is beyond was meant in percent


@dataclass(frozen=True, eq=False)
class ZeroCurve:
    r"""Continuously compounded zero rates by maturity, linear in time between the nodes and flat outside.

    The discount factor to $t$ is $e^{-z(t)\,t}$.

    Args:
        times: maturities in years, ascending, the first may be 0; shape `(n_nodes,)`.
        rates: zero rates per year, decimal, in [-10, 10]; shape `*batch n_nodes`.

    Raises:
        ValueError: a time is negative or out of order, or the two do not match.

    >>> curve = ZeroCurve(times=[0.0, 1.0, 2.0], rates=[0.02, 0.02, 0.03])
    >>> round(curve.integral(torch.tensor(1.5, dtype=torch.float64)).item(), 6)
    0.0375
    """

    times: Tensor
    rates: Tensor

    def __init__(self, times: Any, rates: Any) -> None:
        times, rates = dates("times", times, at_least=0.0), _rate("rates", rates)
        if times.ndim != 1:
            raise ValueError(f"`times` of a curve must have one axis, got shape {tuple(times.shape)}")
        if rates.ndim == 0 or rates.shape[-1] != times.shape[0]:
            raise ValueError(
                f"`rates` must have one zero rate for each of the {times.shape[0]} times along its last axis, "
                f"got shape {tuple(rates.shape)} beside times of shape {tuple(times.shape)}"
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "rates", rates)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of curves."""
        return self.rates.shape[:-1]

    def zero_rate(self, time: Tensor | float) -> Tensor:
        """Zero rate to `time`, years; the batch axes of the curve broadcast with those of `time`."""
        time = time_of(time)
        if self.times.shape[0] == 1:
            return self.rates[..., 0] + 0.0 * time
        # all in the type of the curve and time together: searchsorted and lerp do not promote
        dtype = torch.promote_types(self.rates.dtype, torch.promote_types(self.times.dtype, time.dtype))
        nodes, values, time = self.times.to(dtype), self.rates.to(dtype), time.to(dtype)
        right = torch.searchsorted(nodes.detach(), time.detach().contiguous()).clamp(1, nodes.shape[0] - 1)
        start, end = nodes[right - 1], nodes[right]
        share = ((time - start) / (end - start)).clamp(0.0, 1.0)
        if values.ndim == 1:
            low, high = values[right - 1], values[right]
        else:
            shape = torch.broadcast_shapes(self.batch_shape, time.shape)
            values = values.expand(*shape, -1)
            low = values.gather(-1, (right - 1).expand(shape).unsqueeze(-1)).squeeze(-1)
            high = values.gather(-1, right.expand(shape).unsqueeze(-1)).squeeze(-1)
        return torch.lerp(low, high, share.expand_as(low))

    def integral(self, time: Tensor | float) -> Tensor:
        """Minus the logarithm of the discount factor to `time`."""
        time = time_of(time)
        return self.zero_rate(time) * time


@dataclass(frozen=True, eq=False)
class CashDividends:
    """Dividends as amounts of cash: at each time the spot falls by the amount, and by no more than all it is worth.

    Between the times the spot is lognormal (the piecewise lognormal model of Haug, Haug and Lewis, 2003, Back to
    basics: a new approach to the discrete dividend problem). For `BlackScholes` only.

    Args:
        times: ex-dividend times in years, positive and ascending; shape `(n_dividends,)`.
        amounts: cash per share, 0 or more; shape `(n_dividends,)`.
    """

    times: Tensor
    amounts: Tensor

    def __init__(self, times: Any, amounts: Any) -> None:
        times, amounts = dates("times", times), within("amounts", amounts, at_least=0.0)
        if times.ndim != 1 or times.shape != amounts.shape:
            raise ValueError(
                f"`times` and `amounts` of dividends must have one axis and one length, "
                f"got shapes {tuple(times.shape)} and {tuple(amounts.shape)}"
            )
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "amounts", amounts)


@dataclass(frozen=True, eq=False)
class Market:
    r"""Spot, interest and dividends: the forward is $F(t) = S\,e^{\int_0^t r - q}$.

    Args:
        spot: today's price of the asset, above 0; shape `*batch`, and one more axis of length `n_assets` under a model
            of several assets. Whether the shapes broadcast is seen with the model, by `batch_shape`.
        rate: continuous rate per year, decimal, in [-10, 10], or a `ZeroCurve`.
        dividend_yield: continuous yield per year, in the same bounds, or a `ZeroCurve`; for several assets a last
            axis of `n_assets` or 1 when it has axes at all.
        dividends: cash amounts (`CashDividends`), for `BlackScholes`.

    Raises:
        ValueError: a spot that is not above 0, a number that is not finite, dividends of another type.

    >>> market = Market(spot=100.0, rate=0.05, dividend_yield=0.02)
    >>> round(market.forward(torch.tensor(1.0, dtype=torch.float64)).item(), 6)
    103.045453
    """

    spot: Tensor
    rate: Tensor | ZeroCurve
    dividend_yield: Tensor | ZeroCurve
    dividends: CashDividends | None

    def __init__(
        self,
        spot: Any,
        rate: Any = 0.0,
        dividend_yield: Any = 0.0,
        dividends: CashDividends | None = None,
    ) -> None:
        if dividends is not None and not isinstance(dividends, CashDividends):
            raise ValueError(
                f"`dividends` must be CashDividends(times, amounts), got {type(dividends).__name__}; "
                "a continuous yield goes into `dividend_yield`"
            )
        spot = within("spot", spot, above=0.0)
        object.__setattr__(self, "spot", spot)
        for name, value in (("rate", rate), ("dividend_yield", dividend_yield)):
            if isinstance(value, int | float) and value == 0.0:  # the default: it must not turn float32 into float64
                value = spot.new_zeros(())
            object.__setattr__(self, name, value if isinstance(value, ZeroCurve) else _rate(name, value))
        object.__setattr__(self, "dividends", dividends)

    def batch_shape(self, n_assets: int = 1) -> torch.Size:
        """Shape of the batch of markets; under several assets the last axis of spot and yield belongs to them.

        Raises:
            ValueError: `spot` or `dividend_yield` has no such axis.
        """
        spot, income = self.spot.shape, _shape(self.dividend_yield)
        if n_assets > 1:
            if not spot or spot[-1] != n_assets:
                raise ValueError(
                    f"`spot` must have a last axis of length {n_assets}, one for each asset, got shape {tuple(spot)}"
                )
            if income and (isinstance(self.dividend_yield, ZeroCurve) or income[-1] not in (1, n_assets)):
                raise ValueError(
                    f"`dividend_yield` of {n_assets} assets must be a number or have a last axis of that length, "
                    f"got shape {tuple(income)}"
                )
            spot, income = spot[:-1], income[:-1]
        return broadcast_shape(spot=spot, rate=_shape(self.rate), dividend_yield=income)

    def discount(self, time: Tensor | float) -> Tensor:
        """Today's value of one unit of cash at `time`, years; broadcasts with the batch."""
        return torch.exp(-_integral(self.rate, time_of(time)))

    def growth(self, time: Tensor | float) -> Tensor:
        """Forward to `time` over spot, without cash dividends; broadcasts with the batch."""
        time = time_of(time)
        return torch.exp(_integral(self.rate, time) - _integral(self.dividend_yield, time))

    def forward(self, time: Tensor | float) -> Tensor:
        """Forward price for delivery at `time`, years; cash dividends that go ex by then are taken off.

        With cash dividends this is the forward by arbitrage; it ignores that a spot near 0 cannot pay a dividend.
        """
        time = time_of(time)
        forward = self.spot * self.growth(time)
        if self.dividends is not None:
            for ex_time, amount in zip(self.dividends.times, self.dividends.amounts, strict=True):
                forward = forward - torch.where(ex_time <= time, amount * self.growth(time) / self.growth(ex_time), 0.0)
        return forward

    def asset_forwards(self, time: Tensor) -> Tensor:
        """Forwards of several assets to `time`: one more axis, the last, of length `n_assets`."""
        later = time.unsqueeze(-1)
        rate = self.rate.integral(time) if isinstance(self.rate, ZeroCurve) else self.rate * time
        income = self.dividend_yield
        income = income.integral(time).unsqueeze(-1) if isinstance(income, ZeroCurve) else income * later
        return self.spot * torch.exp(rate.unsqueeze(-1) - income)

    def shifted(self, elapsed: Tensor) -> Market:
        """The market as it stands `elapsed` years later if spot and the forward rates stay: for time decay."""
        dividends = self.dividends
        if dividends is not None:
            dividends = CashDividends(dividends.times - elapsed, dividends.amounts)
        return replace(
            self,
            rate=_rolled(self.rate, elapsed),
            dividend_yield=_rolled(self.dividend_yield, elapsed),
            dividends=dividends,
        )


def _rate(name: str, value: Any) -> Tensor:
    return plausible(name, real(name, value), MOST_RATE, "is it in percent? 3 % is 0.03")


def _shape(rate: Tensor | ZeroCurve) -> torch.Size:
    return rate.batch_shape if isinstance(rate, ZeroCurve) else rate.shape


def _integral(rate: Tensor | ZeroCurve, time: Tensor) -> Tensor:
    return rate.integral(time) if isinstance(rate, ZeroCurve) else rate * time


def _rolled(rate: Tensor | ZeroCurve, elapsed: Tensor) -> Tensor | ZeroCurve:
    if not isinstance(rate, ZeroCurve):
        return rate
    before = rate.elapsed if isinstance(rate, _RolledCurve) else 0.0
    return _RolledCurve(rate.times, rate.rates, before + elapsed)


@dataclass(frozen=True, eq=False)
class _RolledCurve(ZeroCurve):
    """A curve seen from `elapsed` years later, its forward rates kept; zero rates are then not linear in time."""

    elapsed: Tensor

    def __init__(self, times: Tensor, rates: Tensor, elapsed: Tensor) -> None:
        super().__init__(times, rates)
        object.__setattr__(self, "elapsed", elapsed)

    def zero_rate(self, time: Tensor | float) -> Tensor:
        """As of a `ZeroCurve`, for times after the present one."""
        time = time_of(time)
        return self.integral(time) / time

    def integral(self, time: Tensor | float) -> Tensor:
        """Minus the logarithm of the discount factor from `elapsed` to `time` years after it."""
        later = time_of(time) + self.elapsed
        return super().zero_rate(later) * later - super().zero_rate(self.elapsed) * self.elapsed
