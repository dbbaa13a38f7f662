"""Options whose strike is set later: forward starts, and the cliquets that string them together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.parameters import broadcast_shape, choice, dates, real, within, years
from pricers.paths import Paths

__all__ = ["Cliquet", "ForwardStart", "dates_after"]


def dates_after(times: Tensor, elapsed: Tensor) -> Tensor:
    """Dates seen from `elapsed` years later; a date of today stays at 0, for what it fixes is known and remains.

    >>> dates_after(torch.tensor([0.0, 0.5]), torch.tensor(0.25))
    tensor([0.0000, 0.2500])
    """
    return torch.where(times > 0, times - elapsed, times)


@dataclass(frozen=True, eq=False, init=False)
class ForwardStart(Instrument):
    r"""Call or put whose strike is a multiple of a later price: $(S_T - m S_t)^+$ or $(m S_t - S_T)^+$, paid at $T$.

    Args:
        moneyness: $m$, strike over the spot at the reset, above 0; shape `*batch`.
        reset: $t$, years to the date that sets the strike, 0 or more; shape `*batch`.
        expiry: $T$, years to exercise and payment, after the reset; shape `*batch`.
        option: "call" or "put".

    Raises:
        ValueError: a number out of bounds, a reset that is not before the expiry, shapes that do not broadcast.

    >>> ForwardStart(moneyness=1.1, reset=0.25, expiry=[0.5, 1.0]).batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "forward_start"
    moneyness: Tensor
    reset: Tensor
    expiry: Tensor
    option: str

    def __init__(self, moneyness: Any, reset: Any, expiry: Any, option: str = "call") -> None:
        object.__setattr__(self, "moneyness", within("moneyness", moneyness, above=0.0))
        object.__setattr__(self, "reset", within("reset", reset, at_least=0.0))
        object.__setattr__(self, "expiry", years("expiry", expiry))
        object.__setattr__(self, "option", choice("option", option, OPTIONS))
        _ = self.batch_shape
        _check_order("expiry", self.expiry, "reset", self.reset)

    @property
    def batch_shape(self) -> torch.Size:
        return broadcast_shape(moneyness=self.moneyness, reset=self.reset, expiry=self.expiry)

    @property
    def dates(self) -> Tensor:
        shape = broadcast_shape(reset=self.reset, expiry=self.expiry)
        return torch.stack([self.reset.expand(shape), self.expiry.expand(shape)], dim=-1)

    def shifted(self, elapsed: Tensor) -> Instrument:
        return replace(self, reset=dates_after(self.reset, elapsed), expiry=self.expiry - elapsed)

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        start, end = paths.at(self.dates).unbind(-1)
        value = exercised(end, self.moneyness.unsqueeze(-1) * start, self.option)
        return value * discount(self.expiry).unsqueeze(-1)


@dataclass(frozen=True, eq=False, init=False)
class Cliquet(Instrument):
    r"""Pays the sum of the returns between its dates, each and all of them within a floor and a cap, at the last date.

    $$\min\Big(\max\Big(\sum_{i=1}^{n} \min\big(\max(\tfrac{S_{t_i}}{S_{t_{i-1}}} - 1, f), c\big), F\Big), C\Big)$$

    per unit of notional, with $f, c$ the local and $F, C$ the global floor and cap; one that is None does not bind.

    Args:
        times: $t_0 < \dots < t_n$ in years, the first 0 or more, at least two; shape `*batch n_dates`.
        local_floor: $f$, decimal return; shape `*batch`.
        local_cap: $c$, above the floor.
        global_floor: $F$, decimal return.
        global_cap: $C$, above the floor.

    Raises:
        ValueError: fewer than two dates, dates out of order, a cap that is not above its floor, shapes that do not
            broadcast.

    References:
        Wilmott (2002), Cliquet options and volatility models.

    >>> Cliquet(times=[0.0, 0.25, 0.5], local_floor=-0.02, local_cap=0.05, global_floor=0.0).dates.shape
    torch.Size([3])
    """

    kind: ClassVar[str] = "cliquet"
    times: Tensor
    local_floor: Tensor | None
    local_cap: Tensor | None
    global_floor: Tensor | None
    global_cap: Tensor | None

    def __init__(
        self,
        times: Any,
        local_floor: Any = None,
        local_cap: Any = None,
        global_floor: Any = None,
        global_cap: Any = None,
    ) -> None:
        times = dates("times", times, at_least=0.0)
        if times.shape[-1] < 2:
            raise ValueError(f"`times` must hold the start and at least one later date, got shape {tuple(times.shape)}")
        object.__setattr__(self, "times", times)
        for name, bound in (
            ("local_floor", local_floor),
            ("local_cap", local_cap),
            ("global_floor", global_floor),
            ("global_cap", global_cap),
        ):
            object.__setattr__(self, name, None if bound is None else real(name, bound))
        _ = self.batch_shape
        _check_order("local_cap", self.local_cap, "local_floor", self.local_floor)
        _check_order("global_cap", self.global_cap, "global_floor", self.global_floor)

    @property
    def batch_shape(self) -> torch.Size:
        bounds = {
            "local_floor": self.local_floor,
            "local_cap": self.local_cap,
            "global_floor": self.global_floor,
            "global_cap": self.global_cap,
        }
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        return broadcast_shape(times=self.times.shape[:-1], **given)

    @property
    def dates(self) -> Tensor:
        return self.times

    def shifted(self, elapsed: Tensor) -> Instrument:
        return replace(self, times=dates_after(self.times, elapsed))

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        spot = paths.at(self.times)
        returns = spot[..., 1:] / spot[..., :-1] - 1.0
        local = _bounded(returns, self.local_floor, self.local_cap, n_axes=2)
        total = _bounded(local.sum(-1), self.global_floor, self.global_cap, n_axes=1)
        return total * discount(self.horizon).unsqueeze(-1)


def _bounded(value: Tensor, floor: Tensor | None, cap: Tensor | None, n_axes: int) -> Tensor:
    """`value` within floor and cap, which lack its last `n_axes` axes."""
    if floor is not None:
        value = torch.maximum(value, floor[(...,) + (None,) * n_axes])
    if cap is not None:
        value = torch.minimum(value, cap[(...,) + (None,) * n_axes])
    return value


def _check_order(upper_name: str, upper: Tensor | None, lower_name: str, lower: Tensor | None) -> None:
    """Refuse an upper number that is not above the lower one."""
    if upper is None or lower is None:
        return
    shape = broadcast_shape(**{upper_name: upper, lower_name: lower})
    high, low = upper.detach().expand(shape), lower.detach().expand(shape)
    crossed = low >= high
    if bool(crossed.any()):
        raise ValueError(
            f"`{upper_name}` must be above `{lower_name}`, got {high[crossed][0].item():g} "
            f"beside {low[crossed][0].item():g}"
        )
