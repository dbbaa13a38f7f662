r"""Prices from a characteristic function: the COS series, and Lewis' integral to check it independently.

Everything is per unit of forward: with $X = \log(S_T / F_T)$ and $x = \log(K / F_T)$ the functions return what is out
of the money, $E(e^x - e^X)^+$ for $x \le 0$ and $E(e^X - e^x)^+$ for $x > 0$; parity gives the other side. A call is a
put on $Y = -X$ in the measure whose numeraire is the asset, so that one payoff, bounded by 1, serves both.
"""

from pricers.fourier.cosine import cos_digital, cos_european
from pricers.fourier.lewis import lewis_european
from pricers.fourier.truncation import TOLERANCE, Law

__all__ = ["TOLERANCE", "Law", "cos_digital", "cos_european", "lewis_european"]
