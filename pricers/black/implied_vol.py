"""The public face of the implied vols: broadcasting, chunks, dtypes, and what to say when there is no vol."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from pricers.black.chunks import in_chunks
from pricers.black.implied import bachelier_total_vol, black_total_vol
from pricers.black.price import OPTIONS
from pricers.parameters import choice, real

__all__ = ["bachelier_implied_vol", "implied_vol"]

ERRORS = ("raise", "nan")


def implied_vol(
    price: Any,
    forward: Any,
    strike: Any,
    expiry: Any,
    discount: Any = 1.0,
    option: str = "call",
    errors: str = "raise",
) -> Tensor:
    r"""Black-76 vols that reproduce option prices: the inverse of `black_price` in `vol`.

    The relative error is at most the larger of 1e-12 and

    $$4\,\epsilon\,\frac{\text{price}}{\text{vega} \cdot \sigma}, \qquad \epsilon = 2^{-52},$$

    the error that a few roundings of the price itself make. Out of the money the second term is below the first, so
    quote the option that is out of the money: an in-the-money price holds its time value only to the rounding of the
    whole price. A price that equals its intrinsic value has no time value left that could tell one small vol from
    another, and counts as an error.

    Derivatives in price, forward, strike, expiry and discount are those of the exact inverse (implicit function
    theorem), to third order, in reverse and forward mode. Elements without a vol have zero gradients.

    Args:
        price: price today; all arguments broadcast. Computed in float64 whatever the dtype.
        forward: forward of the asset to the expiry, above zero.
        strike: above zero.
        expiry: years, above zero.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".
        errors: what a price without a vol (or NaN anywhere) does: "raise" an error that names it, or give "nan" for
            that element alone.

    Returns:
        Annualised decimal vols of the broadcast shape, in the widest dtype of the tensors given.

    Raises:
        ValueError: an element has no vol and `errors` is "raise", a word is unknown, or two shapes do not broadcast.

    References:
        Jäckel (2006), By implication; Jäckel (2015), Let's be rational: out-of-the-money prices, logarithms near both
        bounds and a Householder step of order four. The guess and the evaluation of the price differ.

    >>> from pricers.black import black_price
    >>> implied_vol(black_price(100.0, [80.0, 120.0], 0.5, 0.2), 100.0, [80.0, 120.0], 0.5)
    tensor([0.2000, 0.2000], dtype=torch.float64)
    >>> implied_vol(101.0, forward=100.0, strike=120.0, expiry=0.5)
    Traceback (most recent call last):
        ...
    ValueError: `price` must lie below discount * forward, the price at infinite vol, got 101 against 100; ...
    """
    named = {"price": price, "forward": forward, "strike": strike, "expiry": expiry, "discount": discount}
    return _implied_vol(black_total_vol, named, option, errors)


def bachelier_implied_vol(
    price: Any,
    forward: Any,
    strike: Any,
    expiry: Any,
    discount: Any = 1.0,
    option: str = "call",
    errors: str = "raise",
) -> Tensor:
    """Normal vols that reproduce option prices: the inverse of `bachelier_price` in `vol`.

    Accuracy, derivatives, errors and dtypes are those of `implied_vol`.

    Args:
        price: price today; all arguments broadcast.
        forward: forward of the asset to the expiry, any sign.
        strike: any sign.
        expiry: years, above zero.
        discount: discount factor to the expiry, above zero.
        option: "call" or "put".
        errors: "raise" or "nan".

    Returns:
        Normal vols, in units of the forward per root of a year, of the broadcast shape.

    Raises:
        ValueError: an element has no vol and `errors` is "raise", a word is unknown, or two shapes do not broadcast.

    References:
        Jäckel (2017), Implied normal volatility.

    >>> bachelier_implied_vol(price=0.004, forward=0.01, strike=0.01, expiry=1.0)
    tensor(0.0100, dtype=torch.float64)
    """
    named = {"price": price, "forward": forward, "strike": strike, "expiry": expiry, "discount": discount}
    return _implied_vol(bachelier_total_vol, named, option, errors)


def _implied_vol(
    total_vol: Callable[[Tensor, Tensor, Tensor, bool], Tensor],
    named: dict[str, Any],
    option: str,
    errors: str,
) -> Tensor:
    is_call = choice("option", option, OPTIONS) == "call"
    choice("errors", errors, ERRORS)
    given = {name: _floating(name, value) for name, value in named.items()}
    wide = {name: value.to(torch.float64) for name, value in given.items()}
    vols = in_chunks(partial(_vols, total_vol, is_call), **wide)
    if errors == "raise":
        missing = vols.detach().isnan()
        if bool(missing.any()):
            index = tuple(missing.nonzero()[0].tolist())
            numbers = [value.expand(vols.shape)[index].item() for value in wide.values()]
            reason = _reason(total_vol is black_total_vol, is_call, *numbers)
            raise ValueError(f'{reason}{_place(index)}; pass errors="nan" to get NaN for such elements')
    tensors = [value.dtype for value in named.values() if isinstance(value, Tensor)]
    return vols.to(reduce(torch.promote_types, tensors) if tensors else torch.float64)


def _vols(
    total_vol: Callable[[Tensor, Tensor, Tensor, bool], Tensor],
    is_call: bool,
    price: Tensor,
    forward: Tensor,
    strike: Tensor,
    expiry: Tensor,
    discount: Tensor,
) -> Tensor:
    # what may not enter is replaced first, NaN is set last: zero times NaN would reach the gradients of shared ones
    usable = price.isfinite() & (expiry > 0) & (expiry < math.inf) & (discount > 0) & (discount < math.inf)
    undiscounted = price / torch.where(usable, discount, 1.0)
    root = torch.where(usable, expiry, 1.0).sqrt()
    deviation = total_vol(undiscounted, forward, strike, is_call)
    usable = usable & ~deviation.isnan()
    return torch.where(usable, torch.where(usable, deviation, 1.0) / root, math.nan)


def _floating(name: str, value: Any) -> Tensor:
    """A real floating point tensor, NaN and infinity included: they are faults of single elements."""
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float64):
        return value
    try:
        return real(name, value)
    except ValueError as error:
        if "finite" not in str(error):
            raise
        return torch.as_tensor(value, dtype=torch.float64)


def _reason(
    lognormal: bool, is_call: bool, price: float, forward: float, strike: float, expiry: float, discount: float
) -> str:
    """Why these numbers have no implied vol."""
    named = {"price": price, "forward": forward, "strike": strike, "expiry": expiry, "discount": discount}
    for name, number in named.items():
        if not math.isfinite(number):
            return f"`{name}` must be finite, got {number:g}"
    for name in ("forward", "strike", "expiry", "discount") if lognormal else ("expiry", "discount"):
        if named[name] <= 0:
            return f"`{name}` must be above 0, got {named[name]:g}"
    bound = discount * (forward if is_call else strike)
    if lognormal and price >= bound:
        what = "forward" if is_call else "strike"
        rule = f"`price` must lie below discount * {what}, the price at infinite vol"
        return f"{rule}, got {price:.17g} against {bound:.17g}"
    intrinsic = discount * max(forward - strike if is_call else strike - forward, 0.0)
    if price > intrinsic:
        return (
            "`price` must exceed the discounted intrinsic value by enough to tell its vol from 0, "
            f"got {price:.17g} against {intrinsic:.17g}"
        )
    return (
        "`price` must exceed the discounted intrinsic value, for without time value no vol is identified, "
        f"got {price:.17g} against {intrinsic:.17g}"
    )


def _place(index: tuple[int, ...]) -> str:
    """Where the element stands, when there are several."""
    if not index:
        return ""
    return f" at index {index[0] if len(index) == 1 else index}"
