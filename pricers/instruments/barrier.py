"""Barrier options: calls and puts that die or come alive when the asset touches a level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from pricers.instruments.base import OPTIONS, Discount, Instrument, exercised
from pricers.normal import mills_ratio
from pricers.parameters import broadcast_shape, choice, dates, within, years
from pricers.paths import SAME_DATE, Paths

__all__ = ["Barrier", "check_not_crossed", "mean_hit_share", "step_survival", "survival_so_far"]

BarrierKind = Literal["down-out", "up-out", "down-in", "up-in"]
KINDS: tuple[str, ...] = ("down-out", "up-out", "down-in", "up-in")
CERTAIN = 80.0  # a bridge crosses with probability exp(-80) or less: not at all


class _Watched(NamedTuple):
    alive: Tensor  # probability not to have touched the barrier, given the path; shape `*batch paths`
    hit_discount: Tensor  # mean discount factor at the touch, 0 without one; same shape


@dataclass(frozen=True, eq=False, init=False)
class Barrier(Instrument):
    r"""Call or put that is void once the asset has touched the barrier ("out"), or void until it has ("in").

    An out pays its rebate when the barrier is hit, an in at expiry if it was not hit. Touching is crossing.

    Watched at all times, a simulated path is judged by what happens between its points too. Given the end points of a
    step, at distances $a$ and $b$ from the barrier in log price, and the variance $v$ over the step, the path crosses
    with probability $e^{-2ab/v}$ if both ends are on the live side, and 1 otherwise. The payoff is weighted with the
    probability of the path, so that it is smooth and needs no further random numbers. A rebate at hit is discounted
    from the mean hitting time of the step's bridge, at the share $\alpha\,m(\alpha + \beta)$ of the step, with
    $\alpha = a/\sqrt v$, $\beta = |b|/\sqrt v$ and $m$ Mills' ratio: exact to first order in the rate times the step.
    Both are exact where the log price is a Brownian motion over the step; else (stochastic volatility, jumps within the
    step, cash dividends) the error falls with the length of the step.

    Args:
        strike: price at which the option buys or sells, above 0; shape `*batch`.
        expiry: years, above 0; shape `*batch`.
        barrier: level, above 0; shape `*batch`.
        kind: "down-out", "up-out", "down-in" or "up-in"; "down" lies below the spot of today, "up" above.
        option: "call" or "put".
        rebate: cash, 0 or more; shape `*batch`.
        monitoring: "continuous", or the times in years at which the barrier is watched: positive, ascending, none after
            expiry; shape `*batch n_dates`. Watched on dates, a spot beyond the barrier today is allowed.

    Raises:
        ValueError: a number out of its bounds, times out of order or after expiry, shapes that do not broadcast.

    References:
        Merton (1973), Theory of rational option pricing; Andersen and Brotherton-Ratcliffe (1996), Exact exotics;
        Glasserman (2004), section 6.4: the bridge's crossing probability.

    >>> Barrier(strike=100.0, expiry=0.5, barrier=[90.0, 95.0], kind="down-out", option="call", rebate=3.0).batch_shape
    torch.Size([2])
    """

    date_fields: ClassVar[tuple[str, ...]] = ("expiry", "monitoring")
    strike: Tensor
    expiry: Tensor
    barrier: Tensor
    # The class is registered as "barrier"; of a contract it is the kind of barrier.
    kind: str = "barrier"  # pyright: ignore[reportIncompatibleVariableOverride]
    option: str
    rebate: Tensor
    monitoring: Tensor | Literal["continuous"]

    def __init__(
        self,
        strike: Any,
        expiry: Any,
        barrier: Any,
        kind: str,
        option: str = "call",
        rebate: Any = 0.0,
        monitoring: Any = "continuous",
    ) -> None:
        if isinstance(monitoring, str):
            if monitoring != "continuous":
                raise ValueError(f"`monitoring` must be 'continuous' or an array of times in years, got {monitoring!r}")
        else:
            monitoring = dates("monitoring", monitoring)
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "strike", within("strike", strike, above=0.0))
        set_field(self, "expiry", years("expiry", expiry))
        set_field(self, "barrier", within("barrier", barrier, above=0.0))
        set_field(self, "kind", choice("kind", kind, KINDS))
        set_field(self, "option", choice("option", option, OPTIONS))
        set_field(self, "rebate", within("rebate", rebate, at_least=0.0, like=self.barrier))
        set_field(self, "monitoring", monitoring)
        _ = self.batch_shape  # shapes that do not broadcast are an error here
        if isinstance(monitoring, Tensor):
            _check_within_life(monitoring, self.expiry)

    @property
    def batch_shape(self) -> torch.Size:
        watched = self.monitoring.shape[:-1] if isinstance(self.monitoring, Tensor) else torch.Size()
        return broadcast_shape(
            strike=self.strike, expiry=self.expiry, barrier=self.barrier, rebate=self.rebate, monitoring=watched
        )

    @property
    def dates(self) -> Tensor:
        last = self.expiry.unsqueeze(-1)
        if not isinstance(self.monitoring, Tensor):
            return last
        shape = broadcast_shape(monitoring=self.monitoring.shape[:-1], expiry=self.expiry)
        return torch.cat([self.monitoring.expand(*shape, -1), last.expand(*shape, 1)], dim=-1)

    @property
    def continuous(self) -> bool:
        return not isinstance(self.monitoring, Tensor)

    @property
    def discontinuous(self) -> bool:
        return not self.continuous

    @property
    def down(self) -> bool:
        """Whether the barrier lies below the spot of today."""
        return self.kind.startswith("down")

    @property
    def out(self) -> bool:
        """Whether the option dies at the barrier."""
        return self.kind.endswith("out")

    def shifted(self, elapsed: Tensor) -> Barrier:
        if not isinstance(self.monitoring, Tensor):
            return replace(self, expiry=self.expiry - elapsed)
        return replace(self, expiry=self.expiry - elapsed, monitoring=self.monitoring - elapsed)

    def payoff(self, paths: Paths, discount: Discount) -> Tensor:
        spot = paths.at(self.expiry.unsqueeze(-1))[..., 0]
        paid = exercised(spot, self.strike.unsqueeze(-1), self.option)
        at_expiry = discount(self.expiry).unsqueeze(-1)
        rebate = self.rebate.unsqueeze(-1)
        watched = (
            self._on_dates(paths, discount) if isinstance(self.monitoring, Tensor) else self._always(paths, discount)
        )
        if self.out:
            return watched.alive * paid * at_expiry + rebate * watched.hit_discount
        return ((1.0 - watched.alive) * paid + watched.alive * rebate) * at_expiry

    def _on_dates(self, paths: Paths, discount: Discount) -> _Watched:
        """What happened on the dates of monitoring; the first date beyond the barrier pays the rebate."""
        assert isinstance(self.monitoring, Tensor)
        spot, level = paths.at(self.monitoring), self.barrier[..., None, None]
        beyond = spot <= level if self.down else spot >= level
        hit = beyond.any(dim=-1)
        alive = torch.where(hit, 0.0, torch.ones_like(spot[..., 0]))
        first = beyond.to(torch.uint8).argmax(dim=-1)
        at_dates = _curve(discount, self.monitoring).unsqueeze(-2)
        shape = broadcast_shape(market=at_dates.shape[:-2], paths=first.shape[:-1])
        at_dates = at_dates.expand(*shape, first.shape[-1], -1)
        at_hit = at_dates.gather(-1, first.expand(*shape, -1).unsqueeze(-1)).squeeze(-1)
        return _Watched(alive, torch.where(hit, at_hit, 0.0))

    def _always(self, paths: Paths, discount: Discount) -> _Watched:
        """What happened at all times: drawn where the paths have uniforms for it, else in probability.

        In probability given the recorded points a price has less noise. What is not linear in the payoff, such as the
        risk of owing it, needs the draw.
        """
        if paths.variance is None:
            raise ValueError(
                "a barrier watched continuously needs the variance of the log price over each step, which this scheme "
                "does not give; state the times in `monitoring`"
            )
        check_not_crossed(self, paths.spot[..., 0, 0])
        sign = 1.0 if self.down else -1.0
        distance = sign * torch.log(paths.spot / self.barrier[..., None, None])
        over = paths.times[1:].detach() > self.expiry.detach()[..., None, None] + SAME_DATE
        variance = paths.variance
        log_survival, dead = step_survival(distance[..., :-1], distance[..., 1:], variance)
        log_survival, dead = torch.where(over, 0.0, log_survival), dead & ~over

        survival = survival_so_far(log_survival, dead, paths.bridge_uniforms)
        if not self.out:
            return _Watched(survival[..., -1], torch.zeros_like(survival[..., -1]))
        before = torch.cat([torch.ones_like(survival[..., :1]), survival[..., :-1]], dim=-1)
        share = mean_hit_share(distance[..., :-1], distance[..., 1:], variance)
        at_times = _curve(discount, paths.times).log().unsqueeze(-2)
        at_hit = torch.exp(at_times[..., :-1] + at_times.diff(dim=-1) * share)
        return _Watched(survival[..., -1], ((before - survival) * at_hit).sum(dim=-1))


def step_survival(start: Tensor, end: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithm of the probability that a Brownian bridge stays above 0, and where it certainly does not.

    $$\log\left(1 - e^{-2ab/v}\right)$$

    Args:
        start: $a$, where the bridge starts.
        end: $b$, where it ends.
        variance: $v$ over the step, 0 or more.

    Returns:
        The logarithm (0 where an end is not above 0), and the mask of those.

    References:
        Glasserman (2004), section 6.4, eq. 6.51.
    """
    dead = (start <= 0) | (end <= 0)
    product = 2.0 * start * end
    near = ~dead & (product < CERTAIN * variance)  # elsewhere the probability to cross is 0 in any precision
    exponent = torch.where(near, product, 1.0) / torch.where(near, variance, 1.0)
    return torch.where(near, torch.log(-torch.expm1(-exponent)), 0.0), dead


def survival_so_far(log_survival: Tensor, dead: Tensor, uniforms: Tensor | None) -> Tensor:
    r"""Whether, or how probably, no step up to each has touched the barrier.

    A bridge touches it where $u < 1 - e^{s}$, for a uniform $u$ and the logarithm $s$ of its survival: where the
    extreme that a lookback option draws by the same uniform lies beyond.

    Args:
        log_survival: of each step; see `step_survival`.
        dead: steps that have certainly touched it.
        uniforms: one for each step, of the same shape but for batch axes; None for the probability.

    References:
        Glasserman (2004), section 6.4, for the draw.
    """
    if uniforms is None:
        return torch.where(dead.cumsum(dim=-1) > 0, 0.0, log_survival.cumsum(dim=-1).exp())
    touched = dead | (uniforms < -torch.expm1(log_survival))
    return (touched.cumsum(dim=-1) == 0).to(log_survival.dtype)


def mean_hit_share(start: Tensor, end: Tensor, variance: Tensor) -> Tensor:
    r"""Mean time at which a Brownian bridge first touches 0, given that it does, as a share of the step.

    $$\frac{E[\tau \mid \tau \le \Delta]}{\Delta} = \alpha\,\frac{N(-\alpha - \beta)}{n(\alpha + \beta)}, \qquad
      \alpha = \frac{a}{\sqrt v}, \quad \beta = \frac{|b|}{\sqrt v}$$

    It follows from the first-passage density at $t$ times the transition density from 0 to $b$ over $\Delta - t$: the
    Laplace transform of their convolution, weighted with $t$, is $a e^{-(a + |b|)\sqrt{2s}} / 2s$.

    Args:
        start: $a$; where it is not above 0 the share is 0.
        end: $b$, of any sign.
        variance: $v$ over the step.

    Returns:
        Numbers in [0, 1]; one half where the variance is 0.
    """
    moving = variance > 0
    root = torch.where(moving, variance, 1.0).sqrt()
    alpha = start.clamp(min=0.0) / root
    return torch.where(moving, alpha * mills_ratio(alpha + end.abs() / root), 0.5)


def check_not_crossed(instrument: Barrier, spot: Tensor) -> None:
    """Refuse a contract whose barrier, watched continuously, is crossed today.

    Args:
        instrument: the contract.
        spot: price today; broadcasts with the batch of the contract.

    Raises:
        ValueError: naming barrier and spot.
    """
    shape = broadcast_shape(barrier=instrument.barrier, spot=spot)
    level, today = instrument.barrier.detach().expand(shape), spot.detach().expand(shape)
    crossed = today <= level if instrument.down else today >= level
    if bool(crossed.any()):
        rule = "below" if instrument.down else "above"
        raise ValueError(
            f"`barrier` of kind {instrument.kind!r} must lie {rule} the spot, got {level[crossed][0].item():g} at a "
            f"spot of {today[crossed][0].item():g}: it is crossed already; a dead option is worth its paid rebate, "
            "one that is alive is a European"
        )


def _check_within_life(times: Tensor, expiry: Tensor) -> None:
    last = times.detach()[..., -1]
    shape = broadcast_shape(monitoring=last, expiry=expiry)
    last, end = last.expand(shape), expiry.detach().expand(shape)
    late = last > end + SAME_DATE
    if bool(late.any()):
        raise ValueError(
            f"`monitoring` must end by `expiry`, got {last[late][0].item():g} after an expiry of "
            f"{end[late][0].item():g}; leave later times out"
        )


def _curve(discount: Discount, times: Tensor) -> Tensor:
    """Discount factors along the last axis of `times`, with the batch of the market before it."""
    if times.ndim == 1:
        market_axes = discount(times[0]).ndim
        return discount(times.reshape(-1, *[1] * market_axes)).movedim(0, -1)
    return torch.stack([discount(time) for time in times.unbind(dim=-1)], dim=-1)
