"""Digital options: closed forms."""

from __future__ import annotations

import torch
from torch import Tensor

from pricers.analytic.reflection import OTHERS
from pricers.estimate import Estimate
from pricers.instruments.base import call_sign
from pricers.instruments.digital import Digital
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.normal import normal_cdf

__all__ = ["FORMULAS", "REFUSALS", "digital_formula", "digital_price", "digital_refusal"]


def digital_price(
    forward: Tensor, strike: Tensor, expiry: Tensor, discount: Tensor, vol: Tensor, option: str, pays: str
) -> Tensor:
    r"""Value of a digital on a lognormal asset.

    $$D\,N(\phi d_2)\ \text{(cash)}, \qquad D F\,N(\phi d_1)\ \text{(asset)}, \qquad
      d_{1,2} = \frac{\log(F/K) \pm v^2 T / 2}{v \sqrt T}$$

    with $\phi = 1$ for a call and $-1$ for a put.

    Args:
        forward: $F$ to the expiry; all tensors broadcast.
        strike: $K$, above 0.
        expiry: $T$ in years, above 0.
        discount: $D$ to the expiry.
        vol: $v$, annualised, above 0.
        option: "call" or "put".
        pays: "cash" (one unit) or "asset" (one share).

    Returns:
        The broadcast shape.

    References:
        Reiner and Rubinstein (1991), Unscrambling the binary code; Haug (2007), section 4.19.

    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> digital_price(number(100.0), number(80.0), number(0.75), number(0.9560), number(0.35), "put", "cash")
    tensor(0.2671, dtype=torch.float64)
    """
    root = vol * expiry.sqrt()
    center = torch.log(forward / strike) / root
    sign = call_sign(option)
    if pays == "cash":
        return discount * normal_cdf(sign * (center - 0.5 * root))
    return discount * forward * normal_cdf(sign * (center + 0.5 * root))


def digital_refusal(instrument: Digital, model: BlackScholes, market: Market) -> str | None:
    """Why the closed form does not hold; None if it does."""
    if market.dividends is not None:
        return "the closed form of a digital option needs a lognormal asset, without cash dividends; " + OTHERS
    return None


def digital_formula(instrument: Digital, model: BlackScholes, market: Market) -> Estimate:
    """`digital_price` for contract, model and market; any term structure of rates.

    Raises:
        ValueError: the market pays cash dividends, under which the asset is not lognormal.
    """
    reason = digital_refusal(instrument, model, market)
    if reason is not None:
        raise ValueError(reason)
    expiry = instrument.expiry
    value = digital_price(
        market.forward(expiry),
        instrument.strike,
        expiry,
        market.discount(expiry),
        model.vol,
        instrument.option,
        instrument.pays,
    )
    return Estimate(value, std_error=0.0, engine="analytic")


FORMULAS = {(Digital, BlackScholes): digital_formula}
REFUSALS = {(Digital, BlackScholes): digital_refusal}
