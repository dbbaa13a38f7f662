"""What quotes say that cannot be true at once: vertical, butterfly and calendar arbitrage, at mid and at market."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtr

__all__ = ["Finding", "Smile", "arbitrage"]

ROUNDING = 1e-12  # of the forward, and of the total variance: what a few roundings may make
SAME_PLACE = 1e-10  # of log-moneyness


@dataclass(frozen=True)
class Finding:
    """Something about quotes that is worth knowing.

    Args:
        kind: "vertical", "butterfly", "calendar", "outside_market" (vols beyond their bid or ask), "one_expiry",
            "several_forwards" (of one expiry).
        expiry: years, those of the quotes.
        strike: of the quotes; of a calendar spread the strikes with the same log-moneyness; of several forwards
            the lowest and the highest.
        vol_bps: the arbitrage is gone once each of its quotes has moved by this much vol, to first order.
        price: what it pays, in the unit of the forward, at the expiry: at mid vols, or at bid and ask where it was
            found by these alone; of a calendar spread 0.
        executable: whether it pays at bid and ask too; None where there are none.
        interpolated: one of the vols is read between quotes.
        n_quotes: how many quotes it concerns, for those that count.
    """

    kind: str
    expiry: tuple[float, ...]
    strike: tuple[float, ...]
    vol_bps: float = 0.0
    price: float = 0.0
    executable: bool | None = None
    interpolated: bool = False
    n_quotes: int = 0

    def __str__(self) -> str:
        expiries = " and ".join(f"{expiry:.4g}" for expiry in self.expiry)
        strikes = ", ".join(f"{strike:.6g}" for strike in self.strike)
        if self.kind == "one_expiry":
            return f"one expiry only ({expiries}): what differs between expiries is not identified by these quotes"
        if self.kind == "several_forwards":
            low, high = self.strike
            judged = "arbitrage is judged at the middle"
            return f"the forwards of expiry {expiries} lie between {low:.6g} and {high:.6g}; {judged}"
        if self.kind == "outside_market":
            return f"{self.n_quotes} vols lie outside their bid and ask, by up to {self.vol_bps:.1f} bps"
        size = f"{self.vol_bps:.2g} bps of vol"
        if self.kind != "calendar":
            size += f", {self.price:.2g} in price"
        market = {True: "; executable at bid and ask", False: "; within bid and ask", None: ""}[self.executable]
        between = " (interpolated)" if self.interpolated else ""
        several = "expiries" if len(self.expiry) > 1 else "expiry"
        return f"{self.kind} arbitrage at {several} {expiries}, strikes {strikes}{between}: {size}{market}"


class Smile(NamedTuple):
    """The quotes of one expiry by ascending strike; bid and ask vols are NaN where there are none."""

    expiry: float
    forward: float
    strike: np.ndarray
    vol: np.ndarray
    bid: np.ndarray
    ask: np.ndarray

    @property
    def log_moneyness(self) -> np.ndarray:
        """log(strike / forward)."""
        return np.log(self.strike / self.forward)

    def calls(self, vol: np.ndarray) -> np.ndarray:
        """Calls at these vols, in units of the forward, undiscounted."""
        deviation = vol * np.sqrt(self.expiry)
        d1 = -self.log_moneyness / deviation + 0.5 * deviation
        return ndtr(d1) - self.strike / self.forward * ndtr(d1 - deviation)

    def vegas(self) -> np.ndarray:
        """Slopes of `calls` in the vol."""
        deviation = self.vol * np.sqrt(self.expiry)
        d1 = -self.log_moneyness / deviation + 0.5 * deviation
        return np.exp(-0.5 * d1**2) * np.sqrt(self.expiry / (2.0 * np.pi))


def arbitrage(smiles: list[Smile]) -> list[Finding]:
    """Arbitrage between quotes, the largest in vol first.

    Within an expiry, calls must fall in the strike, by no more than the strike rises, and be convex. Between an expiry
    and the next, total variance must not fall at the same log-moneyness; where the strikes differ it is interpolated
    by monotone cubics (PCHIP), never beyond the quotes. With bids and asks, each is judged at the market as well, and
    trades that pay at bid and ask are found over all strikes (calls sold at the bid above the convex hull of the asks).

    Args:
        smiles: by ascending expiry.

    References:
        Carr and Madan (2005), A note on sufficient conditions for no arbitrage. Gatheral and Jacquier (2014),
        Arbitrage-free SVI volatility surfaces, lemma 2.1.
    """
    found: list[Finding] = []
    for smile in smiles:
        at_mid = [*_verticals(smile), *_butterflies(smile)]
        known = {finding.strike for finding in at_mid}
        found += at_mid + [finding for finding in _executable(smile) if finding.strike not in known]
    for earlier, later in pairwise(smiles):
        found += _calendars(earlier, later)
    return sorted(found, key=lambda finding: -finding.vol_bps)


def _verticals(smile: Smile) -> Iterator[Finding]:
    """Calls that rise in the strike, or fall faster than it rises."""
    share, call, vega = smile.strike / smile.forward, smile.calls(smile.vol), smile.vegas()
    bid, ask = smile.calls(smile.bid), smile.calls(smile.ask)
    width = np.diff(share)
    rise, steep = np.diff(call), -np.diff(call) - width
    for index in np.flatnonzero(np.maximum(rise, steep) > ROUNDING).tolist():
        pays = bid[index + 1] - ask[index] if rise[index] > 0.0 else bid[index] - ask[index + 1] - width[index]
        price = max(rise[index], steep[index])
        yield _finding("vertical", smile, (index, index + 1), price, vega[index] + vega[index + 1], pays)


def _butterflies(smile: Smile) -> Iterator[Finding]:
    """Calls that are not convex in the strike."""
    share, call, vega = smile.strike / smile.forward, smile.calls(smile.vol), smile.vegas()
    bid, ask = smile.calls(smile.bid), smile.calls(smile.ask)
    left = (share[2:] - share[1:-1]) / (share[2:] - share[:-2])
    size = call[1:-1] - left * call[:-2] - (1.0 - left) * call[2:]
    for index in np.flatnonzero(size > ROUNDING).tolist():
        a, b = left[index], 1.0 - left[index]
        pays = bid[index + 1] - a * ask[index] - b * ask[index + 2]
        vegas = a * vega[index] + vega[index + 1] + b * vega[index + 2]
        yield _finding("butterfly", smile, (index, index + 1, index + 2), size[index], vegas, pays)


def _executable(smile: Smile) -> Iterator[Finding]:
    """Trades that pay at bid and ask, whatever strikes lie between."""
    asked = np.flatnonzero(~np.isnan(smile.ask))
    if asked.size < 2 or np.isnan(smile.bid).all():
        return
    share, bid, ask, vega = smile.strike / smile.forward, smile.calls(smile.bid), smile.calls(smile.ask), smile.vegas()
    corners = _lower_hull(share[asked], ask[asked])
    for index in np.flatnonzero(~np.isnan(bid)).tolist():
        lower, higher = asked[asked < index], asked[asked > index]
        trades: list[tuple[str, tuple[int, ...], tuple[float, ...], float]] = []
        if lower.size:
            best = int(lower[np.argmin(ask[lower])])
            trades.append(("vertical", (best, index), (1.0, 1.0), bid[index] - ask[best]))
        if higher.size:
            best = int(higher[np.argmin(ask[higher] + share[higher])])
            pays = bid[index] + share[index] - ask[best] - share[best]
            trades.append(("vertical", (index, best), (1.0, 1.0), pays))
        left = int(np.searchsorted(asked[corners], index)) - 1
        if 0 <= left < corners.size - 1 and asked[corners[left + 1]] > index:
            low, high = int(asked[corners[left]]), int(asked[corners[left + 1]])
            a = (share[high] - share[index]) / (share[high] - share[low])
            pays = bid[index] - a * ask[low] - (1.0 - a) * ask[high]
            trades.append(("butterfly", (low, index, high), (a, 1.0, 1.0 - a), pays))
        for kind, places, sizes, pays in trades:
            if pays > ROUNDING:
                yield _finding(kind, smile, places, pays, float(vega[list(places)] @ np.array(sizes)), pays)


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Places of the corners of the lower convex hull of points with ascending x (Andrew's monotone chain)."""
    corners: list[int] = []
    for index in range(x.shape[0]):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (y[b] - y[a]) * (x[index] - x[a]) < (y[index] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(index)
    return np.array(corners)


def _calendars(earlier: Smile, later: Smile) -> Iterator[Finding]:
    """Total variance that falls from one expiry to the next at the same log-moneyness."""
    k = np.union1d(earlier.log_moneyness, later.log_moneyness)
    k = k[np.append(True, np.diff(k) > SAME_PLACE)] if k.size else k
    first, quoted_first = _deviations(earlier, earlier.vol, k)
    second, quoted_second = _deviations(later, later.vol, k)
    bid, bid_is_there = _deviations(earlier, earlier.bid, k)
    ask, ask_is_there = _deviations(later, later.ask, k)
    market = np.where(bid_is_there & ask_is_there, bid - ask, np.nan)  # nobody trades at a vol read between quotes
    roots = np.sqrt([earlier.expiry, later.expiry])
    with np.errstate(invalid="ignore"):
        fallen = np.flatnonzero(first**2 - second**2 > ROUNDING)
    for index in fallen:
        interpolated = not (quoted_first[index] and quoted_second[index])
        pays = market[index]
        yield Finding(
            "calendar",
            (earlier.expiry, later.expiry),
            (float(earlier.forward * np.exp(k[index])), float(later.forward * np.exp(k[index]))),
            vol_bps=float(1e4 * (first[index] - second[index]) / roots.sum()),
            executable=None if np.isnan(pays) else bool(pays > 0.0),
            interpolated=interpolated,
        )


def _deviations(smile: Smile, vol: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Roots of the total variance at each k, NaN beyond the quotes, and whether a quote is there."""
    known = ~np.isnan(vol)
    places, variance = smile.log_moneyness[known], vol[known] ** 2 * smile.expiry
    result, quoted = np.full(k.shape, np.nan), np.zeros(k.shape, bool)
    if not places.size:
        return result, quoted
    if places.size > 1:
        result = np.sqrt(PchipInterpolator(places, variance, extrapolate=False)(k))
    nearest = np.abs(k[:, None] - places).argmin(axis=1)
    quoted = np.abs(k - places[nearest]) <= SAME_PLACE
    result[quoted] = np.sqrt(variance[nearest[quoted]])
    return result, quoted


def _finding(kind: str, smile: Smile, places: tuple[int, ...], price: float, vegas: float, pays: float) -> Finding:
    return Finding(
        kind,
        (smile.expiry,),
        tuple(float(smile.strike[place]) for place in places),
        vol_bps=float(1e4 * price / vegas) if vegas > 0.0 else np.inf,
        price=float(price * smile.forward),
        executable=None if np.isnan(pays) else bool(pays > ROUNDING),
    )
