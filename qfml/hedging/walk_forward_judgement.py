"""What a walk through history has found, as plain JSON. All cash is that of an episode that starts at `spot`.

    objective, dial         by which the price is, and what `aversion` sets of it (None: nothing)
    history                 source, column, start, end, n_prices, spot (at each start), rate, periods_per_year
    episodes                n (out of sample), n_steps, window, start_every, start, end
    bootstrap               n_resamples, block (episodes), overlap, seed
    left_out                why a textbook hedge is not among the baselines, by name
    folds                   one each: fold, refit, train_start and train_end (first and last training price), n_train,
                            n_purged, n_embargoed, n_returns, vol (of the training returns), test_start, test_end,
                            last_expiry, n_test; cases: aversion, cost_level, seed (that trades), premium, and hedges:
                            by name mean (with the premium), std, price, cost
    cases                   one for each aversion and cost level: aversion, cost_level; policies and baselines; years:
                            year, n and hedges, as of a fold; worst: start, end, fold, final, vol_during, pnl by hedge
                            (with the premium)

each policy and baseline of a case:
    name; price, risk, mean: value, std_error, low, high; std, quantiles; expected_shortfall: the same, and tail;
    income (mean P&L with the premium), cost, turnover; against (of a policy): by baseline the risk less its own

Intervals are of 95 %, of the block bootstrap of `out_of_sample`. No premium is in a P&L unless it is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from qfml.hedging.objective_base import Objective
from qfml.hedging.out_of_sample import Resamples, compared, resamples, worst_apart

if TYPE_CHECKING:
    from qfml.hedging.walk_forward import HedgedFold, WalkForwardHedge

__all__ = ["judged"]

N_WORST = 8


def judged(walk: WalkForwardHedge) -> dict[str, Any]:
    """See the module."""
    market, history = walk.settings["market"], walk.episodes.history
    loss = walk.folds[0].hedger.loss
    tested = walk.episodes.rows(np.concatenate([fold.split.test for fold in walk.folds]))
    cases = [(case.aversion, case.cost_level) for case in walk.folds[0].best]
    drawn = _resamples(walk, cases[0], tested.first)
    return {
        "objective": loss.objective.kind,
        "dial": loss.objective.dial,
        "history": {
            "source": market.source.describe(),
            "column": market.column,
            "start": history.day(0),
            "end": history.day(len(history) - 1),
            "n_prices": len(history),
            "spot": market.spot,
            "rate": market.rate,
            "periods_per_year": market.periods_per_year,
        },
        "episodes": {
            "n": len(tested),
            "n_steps": tested.n_steps,
            "window": tested.window,
            "start_every": walk.settings["start_every"],
            "start": history.day(int(tested.first[0])),
            "end": history.day(int(tested.first[-1]) + tested.n_steps),
        },
        "bootstrap": {
            "n_resamples": len(drawn.rows),
            "block": drawn.block,
            "overlap": drawn.overlap,
            "seed": walk.settings["seed"],
        },
        "left_out": walk.left_out,
        "folds": [_fold(walk, fold) for fold in walk.folds],
        "cases": [_case(walk, case, drawn, tested.first) for case in cases],
    }


def _resamples(walk: WalkForwardHedge, case: tuple[float | None, float], first: np.ndarray) -> Resamples:
    series = _series(_rows(walk.table, case))
    pnl = torch.stack(list(series.values()))
    return resamples(pnl, first, walk.episodes.n_steps, walk.settings["n_bootstrap"], walk.settings["seed"])


def _rows(table: pl.DataFrame, case: tuple[float | None, float]) -> pl.DataFrame:
    return table.filter(pl.col("aversion").eq_missing(case[0]), pl.col("cost_level") == case[1])


def _series(rows: pl.DataFrame, column: str = "pnl") -> dict[str, torch.Tensor]:
    """A column of each hedge by date, policies first."""
    names = sorted(rows["hedge"].unique().to_list(), key=lambda name: (not name.startswith("policy"), name))
    return {name: torch.from_numpy(rows.filter(hedge=name)[column].to_numpy().copy()) for name in names}


def _case(
    walk: WalkForwardHedge, case: tuple[float | None, float], drawn: Resamples, first: np.ndarray
) -> dict[str, Any]:
    rows, objective = _rows(walk.table, case), walk.folds[0].hedger.loss.objective
    pnl = _series(rows)
    rivals = [name for name in pnl if not name.startswith("policy")]
    found = compared(objective, pnl, rivals, case[0], drawn)
    premium = _series(rows, "premium")
    cost, turnover = _series(rows, "cost"), _series(rows, "turnover")
    for name, hedge in found.items():
        hedge["income"] = float((pnl[name] + premium[name]).mean())
        hedge |= {"cost": float(cost[name].mean()), "turnover": float(turnover[name].mean())}
    years = [
        {"year": year, "n": part["start"].n_unique(), "hedges": _briefly(part, objective, case[0])}
        for (year,), part in rows.group_by(pl.col("start").dt.year(), maintain_order=True)
    ]
    return {
        "aversion": case[0],
        "cost_level": case[1],
        "policies": [hedge for name, hedge in found.items() if name not in rivals],
        "baselines": [found[name] for name in rivals],
        "years": sorted(years, key=lambda each: each["year"]),
        "worst": _worst(walk, rows, first),
    }


def _briefly(rows: pl.DataFrame, objective: Objective, aversion: float | None) -> dict[str, dict[str, float]]:
    """Figures of each hedge on a few episodes, too few for intervals."""
    dial = None if aversion is None else torch.tensor([aversion], dtype=torch.float64)
    pnl, premium, cost = (_series(rows, name) for name in ("pnl", "premium", "cost"))
    return {
        name: {
            "mean": float((own + premium[name]).mean()),
            "std": float(own.std()) if len(own) > 1 else 0.0,
            "price": float(objective.price(own[None], aversion=dial).value),
            "cost": float(cost[name].mean()),
        }
        for name, own in pnl.items()
    }


def _fold(walk: WalkForwardHedge, fold: HedgedFold) -> dict[str, Any]:
    split, episodes = fold.split, walk.episodes
    market: Any = fold.hedger.market
    history, tests = episodes.history, episodes.first[split.test]
    rows = walk.table.filter(fold=fold.number)
    return {
        "fold": fold.number,
        "refit": split.refit,
        "train_start": market.start,
        "train_end": market.end,
        "n_train": len(split.train),
        "n_purged": len(split.purged),
        "n_embargoed": len(split.embargoed),
        "n_returns": len(market.log_returns),
        "vol": market.vol,
        "test_start": history.day(int(tests[0])),
        "test_end": history.day(int(tests[-1])),
        "last_expiry": history.day(int(tests[-1]) + episodes.n_steps),
        "n_test": len(tests),
        "cases": [
            {
                "aversion": case.aversion,
                "cost_level": case.cost_level,
                "seed": fold.hedger.members[place].seed,
                "premium": fold.premium[case],
                "hedges": _briefly(
                    _rows(rows, (case.aversion, case.cost_level)), fold.hedger.loss.objective, case.aversion
                ),
            }
            for case, place in fold.best.items()
        ],
    }


def _worst(walk: WalkForwardHedge, rows: pl.DataFrame, first: np.ndarray) -> list[dict[str, Any]]:
    """The worst episodes of the policy, none of which overlaps a worse one."""
    by_hedge = {name: own + _series(rows, "premium")[name] for name, own in _series(rows).items()}
    places = worst_apart(by_hedge["policy"].tolist(), first, walk.episodes.n_steps, N_WORST)
    own, history = rows.filter(hedge="policy"), walk.episodes.history
    return [
        {
            "start": history.day(int(first[place])),
            "end": history.day(int(first[place]) + walk.episodes.n_steps),
            **{name: own[name][place] for name in ("fold", "final", "vol_during")},
            "pnl": {name: float(each[place]) for name, each in by_hedge.items()},
        }
        for place in places
    ]
