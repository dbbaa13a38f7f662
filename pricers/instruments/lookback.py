"""Lookback options: the extreme of the path is the strike, or is what the strike is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, call_sign, exercised
from pricers.parameters import broadcast_shape, choice, within, years
from pricers.paths import SAME_DATE, Paths

__all__ = ["Lookback", "bridge_extremum", "check_running_extremum"]


@dataclass(frozen=True, eq=False, init=False)
class Lookback(Instrument):
    r"""Lookback option on the path's minimum $m_T$ or maximum $M_T$, watched at all times.

    Floating strike (`strike` None): $S_T - m_T$ (call) or $M_T - S_T$ (put). Fixed strike: $(M_T - K)^+$ (call) or
    $(K - m_T)^+$ (put). Paid at expiry.

    On a simulated path the extreme of each step is drawn from its law given the end points (`bridge_extremum`), by one
    uniform a step. That is exact where the log price is a Brownian motion over the step; else (stochastic volatility,
    jumps within the step, cash dividends) the error falls with the length of the step.

    Args:
        strike: above 0, or None for a floating strike; shape `*batch`.
        expiry: years to the payment, above 0; shape `*batch`.
        option: "call" or "put".
        running_extremum: the minimum (floating call, fixed put) or maximum (floating put, fixed call) reached before
            today, for a contract that has been running; None for one that starts today. Shape `*batch`.

    Raises:
        ValueError: a number that is not above 0, shapes that do not broadcast, another option.

    References:
        Goldman, Sosin and Gatto (1979), Path dependent options; Conze and Viswanathan (1991), Path dependent options:
        the case of lookback options.

    >>> Lookback(strike=None, expiry=[0.5, 1.0], option="call", running_extremum=95.0).batch_shape
    torch.Size([2])
    """

    kind: ClassVar[str] = "lookback"
    bridge_uniforms: ClassVar[bool] = True
    strike: Tensor | None
    expiry: Tensor
    option: str
    running_extremum: Tensor | None

    def __init__(self, strike: Any, expiry: Any, option: str = "call", running_extremum: Any = None) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "strike", None if strike is None else within("strike", strike, above=0.0))
        set_field(self, "expiry", years("expiry", expiry))
        set_field(self, "option", choice("option", option, OPTIONS))
        before = running_extremum
        set_field(self, "running_extremum", None if before is None else within("running_extremum", before, above=0.0))
        _ = self.batch_shape  # shapes that do not broadcast are an error here

    @property
    def batch_shape(self) -> torch.Size:
        given = {"strike": self.strike, "expiry": self.expiry, "running_extremum": self.running_extremum}
        return broadcast_shape(**{name: tensor for name, tensor in given.items() if tensor is not None})

    @property
    def dates(self) -> Tensor:
        return self.expiry.unsqueeze(-1)

    @property
    def continuous(self) -> bool:
        return True

    @property
    def of_maximum(self) -> bool:
        """Whether the contract looks at the maximum, not at the minimum."""
        return (self.strike is None) == (self.option == "put")

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        extremum = self._extremum(paths)
        if self.strike is None:
            spot = paths.at(self.dates)[..., 0]
            paid = call_sign(self.option) * (spot - extremum)
        else:
            paid = exercised(extremum, self.strike.unsqueeze(-1), self.option)
        return paid * discount(self.expiry).unsqueeze(-1)

    def _extremum(self, paths: Paths) -> Tensor:
        """The extreme from the start of the contract to its expiry, shape `*batch paths`."""
        if paths.variance is None:
            raise ValueError(
                "a lookback option watches the path at all times, which needs the variance of the log price over each "
                "step; this scheme does not give it; use another scheme of the model"
            )
        if paths.bridge_uniforms is None:
            raise ValueError(
                "a lookback option draws the extreme of each step and needs `bridge_uniforms`, got None; "
                "pass uniforms in (0, 1) of shape (paths, steps)"
            )
        check_running_extremum(self, paths.spot[..., 0, 0])
        log_spot = paths.spot.log()
        start, end = log_spot[..., :-1], log_spot[..., 1:]
        extremes = bridge_extremum(start, end, paths.variance, paths.bridge_uniforms, self.of_maximum)
        over = paths.times[1:].detach() > self.expiry.detach()[..., None, None] + SAME_DATE
        extremes = torch.where(over, log_spot[..., :1], extremes)  # no step is less extreme
        extremum = (extremes.amax(dim=-1) if self.of_maximum else extremes.amin(dim=-1)).exp()
        if self.running_extremum is None:
            return extremum
        wider = torch.maximum if self.of_maximum else torch.minimum
        return wider(extremum, self.running_extremum.unsqueeze(-1))


def bridge_extremum(start: Tensor, end: Tensor, variance: Tensor, uniform: Tensor, of_maximum: bool) -> Tensor:
    r"""Maximum or minimum of a Brownian bridge, by the inverse of its distribution.

    $$\frac{a + b \pm \sqrt{(b - a)^2 - 2 v \log U}}{2}$$

    Args:
        start: $a$, where the bridge starts.
        end: $b$, where it ends.
        variance: $v$ over the step, 0 or more.
        uniform: $U$ in (0, 1).
        of_maximum: the maximum, else the minimum.

    Returns:
        The broadcast shape.

    References:
        Glasserman (2004), section 6.4, eq. 6.50.
    """
    square = (end - start) ** 2 - 2.0 * variance * torch.log(uniform)
    moving = square > 0
    root = torch.where(moving, torch.where(moving, square, 1.0).sqrt(), 0.0)
    return 0.5 * (start + end + root) if of_maximum else 0.5 * (start + end - root)


def check_running_extremum(instrument: Lookback, spot: Tensor) -> None:
    """Refuse a running extreme that the spot of today has already passed.

    Args:
        instrument: the contract.
        spot: price today; broadcasts with the batch of the contract.

    Raises:
        ValueError: a running maximum below the spot, or a minimum above it.
    """
    if instrument.running_extremum is None:
        return
    shape = broadcast_shape(running_extremum=instrument.running_extremum, spot=spot)
    extremum, today = instrument.running_extremum.detach().expand(shape), spot.detach().expand(shape)
    wrong = extremum < today if instrument.of_maximum else extremum > today
    if bool(wrong.any()):
        name, rule = ("maximum", "at or above") if instrument.of_maximum else ("minimum", "at or below")
        raise ValueError(
            f"`running_extremum` is the {name} of the past and today, it must lie {rule} the spot, got "
            f"{extremum[wrong][0].item():g} at a spot of {today[wrong][0].item():g}; leave it out for a new contract"
        )
