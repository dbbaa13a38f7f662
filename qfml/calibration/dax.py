"""Implied volatilities of the DAX on 5 July 2002, the classic data of Heston calibration.

Published with QuantLib's tests (test-suite/hestonmodel.cpp): European options on an index of accumulated returns, so
without dividends; 13 strikes at 8 maturities, 104 quotes.
"""

from __future__ import annotations

from qfml.errors import ConfigError

__all__ = ["DATE", "DAYS", "SPOT", "STRIKES", "VOLS", "ZERO_RATES", "maturities_in_years"]

DATE = "2002-07-05"
SPOT = 4468.17
DAYS = (13, 41, 75, 165, 256, 345, 524, 703)
ZERO_RATES = (0.0357, 0.0349, 0.0341, 0.0355, 0.0359, 0.0368, 0.0386, 0.0401)  # at DAYS, continuous; the first at 0 too
STRIKES = (3400, 3600, 3800, 4000, 4200, 4400, 4500, 4600, 4800, 5000, 5200, 5400, 5600)
VOLS = (  # a row for each maturity, a column for each strike
    (0.6625, 0.6007, 0.5084, 0.4541, 0.4060, 0.3726, 0.3550, 0.3428, 0.3302, 0.3343, 0.3460, 0.3857, 0.3976),
    (0.4875, 0.4543, 0.4221, 0.3869, 0.3607, 0.3396, 0.3277, 0.3209, 0.3062, 0.2959, 0.2845, 0.2860, 0.2860),
    (0.4204, 0.3967, 0.3718, 0.3492, 0.3330, 0.3108, 0.3012, 0.2958, 0.2799, 0.2705, 0.2624, 0.2578, 0.2607),
    (0.3667, 0.3511, 0.3327, 0.3149, 0.2999, 0.2781, 0.2781, 0.2740, 0.2631, 0.2540, 0.2463, 0.2399, 0.2356),
    (0.3431, 0.3279, 0.3155, 0.2963, 0.2887, 0.2788, 0.2781, 0.2688, 0.2573, 0.2504, 0.2425, 0.2357, 0.2297),
    (0.3267, 0.3154, 0.3027, 0.2926, 0.2811, 0.2722, 0.2661, 0.2627, 0.2533, 0.2464, 0.2385, 0.2327, 0.2268),
    (0.3121, 0.2984, 0.2919, 0.2819, 0.2751, 0.2661, 0.2661, 0.2580, 0.2504, 0.2448, 0.2373, 0.2312, 0.2241),
    (0.3121, 0.2921, 0.2889, 0.2800, 0.2775, 0.2686, 0.2681, 0.2620, 0.2544, 0.2462, 0.2422, 0.2351, 0.2320),
)


def maturities_in_years(convention: str) -> list[float]:
    """Years to each maturity, ACT/365.

    Args:
        convention: "exact_days", or "week_rounded": whole weeks, floor((days + 3) / 7), as in the published fit.

    >>> [round(365 * years) for years in maturities_in_years("week_rounded")]
    [14, 42, 77, 168, 259, 343, 525, 700]
    """
    if convention == "exact_days":
        return [days / 365.0 for days in DAYS]
    if convention == "week_rounded":
        return [7.0 * ((days + 3) // 7) / 365.0 for days in DAYS]
    raise ConfigError(f'`maturities` must be "exact_days" or "week_rounded", got {convention!r}')
