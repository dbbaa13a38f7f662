"""Prices of calls, puts and digitals under any model with a characteristic function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pricers.estimate import Estimate
from pricers.fourier import Law, cos_digital, cos_european
from pricers.instruments import European
from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.models.base import Characteristic, Model
from pricers.parameters import broadcast_shape, common_dtype, converted, whole

__all__ = ["Fourier", "model_law"]


@dataclass(frozen=True)
class Fourier:
    r"""COS series: the density of $\log S_T$ as a cosine series whose coefficients the characteristic function gives.

    The range and the number of terms follow from the moments and the decay of the characteristic function, for each
    parameter set and expiry; strikes of one law share its evaluation, so let them be an axis of their own rather than
    repeating the model. `error_bound` states what range, series and rounding may add up to, 1e-9 of the forward or less
    unless `n_terms` is too small.

    Args:
        n_terms: terms of the series; None: as many as the accuracy needs.

    Raises:
        ValueError: `n_terms` below 2.

    References:
        Fang and Oosterlee (2008), A novel pricing method for European options based on Fourier-cosine series
        expansions; Junike and Pankrashkin (2022), Precise option pricing by the COS method: how to choose the
        truncation range.

    >>> from pricers.models.heston import Heston
    >>> model = Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
    >>> market = Market(spot=100.0, rate=0.01, dividend_yield=0.02)
    >>> estimate = Fourier().price(European(strike=100.0, expiry=1.0, option="call"), model, market)
    >>> round(estimate.value.item(), 8), estimate.error_bound.item() < 1e-8
    (16.07015492, True)
    """

    n_terms: int | None = None

    def __post_init__(self) -> None:
        if self.n_terms is not None:
            object.__setattr__(self, "n_terms", whole("n_terms", self.n_terms, at_least=2))  # the class is frozen

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why this engine cannot price the three together, or None."""
        if not isinstance(instrument, European) and instrument.kind != "digital":
            return "Fourier prices European and Digital options only"
        if not isinstance(model, Characteristic):
            return f"{type(model).__name__} has no characteristic function"
        if model.n_assets > 1:
            return "Fourier prices options on one asset only"
        if market.dividends is not None:
            return "Fourier takes dividends as a yield, not as cash amounts"
        return None

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value of the instrument with the bound of its numerical error.

        Raises:
            ValueError: the engine cannot price the three together; shapes that do not broadcast.
        """
        reason = self.refusal(instrument, model, market)
        if reason is not None:
            raise ValueError(reason)
        dtype = common_dtype(instrument, model, market)
        if dtype != torch.float64:  # a series to 1e-9 needs float64 inside
            double = [converted(item, torch.float64, market.spot.device) for item in (instrument, model, market)]
            found = self.price(*cast("tuple[Instrument, Model, Market]", tuple(double)))
            value = found.value.to(dtype)
            rounding = torch.finfo(dtype).eps * value.detach().abs()
            return Estimate(value, 0.0, found.error_bound.to(dtype) + rounding, engine=found.engine)
        option = cast("Any", instrument)  # European or Digital, as `refusal` has seen
        strike, expiry = cast("Tensor", option.strike), cast("Tensor", option.expiry)
        batch = model.batch_shape
        broadcast_shape(strike=strike, expiry=expiry, model=batch, market=market.batch_shape())
        forward, discount = market.forward(expiry), market.discount(expiry)
        log_strike = torch.log(strike / forward)
        if isinstance(instrument, European):
            value, bound = _per_strike(
                model, batch, expiry, log_strike, lambda law, x: cos_european(law, x, n_terms=self.n_terms)
            )
            # the same side as in the series: parity where the option is in the money
            in_money = (log_strike.detach() <= 0.0) == (option.option == "call")
            sign = 1.0 if option.option == "call" else -1.0
            zero = torch.zeros((), dtype=value.dtype, device=value.device)
            value = discount * (forward * value + torch.where(in_money, sign * (forward - strike), zero))
            bound = forward.detach() * bound + 4.0 * torch.finfo(value.dtype).eps * strike.detach()
            return Estimate(value, 0.0, discount.detach() * bound, engine="fourier")
        shift = 0.0 if option.pays == "cash" else 1.0
        value, bound = _per_strike(
            model, batch, expiry, log_strike, lambda law, x: cos_digital(law, x, shift, n_terms=self.n_terms)
        )
        paid = discount if option.pays == "cash" else discount * forward
        in_money = (log_strike.detach() <= 0.0) == (option.option == "call")
        value = paid * torch.where(in_money, 1.0 - value, value)
        return Estimate(value, 0.0, paid.detach() * bound, engine="fourier")


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


def _per_strike(
    model: Model,
    batch: torch.Size,
    expiry: Tensor,
    log_strike: Tensor,
    series: Callable[[Law, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """`series` with the axes that only strikes have moved behind those of the law: they share its evaluation."""
    expiry = _unexpanded(expiry)
    law_shape = broadcast_shape(model=batch, expiry=expiry)
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
