"""Forwards and discount factors of quotes: given, from rates and dividends, or implied by put-call parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pricers import Market, ZeroCurve
from qfml.errors import DataError

__all__ = ["forward_and_discount", "rate_or_curve"]


def rate_or_curve(name: str, value: Any) -> float | ZeroCurve:
    """A rate as a number, or as a curve of zero rates, linear in time between its nodes and flat outside.

    Args:
        name: what messages call it.
        value: a number (continuous, per year, decimal), a `pricers.ZeroCurve`, a pair (times in years, rates), or a
            mapping with the keys `times` and `rates`.

    Raises:
        DataError: none of these, or rates that look like percent.

    >>> rate_or_curve("rates", ([0.0, 1.0], [0.02, 0.03])).rates.tolist()
    [0.02, 0.03]
    """
    if isinstance(value, Mapping):
        if set(value) != {"times", "rates"}:
            raise DataError(
                f"`{name}` as a mapping must have the keys times and rates, got {', '.join(map(str, value))}"
            )
        value = (value["times"], value["rates"])
    try:
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
            if len(value) != 2 or np.ndim(value[0]) != 1:
                raise DataError(
                    f"`{name}` must be a number, a pair (times, rates) or a pricers.ZeroCurve, got {value!r:.80}; "
                    "give a rate for each expiry as (expiries, rates)"
                )
            value = ZeroCurve([float(x) for x in value[0]], [float(x) for x in value[1]])
        elif not isinstance(value, ZeroCurve):
            value = float(value)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"`{name}` must be a number, a pair (times, rates) or a pricers.ZeroCurve: {error}") from None
    largest = float(value.rates.abs().max()) if isinstance(value, ZeroCurve) else abs(value)
    if not largest <= 1.0:
        raise DataError(f"`{name}` must be decimal, in [-1, 1], got {largest:g}; 3 % is 0.03")
    return value


def forward_and_discount(
    expiry: np.ndarray, spot: float | None, rates: Any, dividends: Any, forward: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    r"""Forwards $S\,e^{(r - q) T}$, unless given, and discount factors $e^{-r T}$.

    Args:
        expiry: years, shape `(n,)`.
        spot: price of the asset today; None where `forward` is given.
        rates: see `rate_or_curve`.
        dividends: a continuous yield, like `rates`.
        forward: forwards to the expiries, shape `(n,)`, or None.

    Raises:
        DataError: neither spot nor forwards; numbers out of range.

    >>> forward, discount = forward_and_discount(np.array([1.0]), 100.0, 0.05, 0.02)
    >>> forward.round(6).tolist(), discount.round(6).tolist()
    ([103.045453], [0.951229])
    """
    rate, income = rate_or_curve("rates", rates), rate_or_curve("dividends", dividends)
    if spot is None and forward is None:
        raise DataError("quotes need forwards: give `forwards`, or `spot` with `rates` and `dividends`")
    times = torch.from_numpy(np.where(expiry > 0.0, expiry, 1.0))  # expired quotes are refused later, by their row
    market = Market(1.0 if spot is None else spot, rate, income)
    discount = market.discount(times).numpy()
    return (market.forward(times).numpy() if forward is None else forward), discount
