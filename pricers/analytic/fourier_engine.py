"""Prices from a characteristic function: calls, puts, digitals, forward starts and cliquets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from pricers.analytic.fourier_law import forward_return, model_law, per_strike
from pricers.estimate import Estimate
from pricers.fourier import cos_digital, cos_european
from pricers.instruments import Cliquet, European, ForwardStart
from pricers.instruments.base import Instrument, call_sign
from pricers.market import Market
from pricers.models.base import Characteristic, Model
from pricers.parameters import broadcast_shape, common_dtype, converted, whole

__all__ = ["Fourier", "model_law"]


@dataclass(frozen=True)
class Fourier:
    r"""COS series: the density of $\log S_T$ as a cosine series whose coefficients the characteristic function gives.

    Calls, puts and digitals under every model with a characteristic function; forward starts, and cliquets without a
    global floor or cap (a sum of forward starts), where that of the growth between two later dates is known:
    `BlackScholes`, `Merton`, `Heston` and `Bates`.

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
        forward = isinstance(instrument, ForwardStart | Cliquet)
        if not forward and not isinstance(instrument, European) and instrument.kind != "digital":
            return "Fourier prices European, Digital, ForwardStart and Cliquet contracts only"
        if isinstance(instrument, Cliquet) and not (instrument.global_floor is None is instrument.global_cap):
            return "a cliquet with a global floor or cap is no sum of forward starts; simulate it"
        if not isinstance(model, Characteristic):
            return f"{type(model).__name__} has no characteristic function"
        if model.n_assets > 1:
            return "Fourier prices options on one asset only"
        if forward and forward_return(model, instrument.dates[..., 0], numeraire=True) is None:
            return (
                f"the growth between two later dates under {type(model).__name__} has no known characteristic function"
            )
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
        if isinstance(instrument, Cliquet):
            return self._cliquet(instrument, model, market)
        option = cast("Any", instrument)  # European, ForwardStart or Digital, as `refusal` has seen
        expiry = cast("Tensor", option.expiry)
        terms = {name: getattr(option, name) for name in ("strike", "moneyness", "reset") if hasattr(option, name)}
        broadcast_shape(**terms, expiry=expiry, model=model.batch_shape, market=market.batch_shape())
        forward, discount = market.forward(expiry), market.discount(expiry)
        if isinstance(instrument, ForwardStart):
            # a call on S_T struck at m S_t is, with S as numeraire until t, F_t calls on the growth from t to T
            reset = instrument.reset
            strike = instrument.moneyness * market.forward(reset)
            growth = cast("Model", forward_return(model, reset, numeraire=True))
            return self._european(growth, expiry - reset, forward, strike, discount, instrument.option)
        if isinstance(instrument, European):
            return self._european(model, expiry, forward, instrument.strike, discount, instrument.option)
        log_strike = torch.log(option.strike / forward)
        shift = 0.0 if option.pays == "cash" else 1.0
        value, bound = per_strike(
            model, expiry, log_strike, lambda law, x: cos_digital(law, x, shift, n_terms=self.n_terms)
        )
        paid = discount if option.pays == "cash" else discount * forward
        in_money = (log_strike.detach() <= 0.0) == (option.option == "call")
        value = paid * torch.where(in_money, 1.0 - value, value)
        return Estimate(value, 0.0, paid.detach() * bound, engine="fourier")

    def _european(
        self, model: Model, expiry: Tensor, forward: Tensor, strike: Tensor, discount: Tensor, option: str
    ) -> Estimate:
        """The option on `forward` times the ratio whose law `model` has over `expiry` years."""
        value, bound = self._undiscounted(model, expiry, forward, strike, option)
        return Estimate(discount * value, 0.0, discount.detach() * bound, engine="fourier")

    def _undiscounted(
        self, model: Model, expiry: Tensor, forward: Tensor, strike: Tensor, option: str
    ) -> tuple[Tensor, Tensor]:
        log_strike = torch.log(strike / forward)
        value, bound = per_strike(model, expiry, log_strike, lambda law, x: cos_european(law, x, n_terms=self.n_terms))
        # the same side as in the series: parity where the option is in the money
        in_money = (log_strike.detach() <= 0.0) == (option == "call")
        zero = torch.zeros((), dtype=value.dtype, device=value.device)
        value = forward * value + torch.where(in_money, call_sign(option) * (forward - strike), zero)
        bound = forward.detach() * bound + 4.0 * torch.finfo(value.dtype).eps * strike.detach()
        return value, bound

    def _cliquet(self, instrument: Cliquet, model: Model, market: Market) -> Estimate:
        """Of each period the floor, a call on the growth struck there, and less one at the cap."""
        broadcast_shape(instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape())
        dates = instrument.times.unbind(-1)
        value = bound = torch.zeros_like(dates[0])
        for start, end in pairwise(dates):
            growth = market.growth(end) / market.growth(start)
            law = cast("Model", forward_return(model, start, numeraire=False))
            lower = value.new_full((), -1.0) if instrument.local_floor is None else instrument.local_floor
            legs = [(1.0, lower)] + ([] if instrument.local_cap is None else [(-1.0, instrument.local_cap)])
            value = value + lower
            for sign, level in legs:
                strike = 1.0 + level
                positive = strike > 0  # at a strike that is not, a call is a forward
                call, error = self._undiscounted(law, end - start, growth, torch.where(positive, strike, 1.0), "call")
                value = value + sign * torch.where(positive, call, growth - strike)
                bound = bound + torch.where(positive, error, 0.0)
        discount = market.discount(dates[-1])
        return Estimate(discount * value, 0.0, discount.detach() * bound, engine="fourier")
