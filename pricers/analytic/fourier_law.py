"""The laws that a Fourier series asks for: of a model's log-ratio at a date, or of its growth between two dates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from pricers.characteristic import (
    heston_log_characteristic,
    heston_log_moment,
    jump_log_characteristic,
    jump_log_moment,
)
from pricers.fourier import Law
from pricers.models.base import Model
from pricers.models.bates import Bates, Merton
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.parameters import broadcast_shape

__all__ = ["ForwardReturn", "forward_return", "model_law", "per_strike"]


def model_law(model: Model, expiry: Tensor) -> Law:
    """The law of the log-ratio at `expiry`, years, under every parameter set of the batch, flattened to rows.

    Raises:
        ValueError: the shapes do not broadcast.
    """
    return _law(model, expiry, broadcast_shape(model=model.batch_shape, expiry=expiry))


def _law(model: Model, expiry: Tensor, shape: torch.Size) -> Law:
    flat = {name: tensor.expand(shape).reshape(-1) for name, tensor in model.parameters().items()}
    times = expiry.expand(shape).reshape(-1)

    def rows_of(rows: Tensor) -> tuple[Any, Tensor]:
        if rows.numel() == times.numel() == 1:
            return _with(model, flat), times
        return _with(model, {name: tensor[rows] for name, tensor in flat.items()}), times[rows]

    def log_characteristic(rows: Tensor, u: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        part, time = rows_of(rows)
        return part.log_characteristic(u, time, shift)

    def log_moment(rows: Tensor, order: Tensor) -> Tensor:
        part, time = rows_of(rows)
        return part.log_moment(order, time)

    whole = cast("Any", _with(model, flat))
    with torch.no_grad():
        if hasattr(model, "log_moment"):
            # -w/8 under a normal law of variance w, and finite under all
            half = whole.log_moment(times.new_full((1,), 0.5), times).detach().squeeze(-1)
            return Law(log_characteristic, torch.sqrt(-8.0 * half), log_moment=log_moment)
        first, second, fourth = (cumulant.detach() for cumulant in whole.cumulants(times))
    return Law(log_characteristic, torch.sqrt(second), cumulants=(first, second, fourth))


M = TypeVar("M", bound=Model)


def _with(model: M, parameters: dict[str, Tensor]) -> M:
    """The model with other values of its tensors; they come from a valid model and are not checked again."""
    copy = object.__new__(type(model))
    for field in fields(cast("Any", model)):
        object.__setattr__(copy, field.name, parameters.get(field.name, getattr(model, field.name)))
    return copy


def per_strike(
    model: Model,
    expiry: Tensor,
    log_strike: Tensor,
    series: Callable[[Law, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """`series` with the axes that only strikes have moved behind those of the law: they share its evaluation."""
    expiry = _unexpanded(expiry)
    law_shape = broadcast_shape(model=model.batch_shape, expiry=expiry)
    shape = broadcast_shape(law=law_shape, strike=log_strike)
    padded = (1,) * (len(shape) - len(law_shape)) + tuple(law_shape)
    shared = [axis for axis, size in enumerate(shape) if padded[axis] == 1 and size > 1]
    own = [axis for axis in range(len(shape)) if axis not in shared]
    order = own + shared
    table = log_strike.expand(shape).permute(order)
    n_strikes = math.prod(shape[axis] for axis in shared)
    value, bound = series(_law(model, expiry, law_shape), table.reshape(-1, n_strikes))
    back = [order.index(axis) for axis in range(len(shape))]
    return value.reshape(table.shape).permute(back), bound.reshape(table.shape).permute(back)


def _unexpanded(tensor: Tensor) -> Tensor:
    """Axes that only repeat one element are cut to length 1."""
    for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def forward_return(model: Model, reset: Tensor, numeraire: bool) -> Model | None:
    """A model whose log-ratio at $\\tau$ is that of `model` between `reset` and `reset` + $\\tau$; None if unknown.

    Args:
        model: dynamics of the asset.
        reset: years to the start of the growth.
        numeraire: until the reset under the measure whose numeraire is the asset: what is paid is the growth times the
            price at the reset, $S_t f(S_T / S_t)$; else $f(S_T / S_t)$ alone.
    """
    if isinstance(model, BlackScholes | Merton):
        return model  # its growth does not depend on when it begins
    if isinstance(model, Heston | Bates):
        return ForwardReturn(reset, numeraire, **model.parameters())
    return None


@dataclass(frozen=True, eq=False)
class ForwardReturn(Model):
    r"""The growth of Heston's asset, with or without jumps, from a later date on.

    Given the variance at the reset, $E\,e^{z X} = e^{C + D v_t}$ over the time $\tau$ that follows, and $v_t$ is a
    noncentral chi-square variable with Laplace transform

    $$E\,e^{D v_t} = (1 - 2 g D)^{-2 \kappa\theta / \sigma^2}
      \exp\frac{D e^{-k t} v_0}{1 - 2 g D}, \qquad g = \frac{\sigma^2 (1 - e^{-k t})}{4 k},$$

    with $k = \kappa$, and $k = \kappa - \rho\sigma$ where the asset is the numeraire until then. The real part of $D$
    is not positive in the strip of $z$ that is used, so that the principal branch is the right one.

    Args:
        reset: $t$, years to the start of the growth.
        numeraire: the measure until the reset is that of the asset as numeraire.
        v0: variance today, per year.
        kappa: speed of mean reversion, per year.
        theta: long-run variance, per year.
        sigma: volatility of variance.
        rho: correlation of asset and variance.
        intensity: jumps a year; None without jumps.
        jump_mean: mean of the log jump.
        jump_std: standard deviation of the log jump.

    References:
        Kruse and Noegel (2005), On the pricing of forward starting options in Heston's model on stochastic volatility,
        theorem 2.1; Hong (2004), Forward smile and derivative pricing.
    """

    kind: ClassVar[str] = "forward_return"
    reset: Tensor
    numeraire: bool
    v0: Tensor
    kappa: Tensor
    theta: Tensor
    sigma: Tensor
    rho: Tensor
    intensity: Tensor | None = None
    jump_mean: Tensor | None = None
    jump_std: Tensor | None = None

    def log_characteristic(self, u: Tensor, expiry: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        r"""Real and imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$.

        Args:
            u: real arguments along the last axis, shape `*batch n_u` or `n_u`.
            expiry: years after the reset, shape `*batch`.
            shift: in [0, 1].
        """
        kappa, theta, sigma, rho, time = self._columns(expiry)
        ends = self._zero_and_one(expiry, u)
        real, imaginary = heston_log_characteristic(u, time, ends, kappa, theta, sigma, rho, shift=shift)
        d_real, d_imag = real[1] - real[0], imaginary[1] - imaginary[0]
        decay, twice_g, degrees = self._variance_law()
        # 1 - 2 g D has a real part of 1 or more
        w_real, w_imag = -twice_g * d_real, -twice_g * d_imag
        one = 1.0 + w_real
        size = torch.addcmul(one * one, w_imag, w_imag)
        start = self.v0.unsqueeze(-1) * decay / size  # D / (1 - 2 g D) times its conjugate's denominator
        log_size = torch.log1p(torch.addcmul(w_real * (1.0 + one), w_imag, w_imag))
        real = real[0] + start * torch.addcmul(d_real * one, d_imag, w_imag) - 0.5 * degrees * log_size
        angle = torch.atan2(w_imag, one)
        imaginary = imaginary[0] + start * torch.addcmul(d_imag * one, d_real, w_imag, value=-1.0) - degrees * angle
        if self.intensity is None or self.jump_mean is None or self.jump_std is None:
            return real, imaginary
        jumps = (tensor.unsqueeze(-1) for tensor in (expiry, self.intensity, self.jump_mean, self.jump_std))
        jump_real, jump_imag = jump_log_characteristic(u, *jumps, shift=shift)
        return real + jump_real, imaginary + jump_imag

    def log_moment(self, order: Tensor, expiry: Tensor) -> Tensor:
        r"""$\log E\,e^{qX}$ at the real orders $q$ along the last axis; infinite where the moment is."""
        kappa, theta, sigma, rho, time = self._columns(expiry)
        constant, total = heston_log_moment(order, time, self._zero_and_one(expiry, order), kappa, theta, sigma, rho)
        finite = torch.isfinite(total)
        slope = torch.where(finite, total - constant, 0.0)
        decay, twice_g, degrees = self._variance_law()
        room = 1.0 - twice_g * slope
        finite = finite & (room > 0.0)
        room = torch.where(finite, room, 1.0)
        found = constant + self.v0.unsqueeze(-1) * decay * slope / room - degrees * torch.log(room)
        if self.intensity is not None and self.jump_mean is not None and self.jump_std is not None:
            jumps = (tensor.unsqueeze(-1) for tensor in (expiry, self.intensity, self.jump_mean, self.jump_std))
            found = found + jump_log_moment(order, *jumps)
        return torch.where(finite, found, torch.inf)

    def _columns(self, expiry: Tensor) -> list[Tensor]:
        return [tensor.unsqueeze(-1) for tensor in (self.kappa, self.theta, self.sigma, self.rho, expiry)]

    def _zero_and_one(self, expiry: Tensor, u: Tensor) -> Tensor:
        """Two variances at once, whose exponents C and C + D share what is dear; a new first axis."""
        n_axes = max(len(broadcast_shape(model=self.batch_shape, expiry=expiry)) + 1, u.ndim)
        return torch.tensor([0.0, 1.0], dtype=u.dtype, device=u.device).reshape(2, *(1,) * n_axes)

    def _variance_law(self) -> tuple[Tensor, Tensor, Tensor]:
        r"""$e^{-kt}$, $2 g$ and $2 \kappa\theta / \sigma^2$, each with a last axis of length 1."""
        vol_squared = self.sigma * self.sigma
        speed = self.kappa - self.rho * self.sigma if self.numeraire else self.kappa
        decay = torch.exp(-speed * self.reset)
        twice_g = 0.5 * vol_squared * self.reset * _mean_decay(speed * self.reset)
        return decay.unsqueeze(-1), twice_g.unsqueeze(-1), (2.0 * self.kappa * self.theta / vol_squared).unsqueeze(-1)


def _mean_decay(x: Tensor) -> Tensor:
    """(1 - exp(-x)) / x for any real x, twice differentiable at 0."""
    small = x.abs() < 1e-3
    series = 1.0 - 0.5 * x * (1.0 - x / 3.0 * (1.0 - 0.25 * x * (1.0 - 0.2 * x)))
    safe = torch.where(small, 1.0, x)
    return torch.where(small, series, -torch.expm1(-safe) / safe)
