"""Black-76 and Bachelier: prices, Greeks and implied vols as pure functions of the forward."""

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
    "bachelier_call_put",
    "bachelier_digital",
    "bachelier_implied_vol",
    "bachelier_price",
    "bachelier_total_vol",
    "black_call_put",
    "black_d1_d2",
    "black_digital",
    "black_price",
    "black_total_vol",
    "implied_vol",
]
