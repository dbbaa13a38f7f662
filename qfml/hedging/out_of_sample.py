"""What dated episodes tell of hedges: risk, distribution, differences, years and worst dates, in honest intervals.

Episodes that overlap share prices, and stormy ones follow each other: intervals are those of a circular block bootstrap
over the episodes in the order of their dates, with blocks at least as long as an episode; hedges are resampled
together, so that their differences have little noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pricers.noise import address
from qfml.errors import ConfigError, DataError
from qfml.hedging.bootstrapped_returns import block_rows
from qfml.hedging.objective_base import Objective
from qfml.hedging.objectives import ExpectedShortfall
from qfml.metrics import block_length_rule

__all__ = ["Resamples", "compared", "distribution", "overlap", "resamples", "risk_draws", "worst_apart"]

LEAST_EPISODES = 20  # with fewer an interval means nothing
AT_A_TIME = 2**21  # numbers of a resample that are worked on at once
HALF = 0.025  # of 95 % beyond each end
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
TAIL = 0.05


@dataclass(frozen=True, eq=False)
class Resamples:
    """Rows of a block bootstrap over dated episodes.

    Attributes:
        rows: int64, (R, N).
        block: episodes of a block.
        overlap: episodes whose dates meet those of one of them, at most: the least that a block may have.
    """

    rows: Tensor
    block: int
    overlap: int


def overlap(first: np.ndarray, n_steps: int) -> int:
    """The most episodes that begin before one of them ends, itself included.

    >>> overlap(np.array([0, 5, 10, 15]), 10), overlap(np.array([0, 21]), 21)
    (2, 1)
    """
    return int((np.searchsorted(first, first + n_steps) - np.arange(len(first))).max())


def resamples(pnl: Tensor, first: np.ndarray, n_steps: int, n_resamples: int, seed: int) -> Resamples:
    """Blocks as long as the rule of Politis and White asks for on any of the series, and no shorter than an episode.

    Args:
        pnl: of several hedges on episodes by date, (H, N).
        first: row of the history on which each begins, ascending, (N,).
        n_steps: rows until it ends.
        n_resamples: R.
        seed: any integer.

    Raises:
        DataError: too few episodes.

    References:
        Politis and Romano (1992), A circular block-resampling procedure for stationary data. Politis and White (2004),
        Automatic block-length selection for the dependent bootstrap.
    """
    n = pnl.shape[1]
    check_n_episodes(n)
    least = overlap(first, n_steps)
    block = min(max(least, math.ceil(block_length_rule(pnl.double().numpy().T))), n)
    generator = torch.Generator().manual_seed(address("out of sample", seed))
    return Resamples(block_rows(n, n, block, "circular", generator, n_resamples), block, least)


def risk_draws(objective: Objective, pnl: Tensor, aversion: float | None, drawn: Resamples) -> Tensor:
    """The risk of one hedge on each resample, (R,), float64.

    Args:
        objective: a risk measure.
        pnl: on the episodes, (N,).
        aversion: of the objective; None where it has none.
        drawn: of these N episodes.
    """
    size = max(1, AT_A_TIME // len(pnl))
    return torch.cat(
        [
            objective.risk(pnl[rows], None if aversion is None else torch.full((len(rows),), aversion))
            for rows in drawn.rows.split(size)
        ]
    )


def estimated(value: float, draws: Tensor) -> dict[str, float]:
    """A number with the spread of its resamples."""
    low, high = np.quantile(draws.numpy(), [HALF, 1 - HALF]).tolist()
    return {"value": value, "std_error": float(draws.std()), "low": low, "high": high}


def distribution(pnl: Tensor, drawn: Resamples) -> dict[str, Any]:
    """Mean, standard deviation, quantiles and the mean of the worst, of the P&L of one hedge (N,)."""
    own = pnl.double()
    shortfall = ExpectedShortfall(TAIL)
    tail = estimated(float(shortfall.risk(own[None])), risk_draws(shortfall, own, None, drawn))
    means = torch.cat([own[rows].mean(1) for rows in drawn.rows.split(max(1, AT_A_TIME // len(own)))])
    levels = np.quantile(own.numpy(), QUANTILES).tolist()
    return {
        "mean": estimated(float(own.mean()), means),
        "std": float(own.std()),
        "quantiles": {str(level): value for level, value in zip(QUANTILES, levels, strict=True)},
        "expected_shortfall": {"tail": TAIL, **tail},
    }


def compared(
    objective: Objective, pnl: Mapping[str, Tensor], rivals: Sequence[str], aversion: float | None, drawn: Resamples
) -> dict[str, dict[str, Any]]:
    """Price and distribution of each hedge by name; of all but the rivals, `against` each rival, in pairs."""
    dial = None if aversion is None else torch.tensor([aversion], dtype=torch.float64)
    values = {name: float(objective.risk(own[None], dial)) for name, own in pnl.items()}
    nothing = float(objective.risk(torch.zeros(1, drawn.rows.shape[1]), dial))  # of no book: 0 but for a utility
    draws = {name: risk_draws(objective, own, aversion, drawn) for name, own in pnl.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, own in pnl.items():
        price = estimated(values[name] - nothing, draws[name] - nothing)
        risk = estimated(values[name], draws[name])
        found[name] = {"name": name, "price": price, "risk": risk, **distribution(own, drawn)}
        if name not in rivals:
            found[name]["against"] = {
                rival: estimated(values[name] - values[rival], draws[name] - draws[rival]) for rival in rivals
            }
    return found


def worst_apart(pnl: Sequence[float], first: np.ndarray, n_steps: int, n_worst: int) -> list[int]:
    """Places of the worst episodes, none of which overlaps a worse one.

    >>> worst_apart([-3.0, -5.0, -4.0, 1.0], np.array([0, 1, 2, 9]), 5, 2)
    [1, 3]
    """
    found: list[int] = []
    for place in np.argsort(np.asarray(pnl), kind="stable").tolist():
        if len(found) == n_worst:
            break
        if all(abs(int(first[place]) - int(first[other])) >= n_steps for other in found):
            found.append(place)
    return found


def check_n_bootstrap(n_bootstrap: int) -> None:
    """Refuse too few resamples for the ends of an interval."""
    if isinstance(n_bootstrap, bool) or not isinstance(n_bootstrap, int) or n_bootstrap < 100:
        raise ConfigError(f"`n_bootstrap` must be 100 resamples or more: 2.5 % of them are an end, got {n_bootstrap}")


def check_n_episodes(n: int) -> None:
    """Refuse too few episodes for an interval."""
    if n < LEAST_EPISODES:
        raise DataError(
            f"{n} episodes out of sample, and intervals mean nothing of fewer than {LEAST_EPISODES}: start more of "
            "them (`start_every`), or test on a longer history"
        )
