"""Black-76 and Bachelier: prices, Greeks and implied vols as pure functions of the forward."""

from pricers.black.greeks import ForwardGreeks, SpotGreeks, bachelier_greeks, black_greeks, black_scholes_greeks
from pricers.black.implied import bachelier_total_vol, black_total_vol
from pricers.black.implied_vol import bachelier_implied_vol, implied_vol
from pricers.black.price import (
    bachelier_call_put,
    bachelier_digital,
    bachelier_price,
    black_call_put,
    black_d1_d2,
    black_digital,
    black_price,
)

__all__ = [
    "ForwardGreeks",
    "SpotGreeks",
    "bachelier_call_put",
    "bachelier_digital",
    "bachelier_greeks",
    "bachelier_implied_vol",
    "bachelier_price",
    "bachelier_total_vol",
    "black_call_put",
    "black_d1_d2",
    "black_digital",
    "black_greeks",
    "black_price",
    "black_scholes_greeks",
    "black_total_vol",
    "implied_vol",
]
