"""Options on the average price: arithmetic or geometric, of fixings or of the whole path, seasoned or new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, call_sign, exercised
from pricers.instruments.forward_start import dates_after
from pricers.instruments.variance import steps_before
from pricers.normal import deviation, normal_cdf, normal_density
from pricers.parameters import (
    broadcast_shape,
    choice,
    copied,
    dates,
    flag,
    whole,
    within,
    years,
)
from pricers.paths import Paths

__all__ = ["Asian"]


@dataclass(frozen=True, eq=False, init=False)
class Asian(Instrument):
    r"""Option on the average price $A$, paid at the last date $T$.

    Fixed strike: call $(A - K)^+$, put $(K - A)^+$. Floating strike: call $(S_T - A)^+$, put $(A - S_T)^+$.
    With $n$ fixings to come and $m$ = `n_past` behind, whose average is $\bar A$,

    $$A = \frac{m \bar A + \sum_i S_{t_i}}{m + n} \quad\text{or}\quad
      A = \Big(\bar A^m \prod_i S_{t_i}\Big)^{1 / (m + n)};$$

    the continuous average runs over $[-a, T]$ with $a$ = `elapsed` years behind: $\bar A$ has the weight $a / (a + T)$.

    A continuous arithmetic average is integrated over the steps of a simulation by Simpson's rule through the mean of
    the Brownian bridge, and the payoff is averaged over what the bridges leave uncertain, which is normal up to higher
    order: the weak error is of second order or better in the step. For the geometric average under constant volatility
    the same is exact at any step.

    Args:
        strike: above 0, shape `*batch`; None when `floating`.
        times: fixing dates in years, ascending, the first 0 (today) or more, shape `*batch n_dates`; or "continuous".
        option: "call" or "put".
        average: "arithmetic" or "geometric".
        floating: whether the average takes the place of the strike.
        running_average: average, of the same kind, of the fixings of the past, above 0; shape `*batch`.
        n_past: number of fixings of the past.
        expiry: years to the end of a continuous average, above 0; fixings end with their last date instead.
        elapsed: years over which a continuous average has run already.

    Raises:
        ValueError: fixing dates out of order, a past without its average or the reverse, a strike that is missing or
            not above 0, shapes that do not broadcast.

    References:
        Kemna and Vorst (1990), A pricing method for options based on average asset values.
        Lapeyre and Temam (2001), Competitive Monte Carlo methods for the pricing of Asian options.

    >>> seasoned = Asian(100.0, times=[0.25, 0.5], option="call", running_average=104.0, n_past=2)
    >>> seasoned.dates
    tensor([0.2500, 0.5000], dtype=torch.float64)
    """

    kind: ClassVar[str] = "asian"
    strike: Tensor | None
    times: Tensor | str
    option: str
    average: str
    floating: bool
    running_average: Tensor | None
    n_past: int
    expiry: Tensor | None
    elapsed: Tensor

    def __init__(
        self,
        strike: Any,
        times: Any,
        option: str = "call",
        average: str = "arithmetic",
        floating: Any = False,
        running_average: Any = None,
        n_past: Any = 0,
        expiry: Any = None,
        elapsed: Any = 0.0,
    ) -> None:
        floating, n_past = flag("floating", floating), whole("n_past", n_past, at_least=0)
        if floating != (strike is None):
            raise ValueError(
                "`strike` must be None for a floating strike, for the average takes its place"
                if floating
                else "`strike` must be a number; None goes with `floating=True`"
            )
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "strike", None if strike is None else within("strike", strike, above=0.0))
        set_field(self, "option", choice("option", option, OPTIONS))
        set_field(self, "average", choice("average", average, ("arithmetic", "geometric")))
        set_field(self, "floating", floating)
        if running_average is not None:
            running_average = within("running_average", running_average, above=0.0)
        set_field(self, "running_average", running_average)
        set_field(self, "n_past", n_past)
        if isinstance(times, str):
            choice("times", times, ("continuous",))
            if expiry is None:
                raise ValueError("a continuous average needs its `expiry` in years")
            set_field(self, "times", times)
            set_field(self, "expiry", years("expiry", expiry))
            like = self.expiry
        else:
            if expiry is not None:
                raise ValueError("`expiry` is for times='continuous'; fixings end, and are paid, with their last date")
            like = dates("times", times, at_least=0.0)
            set_field(self, "times", like)
            set_field(self, "expiry", None)
        set_field(self, "elapsed", within("elapsed", elapsed, at_least=0.0, like=like))
        self._check_past()
        _ = self.batch_shape

    def _check_past(self) -> None:
        known = self.running_average is not None
        if isinstance(self.times, Tensor):
            if bool((self.elapsed.detach() > 0).any()):
                raise ValueError("`elapsed` is for times='continuous'; past fixings are counted by `n_past`")
            if known != (self.n_past > 0):
                raise ValueError(
                    f"`n_past` = {self.n_past} fixings of the past need their `running_average`"
                    if not known
                    else "`running_average` needs `n_past`, the number of fixings it is the average of"
                )
            return
        if self.n_past:
            raise ValueError("`n_past` counts fixings; a continuous average has run for `elapsed` years")
        past = self.elapsed.detach() > 0
        if known and not bool(past.all()):
            raise ValueError("`running_average` needs `elapsed` above 0, the years it is the average of")
        if not known and bool(past.any()):
            raise ValueError("`elapsed` years of the past need their `running_average`")

    @property
    def batch_shape(self) -> torch.Size:
        shapes: dict[str, Tensor | torch.Size] = {"elapsed": self.elapsed}
        if isinstance(self.times, Tensor):
            shapes["times"] = self.times.shape[:-1]
        named = {"strike": self.strike, "running_average": self.running_average, "expiry": self.expiry}
        return broadcast_shape(**shapes, **{name: value for name, value in named.items() if value is not None})

    @property
    def dates(self) -> Tensor:
        if isinstance(self.times, Tensor):
            return self.times
        assert self.expiry is not None
        return self.expiry.unsqueeze(-1)

    @property
    def continuous(self) -> bool:
        return not isinstance(self.times, Tensor)

    @property
    def past_weight(self) -> Tensor:
        """Share of the past in the average, in [0, 1); shape `*batch`."""
        if isinstance(self.times, Tensor):
            return self.times.new_tensor(self.n_past / (self.n_past + self.times.shape[-1]))
        return self.elapsed / (self.elapsed + self.horizon)

    def shifted(self, elapsed: Tensor) -> Instrument:
        """The same contract `elapsed` years later and before its next fixing, had the spot stayed where it is.

        A fixing of today is known then and keeps its date; a continuous average that starts today is that spot.
        """
        if isinstance(self.times, Tensor):
            return replace(self, times=dates_after(self.times, elapsed))
        # Not a new contract to be checked: its past average may be left open.
        return copied(self, expiry=self.horizon - elapsed, elapsed=self.elapsed + elapsed)

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        value = self._continuous_value(paths) if self.continuous else self._discrete_value(paths)
        return value * discount(self.horizon).unsqueeze(-1)

    def _with_past(self, future: Tensor, today: Tensor) -> Tensor:
        """Average of past and future, for the average of the future along paths (of the log for a geometric one)."""
        past = today if self.running_average is None else self.running_average.unsqueeze(-1)
        weight = self.past_weight.unsqueeze(-1)
        return (1.0 - weight) * future + weight * (past if self.average == "arithmetic" else _log(past))

    def _discrete_value(self, paths: Paths) -> Tensor:
        spot = paths.at(self.dates)
        if self.average == "arithmetic":
            average = self._with_past(spot.mean(-1), paths.spot[..., 0])
        else:
            average = self._with_past(_log(spot).mean(-1), paths.spot[..., 0]).exp()
        if self.strike is not None:
            return exercised(average, self.strike.unsqueeze(-1), self.option)
        return exercised(spot[..., -1], average, self.option)

    def _continuous_value(self, paths: Paths) -> Tensor:
        """Payoff averaged over the Brownian bridges between the recorded times."""
        assert paths.variance is not None, "recorded for continuous instruments"
        variance = paths.variance if paths.jumps_squared is None else paths.variance + paths.jumps_squared
        share = steps_before(paths.times, self.horizon) * paths.times.diff() / self.horizon.unsqueeze(-1)
        share = share.unsqueeze(-2)  # *batch 1 n-1
        start, end = paths.spot[..., :-1], paths.spot[..., 1:]
        # Given its ends the log price is a bridge, with variance V s (1 - s) at share s of the step and V/12 as a mean.
        freedom = (1.0 - self.past_weight).unsqueeze(-1)
        last = paths.at(self.dates)[..., 0]
        other, sign = (last, -1.0) if self.strike is None else (self.strike.unsqueeze(-1), 1.0)
        sign = sign * call_sign(self.option)
        if self.average == "arithmetic":
            middle = (start * end).clamp(min=torch.finfo(start.dtype).tiny).sqrt() * (variance / 8.0).exp()
            mean = self._with_past((share * (start + 4.0 * middle + end) / 6.0).sum(-1), start[..., 0])
            spread = freedom * deviation((share**2 * middle**2 * variance / 12.0).sum(-1))
            return _normal_option(mean, other, spread, sign)
        mean = self._with_past((share * 0.5 * (_log(start) + _log(end))).sum(-1), start[..., 0])
        spread = freedom * deviation((share**2 * variance / 12.0).sum(-1))
        return _lognormal_option((mean + 0.5 * spread**2).exp(), other, spread, sign)


def _log(spot: Tensor) -> Tensor:
    """Logarithm, finite and with a finite gradient for a price that was absorbed at 0."""
    return spot.clamp(min=torch.finfo(spot.dtype).tiny).log()


def _normal_option(mean: Tensor, strike: Tensor, std: Tensor, sign: float) -> Tensor:
    """$E(\\pm(X - K))^+$ of a normal $X$ (Bachelier)."""
    distance = sign * (mean - strike)
    d = distance / std
    return distance * normal_cdf(d) + std * normal_density(d)


def _lognormal_option(forward: Tensor, strike: Tensor, std: Tensor, sign: float) -> Tensor:
    """$E(\\pm(X - K))^+$ of a lognormal $X$ (Black)."""
    d1 = (_log(forward) - _log(strike)) / std + 0.5 * std
    return sign * (forward * normal_cdf(sign * d1) - strike * normal_cdf(sign * (d1 - std)))
