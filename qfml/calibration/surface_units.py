"""Units of vols and strikes: those that the caller names, or else decimals and prices, which are looked at.

A table of many surfaces is looked at surface by surface: one date in another unit would drown among the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qfml.errors import ConfigError, DataError

__all__ = ["STRIKE_UNITS", "decimal_vols", "each_surface", "strikes_in_prices"]

Groups = Iterable[tuple[str, Any]]  # what a message calls each surface, and its rows

STRIKE_UNITS = ("price", "percent_of_spot", "moneyness", "log_moneyness")
PERCENT_FROM = 2.0  # a median vol of 200 % is no surface: these are percent
LEAST_MEDIAN = 0.01  # 1 %: below it decimals were taken for percent
NEAR = 0.5, 2.0  # where the middle strike of a surface lies, as a share of the spot
BEYOND = 1.1  # a level farther than this from every strike, where 100 or 1 lies among them, is in another unit
ALL_ROWS: Groups = (("", slice(None)),)  # one surface, which needs no name


def each_surface(surface: np.ndarray, labels: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Label and rows of each surface that has rows.

    Args:
        surface: number of the surface of each row.
        labels: by number.

    >>> each_surface(np.array([1, 0, 1]), ["Friday", "Monday"])
    [('Friday', array([1])), ('Monday', array([0, 2]))]
    """
    order = np.argsort(surface, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(surface[order])) + 1)
    return [(labels[int(surface[rows[0]])], rows) for rows in parts if len(rows)]


ALIKE = 1.5  # times: ratios of strike and level of two dates that are in one unit
VERY_FAR = 20.0  # times the level: no option that is quoted


def decimal_vols(
    columns: Mapping[str, np.ndarray], unit: str | None, surfaces: Groups = ALL_ROWS
) -> dict[str, np.ndarray]:
    """Vols in decimals, by the unit the caller names; without one, vols that look like percent are refused.

    Args:
        columns: vols, bids and asks by name, NaN where there is none.
        unit: "decimal", "percent", or None for decimals that are looked at.
        surfaces: label and rows of each, see `each_surface`.

    Raises:
        ConfigError: no such unit.
        DataError: the vols of a surface look like another unit.
    """
    if unit not in (None, "decimal", "percent"):
        raise ConfigError(f'`vol_unit` must be "decimal" or "percent", got {unit!r}')
    for label, rows in () if unit == "decimal" else surfaces:
        for name, column in columns.items():
            _refuse_unlike_vols(name, column[rows], unit, f" of {label}" if label else "", _upper_median(column))
    share = 0.01 if unit == "percent" else 1.0
    return {name: column * share if unit == "percent" else column for name, column in columns.items()}


def _upper_median(column: np.ndarray) -> float:
    order = np.sort(column[~np.isnan(column)])
    return float(order[len(order) // 2]) if len(order) else np.nan


def _refuse_unlike_vols(name: str, column: np.ndarray, unit: str | None, of: str, level: float) -> None:
    """Refuse vols of a surface that look like another unit; `level` is the upper median of all surfaces."""
    known = column[~np.isnan(column)]
    if not known.size:
        return
    # the lower and the upper median: more than half of the quotes must look it, not one wild quote of two
    lower, upper = np.sort(known)[(len(known) - 1) // 2], _upper_median(known)
    if unit is None and lower > PERCENT_FROM:
        one = "if all dates are, or divide these by 100" if of else "or divide by 100"
        raise DataError(
            f'the vols in `{name}`{of} look like percent ({known[0]:g}); pass vol_unit="percent" {one} '
            f'(vol_unit="decimal" keeps them as they are)'
        )
    # the caller has named the unit: a quiet date among others is believed
    doubted = level / 100.0 < LEAST_MEDIAN or upper < 0.1 * level
    if unit == "percent" and upper / 100.0 < LEAST_MEDIAN and doubted:
        way_out = "give all dates in one unit" if of else "leave it out, or divide them by 100 if they are percent"
        raise DataError(
            f"the vols in `{name}`{of} look like decimals ({known[0]:g}), but `vol_unit` is percent; {way_out}"
        )


def strikes_in_prices(
    strike: np.ndarray, forward: np.ndarray, spot: Any, unit: str | None, surfaces: Groups = ALL_ROWS
) -> np.ndarray:
    """Strikes in the unit of the forward, by the unit the caller names; without one they are looked at.

    Args:
        strike: in the caller's unit.
        forward: of each quote.
        spot: a number, one for each quote, or None.
        unit: one of `STRIKE_UNITS`, or None for prices that are looked at.
        surfaces: label and rows of each, see `each_surface`.

    Raises:
        ConfigError: no such unit.
        DataError: strikes of a surface that look like another unit, or shares of a spot that is not known.
    """
    if unit is None:
        level, name = (forward, "forward") if spot is None else (np.broadcast_to(spot, forward.shape), "spot")
        usual = _middle_ratio(strike, level)
        for label, rows in surfaces:
            _refuse_unlike_strikes(strike[rows], level[rows], name, f" of {label}" if label else "", usual)
        return strike
    if unit not in STRIKE_UNITS:
        raise ConfigError(f"`strike_unit` must be one of {', '.join(STRIKE_UNITS)}, got {unit!r}")
    if unit == "price":
        return strike
    if unit == "log_moneyness":
        return forward * np.exp(strike)
    if spot is None:
        raise DataError(f'strike_unit="{unit}" needs the `spot`')
    return strike * spot * (0.01 if unit == "percent_of_spot" else 1.0)


def _middle_ratio(strike: np.ndarray, level: np.ndarray) -> float:
    """Median of strike over level, NaN where nothing is known."""
    known = (strike > 0.0) & (level > 0.0) & np.isfinite(strike) & np.isfinite(level)
    return float(np.median(strike[known] / level[known])) if known.any() else np.nan


def _refuse_unlike_strikes(strike: np.ndarray, level: np.ndarray, level_name: str, of: str, usual: float) -> None:
    """Refuse strikes that look like percent or shares of the spot rather than prices.

    Args:
        strike: in the caller's unit.
        level: spot or forward of each quote.
        level_name: "spot" or "forward".
        of: which surface, as the message says it; empty for the only one.
        usual: median ratio of strike and level over all surfaces; a date of few strikes that has it is not asked about.

    Raises:
        DataError: 100 or 1 lies among the strikes and the level far from all of them, or the middle strike is far
            from the level but close to 100 or to 1, or very far from it.
    """
    known = (strike > 0.0) & (level > 0.0) & np.isfinite(strike) & np.isfinite(level)
    if not known.any():
        return
    strike, level = strike[known], level[known]
    low, middle, high = float(strike.min()), float(np.median(strike)), float(strike.max())
    at, ratio = float(np.median(level)), float(np.median(strike / level))
    far = not NEAR[0] <= ratio <= NEAR[1]
    alike = bool(of) and 1 / ALIKE <= ratio / usual <= ALIKE
    beyond = not alike and not low / BEYOND <= at <= high * BEYOND
    for unit, share, meaning in (("percent_of_spot", 100.0, "percent of the spot"), ("moneyness", 1.0, "strike/spot")):
        if (far and NEAR[0] <= middle / share <= NEAR[1]) or (beyond and low <= share <= high):
            every = " if those of all dates are (else give all dates in one unit)" if of else ""
            raise DataError(
                f"the strikes{of} look like {meaning} (the middle one is {middle:g}, {level_name} {at:g}); pass "
                f'strike_unit="{unit}"{every}, or strike_unit="price" if they are prices'
            )
    if not 1 / VERY_FAR <= ratio <= VERY_FAR:
        raise DataError(
            f"the strikes{of} lie far from the {level_name} (the middle one is {middle:g}, {level_name} {at:g}): give "
            'both in one unit, or pass strike_unit="price" if they are right'
        )
