"""The task `hedging` with a section `walk_forward`: policies trained anew as history goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl

from qfml import config
from qfml.config import OneOf
from qfml.engine import Callback
from qfml.errors import ConfigError
from qfml.hedging.bootstrapped_returns import BootstrappedReturns
from qfml.hedging.episodes import check_start_every
from qfml.hedging.judgement import JudgementSettings
from qfml.hedging.out_of_sample import check_n_bootstrap
from qfml.hedging.saved import save_hedger
from qfml.hedging.walk_forward import WalkForwardHedge, walk_forward_hedge
from qfml.ledger import Ledger, trial_hash
from qfml.metrics import sharpe_moments
from qfml.splits import WalkForward
from qfml.task.base import Say, as_settings, write_metrics
from qfml.task.hedging_parts import MODEL, head, log_rows, member_rows, trained, write_log
from qfml.task.walk_forward import NO_OTHER_TRIAL, absolute

if TYPE_CHECKING:
    from qfml.task.hedging import HedgingTask

FOLDS = "folds"  # folder of the policies of each training in that of the run
NO_OTHER_BOOK = ("name", "baselines", "judgement")  # settings that make no other trial


@dataclass(frozen=True)
class WalkForwardSettings:
    """How a walk through history goes: the YAML section `walk_forward:` of the task `hedging`.

    Args:
        split: which episodes train and test.
        start_every: periods from one start of an episode to the next, or "week", "month", "quarter", "year".
        n_bootstrap: resamples behind each interval.
        seed: of the resamples and of the paths that premiums are asked on.
        ledger: file that counts every configuration tried on a history.
    """

    split: Annotated[WalkForward, OneOf({WalkForward.kind: WalkForward})]
    start_every: int | str = 1
    n_bootstrap: int = 2000
    seed: int = 1
    ledger: str = "runs/ledger.jsonl"

    def __post_init__(self) -> None:
        check_start_every(self.start_every)
        check_n_bootstrap(self.n_bootstrap)


def check_walk(task: HedgingTask) -> None:
    """Refuse settings that a walk through history does not know."""
    if not isinstance(task.market, BootstrappedReturns):
        raise ConfigError(
            f"`walk_forward` trains on the returns of a history: it needs a market of kind bootstrap, got "
            f"{task.market.kind}"
        )
    if task.judgement != JudgementSettings():
        raise ConfigError(
            "`judgement` is of fresh paths, and `walk_forward` judges on the history: leave one of them out"
        )


def walk(task: HedgingTask, folder: Path, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
    """Train, judge, and write everything but the report into `folder`."""
    begin = time.perf_counter()
    settings = task.walk_forward
    assert settings is not None
    result = walk_forward_hedge(
        task.market,
        task.book,
        task.objective,
        splitter=settings.split,
        start_every=settings.start_every,
        baselines=task.baselines,
        n_bootstrap=settings.n_bootstrap,
        seed=settings.seed,
        costs=task.costs,
        unwind=task.unwind,
        policy=task.policy,
        rules=task.rules,
        trainer=task.trainer,
        steps_per_epoch=task.steps_per_epoch,
        n_validation=task.n_validation,
        seeds=task.seeds,
        aversions=(None,) if task.aversions is None else task.aversions,
        cost_levels=task.cost_levels,
        exact=task.exact,
        callbacks=callbacks,
        checkpoint_dir=folder / "checkpoints",
        resume=resume,
    )
    refits = [fold for fold in result.folds if fold.split.refit]
    say(f"trained {sum(len(fold.hedger.members) for fold in refits)} policies of {len(refits)} folds")
    found = result.metrics
    result.save(folder)
    write_log([{"fold": fold.number, **row} for fold in refits for row in log_rows(fold.hedger)], folder)
    shutil.rmtree(folder / FOLDS, ignore_errors=True)
    for fold in refits:
        save_hedger(fold.hedger, folder / FOLDS / str(fold.number))
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    save_hedger(refits[-1].hedger, folder / MODEL)  # what has seen the most: for live use
    members = [{"fold": fold.number, **row} for fold in refits for row in member_rows(fold.hedger)]
    training = trained(as_settings(task), refits[-1].hedger) | {"members": members}
    found |= {"trials": count_trial(task, result)}
    seconds = {"total_since_resume" if resume else "total": time.perf_counter() - begin}
    write_metrics(folder, {**head(task, seconds), "training": training, "walk_forward": found})


def count_trial(task: HedgingTask, walked: WalkForwardHedge) -> int:
    """Enter the run into the ledger, by what the policy earned beside the delta; how many were tried on its history."""
    settings = as_settings(task)
    assert task.walk_forward is not None
    ledger = Ledger(task.walk_forward.ledger)
    market = settings["market"]
    data_hash = config.config_hash(["hedging", absolute(market["source"]), market["column"], settings["book"]])
    rows = walked.table.filter(
        pl.col("aversion").eq_missing(walked.table["aversion"][0]), cost_level=walked.table["cost_level"][0]
    )
    rivals = [name for name in ("black_scholes_delta", "none") if name in rows["hedge"]]
    pnl = {name: rows.filter(hedge=name)["pnl"].to_numpy() for name in ("policy", *rivals)}
    gained = pnl["policy"] - (pnl[rivals[0]] if rivals else 0.0)
    years = (walked.table["end"].max() - walked.table["start"].min()).days / 365.25  # pyright: ignore
    ledger.record(
        data_hash=data_hash,
        trial_hash=trial_hash(of_a_trial(settings)),
        config_hash=config.config_hash(settings),
        periods_per_year=len(gained) / years,
        label=task.name,
        **sharpe_moments(gained)._asdict(),
    )
    return ledger.trials(data_hash).n_trials


def of_a_trial(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what does not make another trial: names, intervals, where and how fast it runs."""
    kept = {key: value for key, value in settings.items() if key not in NO_OTHER_BOOK}
    kept["trainer"] = {key: value for key, value in settings["trainer"].items() if key not in NO_OTHER_TRIAL}
    kept["walk_forward"] = {
        key: value for key, value in settings["walk_forward"].items() if key not in ("ledger", "n_bootstrap")
    }
    return kept
