"""SABR: a forward of constant elasticity of variance whose volatility is lognormal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.instruments.base import Instrument
from pricers.instruments.variance import VarianceOption, VarianceSwap
from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model, Scheme, State, Step
from pricers.normal import normal_cdf
from pricers.parameters import broadcast_shape, within

__all__ = ["SABR", "absorbed_martingale_step", "expm1_ratio", "geometric_variance", "unfit_for_variance"]

SWITCH = (
    1.5  # squared coefficient of variation at which the two branches of the step meet (Andersen, 2008, section 3.2)
)
ABSORBED = 1e-12  # a shifted forward below this share of today's is at 0


def absorbed_martingale_step(ratio: Tensor, relative_variance: Tensor, normal: Tensor) -> Tensor:
    r"""A positive martingale after one step: mean `ratio`, variance `relative_variance` * `ratio`^2, an atom at 0.

    With $\psi$ the relative variance, a scaled square of a normal, $\frac{x}{1+b^2}(b + Z)^2$ with
    $b^2 = 2/\psi - 1 + \sqrt{2/\psi}\sqrt{2/\psi - 1}$, for $\psi < 3/2$, else 0 with probability
    $(\psi - 1) / (\psi + 1)$ and exponential above it. Both have exactly the two moments; the result grows with the
    normal and is 0 once `ratio` is.

    Args:
        ratio: the martingale before the step, 0 or more.
        relative_variance: variance over the step by the square of `ratio`, above 0; not read where `ratio` is 0.
        normal: standard normals.

    Returns:
        The martingale after the step, 0 or more.

    References:
        Andersen (2008), Simple and efficient simulation of the Heston stochastic volatility model, eq. 23-30.

    >>> one = torch.ones(3, dtype=torch.float64)
    >>> absorbed_martingale_step(one, 4.0 * one, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    tensor([0.0000, 0.0000, 2.3118], dtype=torch.float64)
    """
    inner = relative_variance < SWITCH
    twice = 2.0 / torch.where(inner, relative_variance, 1.0)
    b_squared = twice - 1.0 + torch.sqrt(twice * (twice - 1.0))  # Andersen (2008), eq. 27
    quadratic = ratio / (1.0 + b_squared) * (torch.sqrt(b_squared) + normal) ** 2  # eq. 23 and 28
    half = 0.5 * (1.0 + torch.where(inner, SWITCH, relative_variance))  # 1 / (1 - p), eq. 29
    upper_tail = normal_cdf(-normal)  # a uniform that falls as the normal grows
    exponential = ratio * half * (-torch.log(upper_tail * half)).clamp(min=0.0)  # eq. 25
    return torch.where(inner, quadratic, exponential)


def unfit_for_variance(model: SABR) -> str | None:
    """Why the realised variance of the log price is not finite under the model; None if it is."""
    lowest = model.beta.detach().min().item()
    if lowest < 1.0:
        return (
            f"the realised variance of the log price needs `beta` = 1, got {lowest:g}: below 1 the forward reaches 0 "
            "with positive probability, and that variance is infinite; use `beta` = 1 or another model"
        )
    return _unfit_for_logarithms(model)


def _unfit_for_logarithms(model: SABR) -> str | None:
    largest = model.shift.detach().max().item()
    if largest > 0.0:
        return (
            f"a contract watched at all times needs `shift` = 0, got {largest:g}: with a shift the price may fall "
            "below 0, where it has no logarithm; set `shift` to 0, or take dates"
        )
    return None


def geometric_variance(start: Tensor, end: Tensor, nu: Tensor, dt: Tensor) -> Tensor:
    r"""Expected $\int \sigma_s^2\,ds$ over a step of $d\sigma = \nu\sigma\,dZ$, given both ends.

    Between its ends $\log\sigma$ is a Brownian bridge, so the integrand's expectation is
    $\sigma_0^{2(1-s)}\sigma_1^{2s} e^{2\nu^2 dt\,s(1-s)}$ at the share $s$ of the step; the integral by Simpson's rule.

    Args:
        start: volatility at the start of the step.
        end: volatility at its end.
        nu: volatility of the volatility.
        dt: length of the step, years.

    Returns:
        Expected integrated variance over the step.

    >>> half = torch.tensor(0.5, dtype=torch.float64)
    >>> geometric_variance(half, half, 0.0 * half, half)
    tensor(0.1250, dtype=torch.float64)
    """
    return dt / 6.0 * (start**2 + 4.0 * start * end * torch.exp(0.5 * nu**2 * dt) + end**2)


class Absorbed(DirectScheme):
    r"""Volatility exact, the forward a positive martingale with the moments of a frozen coefficient, absorbed at 0.

    Over a step the shifted forward $X$ has mean $X$ and variance $\sigma^2 X^{2\beta} dt$, and its noise has the
    correlation rho with that of the volatility. A true martingale at any step; of weak order 1.
    """

    n_normals: ClassVar[int] = 2

    def start(self, model: SABR, market: Market, horizon: Tensor) -> State:
        shifted = model.shifted_forward(market, horizon)
        vol = model.alpha * torch.exp((model.beta - 1.0) * torch.log(shifted))  # Black's, of the shifted forward
        one = vol.new_ones(*broadcast_shape(model=model.batch_shape, horizon=shifted), 1)
        forward = shifted - model.shift
        return one, vol.unsqueeze(-1), (model.shift / forward).unsqueeze(-1)

    def coefficients(self, model: SABR, market: Market, time: Tensor, dt: Tensor) -> State:
        spread = model.nu * torch.sqrt(dt)
        off = torch.sqrt((1.0 - model.rho) * (1.0 + model.rho))
        numbers = (dt, spread, model.rho, off, 2.0 * model.beta - 2.0)
        return tuple(number.unsqueeze(-1) for number in numbers)

    def advance(self, coefficients: State, state: State, normals: Tensor) -> State:
        dt, spread, rho, off, exponent = coefficients
        ratio, vol, shift_share = state
        alive = ratio > ABSORBED
        safe = torch.where(alive, ratio, 1.0)
        # not by `**`, whose second derivatives are wrong at exponent 0 (torch sets them to 0)
        relative_variance = vol**2 * torch.exp(exponent * torch.log(safe)) * dt
        moved = absorbed_martingale_step(safe, relative_variance, rho * normals[0] + off * normals[1])
        vol = vol * torch.exp(spread * normals[0] - 0.5 * spread**2)
        return torch.where(alive, moved, 0.0), vol, shift_share

    def ratio(self, state: State) -> Tensor:
        ratio, _, shift_share = state
        return ratio + shift_share * (ratio - 1.0)

    def between_refusal(self, instrument: Instrument, model: SABR) -> str | None:
        """A logarithm of the price is needed, and for contracts on its variance a finite one."""
        if isinstance(instrument, VarianceSwap | VarianceOption):
            return unfit_for_variance(model)
        return _unfit_for_logarithms(model)

    def variance(self, coefficients: State, state: State, later: State) -> Tensor:
        r"""Integrated local variance $\int\sigma^2 X^{2\beta-2} ds$ of the log price, given both ends of the step.

        $X^{1-\beta}$ has the volatility $(1-\beta)\sigma$ whatever X is. Where it runs straight from end to end, the
        mean of $X^{2\beta-2}$ is exactly $(X_0 X_1)^{\beta-1}$. Near 0, where a bridge of the logarithm makes no sense,
        the result $v$ is held below $1/(1-\beta)$ by $v / (1 + (1-\beta)v)$, a change of second order in the step.
        """
        dt, spread, _, _, exponent = coefficients
        (start, vol, _), (end, later_vol, _) = state, later
        alive = start > ABSORBED
        safe = torch.where(alive, start, 1.0)
        reached = torch.where(end > ABSORBED, end, safe)
        local = torch.exp(0.5 * exponent * (torch.log(safe) + torch.log(reached)))
        variance = dt * geometric_variance(vol, later_vol, spread, torch.ones_like(dt)) * local
        return torch.where(alive, variance / (1.0 - 0.5 * exponent * variance), 0.0)

    def factor(self, state: State) -> Tensor:
        """The volatility."""
        return state[1]


class LognormalGivenVol(Scheme):
    r"""For beta = 1 without shift: the forward is lognormal given the volatility, which is exact.

    $\int\sigma\,dZ = (\sigma_1 - \sigma_0)/\nu$ exactly and $\int\sigma^2 ds$ by its expectation given both ends, so
    that the step has weak order 2.
    """

    n_normals: ClassVar[int] = 1

    def keeps_forward(self, model: SABR, dt: Tensor) -> bool:
        """No: the variance of a step is taken at its mean given both ends."""
        return False

    def refusal(self, model: SABR) -> str | None:
        """It is for lognormal forwards."""
        if bool((model.beta.detach() != 1.0).any()) or bool((model.shift.detach() != 0.0).any()):
            return "the scheme 'lognormal' of SABR needs `beta` = 1 and `shift` = 0; use 'absorbed'"
        return None

    def start(self, model: SABR) -> State:
        return (model.alpha.unsqueeze(-1),)

    def coefficients(self, model: SABR, market: Market, time: Tensor, dt: Tensor) -> State:
        return tuple(number.unsqueeze(-1) for number in (dt, model.nu, model.rho))

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        dt, nu, rho = coefficients
        (vol,) = state
        driver = torch.sqrt(dt) * normals[0] - 0.5 * nu * dt
        exponent = nu * driver  # log(sigma_1 / sigma_0)
        later = vol * torch.exp(exponent)
        stochastic = vol * driver * expm1_ratio(exponent)  # (sigma_1 - sigma_0) / nu, through nu = 0
        variance = geometric_variance(vol, later, nu, dt)
        drift = rho * stochastic - 0.5 * variance
        return Step((later,), drift, (1.0 - rho) * (1.0 + rho) * variance, variance)


def expm1_ratio(x: Tensor) -> Tensor:
    """(exp(x) - 1) / x with correct derivatives at 0."""
    small = x.abs() < 0.02
    near, far = torch.where(small, x, 0.0), torch.where(small, 1.0, x)
    series = torch.full_like(near, 1.0 / math.factorial(8))
    for k in range(7, 0, -1):
        series = series * near + 1.0 / math.factorial(k)
    return torch.where(small, series, torch.expm1(far) / far)


@dataclass(frozen=True, eq=False, init=False)
class SABR(Model):
    r"""SABR of Hagan and others on the market's forward $F$ to the last date of the contract.

    $$dF = \sigma (F + s)^\beta\,dW,\quad d\sigma = \nu\sigma\,dZ,\quad \sigma_0 = \alpha,\quad dW\,dZ = \rho\,dt$$

    The shifted forward $F + s$ is absorbed at 0. A forward or a strike below 0 fits neither `Market` nor a contract:
    price the shifted forward itself, `strike + shift` on a `Market` whose forward is $F + s$ (where `dividend_yield` is
    `rate` the spot is the forward) with `shift` 0, which is the same option.

    With beta = 1 and rho > 0 the forward is a local martingale only
    (Jourdain, 2004), so that prices of calls depend on what is meant by them.

    Args:
        alpha: volatility today, above 0, in units of forward^(1-beta) per square root of a year; shape `*batch`.
        beta: exponent of the shifted forward, in [0, 1]; shape `*batch`.
        rho: correlation of forward and volatility, in (-1, 1); shape `*batch`.
        nu: volatility of the volatility, 0 or more; shape `*batch`.
        shift: what is added to the forward, 0 or more; shape `*batch`.

    Raises:
        ValueError: a parameter outside its range, or shapes that do not broadcast.

    References:
        Hagan, Kumar, Lesniewski and Woodward (2002), Managing smile risk, section 2.
        Jourdain (2004), Loss of martingality in asset price models with lognormal stochastic volatility.

    >>> SABR(alpha=0.25, beta=[0.3, 0.5, 1.0], rho=-0.8, nu=0.3).batch_shape
    torch.Size([3])
    """

    kind: ClassVar[str] = "sabr"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"absorbed": Absorbed(), "lognormal": LognormalGivenVol()}
    alpha: Tensor
    beta: Tensor
    rho: Tensor
    nu: Tensor
    shift: Tensor

    def __init__(self, alpha: Any, beta: Any, rho: Any, nu: Any, shift: Any = 0.0) -> None:
        object.__setattr__(self, "alpha", within("alpha", alpha, above=0.0))
        object.__setattr__(self, "beta", within("beta", beta, at_least=0.0, at_most=1.0))
        object.__setattr__(self, "rho", within("rho", rho, above=-1.0, below=1.0))
        object.__setattr__(self, "nu", within("nu", nu, at_least=0.0))
        object.__setattr__(self, "shift", within("shift", shift, at_least=0.0, like=self.alpha))
        broadcast_shape(**self.parameters())

    def shifted_forward(self, market: Market, expiry: Tensor) -> Tensor:
        """The market's forward to `expiry`, years, plus the shift.

        Raises:
            ValueError: it is not above 0.
        """
        shifted = market.forward(expiry) + self.shift
        failed = ~(shifted.detach() > 0.0)
        if bool(failed.any()):
            worst = shifted.detach()[failed][0].item()
            raise ValueError(f"forward + `shift` must be above 0, got {worst:g}; use a larger `shift`")
        return shifted
