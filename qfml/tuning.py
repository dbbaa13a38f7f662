"""`qfml tune`: search the spaces of a config, then send the winner through the config's own backtest."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qfml import config, metrics
from qfml.backtest.folds import FoldRows
from qfml.backtest.judgement import meaning_of
from qfml.backtest.strategies import Market, check_rule
from qfml.backtest.training import FoldFit
from qfml.data.dataset import TimeDataset
from qfml.engine.provenance import provenance
from qfml.errors import ConfigError, UserError
from qfml.finished import is_search, read_metrics
from qfml.metrics import sharpe_moments
from qfml.report import write_report, write_tuning_report
from qfml.run import execute, forget_if_not_begun, new_folder, only_process, way_on
from qfml.task import Say, WalkForwardTask, as_settings, read_walk_forward
from qfml.task.base import check_device, write_metrics
from qfml.task.walk_forward import record_trial, trials_on_the_same_data
from qfml.tune import Study, TrialSettings, TuneConfig, Tuner, looking_back, tuning_folds, verdict
from qfml.tune.space import Space, Value, corners, filled, spaces_in

__all__ = ["resume", "tune"]

# what a trial may be: the rest is the same for all, or their objectives could not be compared
_SEARCHED = ("network", "loss", "transforms")
_SEARCHED_IN_TRAINER = (
    *("optimizer", "schedule", "sampler", "averaging", "parameter_groups", "batch_size", "max_epochs", "max_steps"),
    *("clip_norm", "clip_value", "patience", "min_delta"),
)


@dataclass(frozen=True)
class Search:
    """A config with search spaces, read.

    Attributes:
        settings: the config without its section `tune`, spaces included.
        spaces: the spaces in it, by path.
        plan: the section `tune`.
        first: the task of the first corner of the spaces, for what is the same in all trials.
    """

    settings: dict[str, Any]
    spaces: dict[str, Space]
    plan: TuneConfig
    first: WalkForwardTask

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Search:
        """Read a config; ConfigError names what is wrong in it, at any bound or choice of its spaces."""
        if "tune" not in settings:
            raise ConfigError("`qfml tune` needs a section `tune` with at least `n_trials`")
        try:
            plan = config.build(TuneConfig, settings["tune"])
        except ConfigError as error:
            raise ConfigError(f"tune: {error}") from None
        rest = {name: value for name, value in settings.items() if name != "tune"}
        spaces = spaces_in(rest)
        if not spaces:
            raise ConfigError(
                "there is nothing to search: put a space in place of a value, such as `lr: {log_uniform: [1e-5, 1e-2]}`"
            )
        for path in spaces:
            _check_path(path)
        tasks = [read_walk_forward(filled(rest, spaces, corner), "a search") for corner in corners(spaces)]
        for task in tasks:
            _check_task(task, spaces)
        return cls(rest, spaces, plan, tasks[0])

    def task(self, params: Mapping[str, Value]) -> WalkForwardTask:
        """The task of the trial with these parameters."""
        return read_walk_forward(filled(self.settings, self.spaces, params), "a search")

    @property
    def plain(self) -> dict[str, Any]:
        """The config as it was read, the section `tune` with nothing left to a default."""
        return self.settings | {"tune": config.to_dict(self.plan)}


def tune(
    path: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    progress: bool = True,
    say: Say = print,
) -> Path:
    """Search the spaces of a config in a new folder, and backtest the winner.

    Trials are judged on purged blocks of the rows before the first test block of the config's `split`; no row of the
    backtest's tests takes part. `trainer.monitor` and `trainer.mode` say what is wanted.

    Args:
        path: a YAML file with a section `tune` and search spaces in place of values, or its settings as a mapping.
        out: the folder; made under `runs/` if omitted.
        overrides: assignments such as "tune.n_trials=5".
        progress: draw a progress bar of the winner's backtest.
        say: told what happens, a line at a time.

    Returns:
        The folder: `study.db` (Optuna's storage), `best.yaml`, the run folder `winner`, `metrics.json` and
        `report.html`.

    Raises:
        UserError: anything the user can mend, before training where possible.
        Interrupted: stopped by Ctrl-C or SIGTERM; `resume` continues.
    """
    settings = dict(path) if isinstance(path, Mapping) else config.read_yaml(path)
    search = Search.of(config.override(settings, overrides))
    folder = new_folder(search.first, out)
    config.write_yaml(search.plain, folder / "config.yaml")
    with only_process(folder):
        try:
            _finish(folder, search, progress=progress, say=say)
        except UserError:
            forget_if_not_begun(folder)
            raise
    return folder


def resume(folder: str | Path, *, progress: bool = True, say: Say = print) -> Path:
    """Continue a search that was killed or interrupted; trials that were in training begin again.

    Raises:
        UserError: there is no search in `folder`, it is finished, or another process is at work in it.
    """
    folder = Path(folder)
    if not is_search(folder):
        raise UserError(f"no search in {folder}: it holds no config.yaml with a section `tune`")
    if (folder / "metrics.json").exists():
        read_metrics(folder, search=True)  # a damaged file is no finished search
        raise UserError(f"the search in {folder} is finished; `qfml report {folder}` rebuilds its report")
    search = Search.of(config.read_yaml(folder / "config.yaml"))
    with only_process(folder):
        _finish(folder, search, progress=progress, say=say)
    return folder


def _finish(folder: Path, search: Search, *, progress: bool, say: Say) -> None:
    winner = shlex.quote(str(folder / "winner"))
    with way_on(folder, anew=f"Remove {winner} and continue with: qfml resume {shlex.quote(str(folder))}"):
        task = search.first
        check_device(task.trainer.device)
        frame, _ = task.data.read()
        ds = task.data.dataset(frame)
        say(f"{task.data.source.describe()}: {len(frame):,} rows, {len(ds):,} samples, {ds.n_features} features")
        task._audit(frame, say)  # pyright: ignore[reportPrivateUsage]
        found, best = _search(folder, search, ds, say)
        config.write_yaml(as_settings(best), folder / "best.yaml")
        say("the winner's backtest, on rows that no trial has seen")
        _backtest(folder / "winner", best, progress=progress, say=say)
        backtest = read_metrics(folder / "winner")
        found["backtest"] = backtest["significance"]
        found["seconds"]["backtest"] = backtest["seconds"]["total"]
        write_metrics(folder, found)
        write_tuning_report(folder)


def _search(folder: Path, search: Search, ds: TimeDataset, say: Say) -> tuple[dict[str, Any], WalkForwardTask]:
    """Train all trials; what was found, and the winner."""
    task, plan = search.first, search.plan
    folds = tuning_folds(ds, task.split, plan.split)
    means = meaning_of(task.loss)
    check_rule(task.backtest.positions, means)
    market = Market.of(
        ds,
        folds,
        periods_per_year=metrics.periods_per_year(ds.time),
        cost_bps=task.backtest.cost_bps,
        slippage=task.backtest.slippage,
        execution_lag=task.backtest.execution_lag,
    )

    def keep(place: int, settings: TrialSettings, fits: list[FoldFit]) -> None:
        """Into the ledger first: a trial that is entered twice counts once, one that is left out not at all."""
        assert isinstance(settings, WalkForwardTask)
        meaning = meaning_of(settings.loss)
        net = verdict.returns_of(ds, folds, fits, market, settings.backtest.positions, meaning)
        record_trial(settings, sharpe_moments(net), market.periods_per_year)
        verdict.write_returns(folder, place, market.times, net)

    study = Study(folder / "study.db", search.spaces, plan.search, mode=task.trainer.mode, seed=plan.seed)
    try:
        study.claim(fingerprint(search, ds))
        Tuner(ds, folds, study, search.task, keep, plan, say).run()
        seconds = study.seconds
        found = verdict.report_of(study, folder, market, trials_on_the_same_data(task).n_trials)
    finally:
        study.close()
    found["seconds"] = {"search": seconds}
    return found | _described(search, ds, folds), search.task(found["winner"]["params"])


def fingerprint(search: Search, ds: TimeDataset) -> str:
    """A hash of what all trials have in common; how many there are, and for how long, may change in a resume."""
    free = ("n_trials", "timeout", "concurrent")
    plan = {name: value for name, value in config.to_dict(search.plan).items() if name not in free}
    return config.config_hash([search.settings, plan, ds.data_hash])


def _described(search: Search, ds: TimeDataset, folds: Sequence[FoldRows]) -> dict[str, Any]:
    """What was searched, on what, and where the search comes from."""
    task, plan = search.first, search.plan
    config_hash = config.config_hash(search.plain)
    seeds = [plan.seed, task.trainer.seed, *range(task.seed, task.seed + task.n_seeds)]
    made = provenance(seeds=seeds, data_hash=ds.data_hash, config_hash=config_hash, threads=torch.get_num_threads())
    return {
        "objective": {"name": task.trainer.monitor, "mode": task.trainer.mode},
        "space": {path: config.to_dict(space) for path, space in search.spaces.items()},
        "search": config.to_dict(plan),
        "n_planned": min(plan.n_trials, plan.search.n_trials(search.spaces) or plan.n_trials),
        "data": {"source": task.data.source.describe(), "n_samples": len(ds), "data_hash": ds.data_hash},
        "folds": [
            {
                "train": len(fold.train),
                "judged": len(fold.test),
                "from": str(ds.time[fold.test].min()),
                "to": str(ds.time[fold.test].max()),
                "purged": len(fold.purged),
                "embargoed": len(fold.embargoed),
                "looking_back": back,
            }
            for fold, back in zip(folds, looking_back(ds, folds), strict=True)
        ],
        "config_hash": config_hash,
        "provenance": {name: made[name] for name in ("platform", "threads", "seeds", "git")},
    }


def _backtest(folder: Path, task: WalkForwardTask, *, progress: bool, say: Say) -> None:
    """The config's own backtest of the winner: begun, continued, or only its report written."""
    if not (folder / "metrics.json").exists():
        folder.mkdir(exist_ok=True)
        config.write_yaml(as_settings(task), folder / "config.yaml")
        with only_process(folder):
            execute(folder, task, progress=progress, say=say)
    elif not (folder / "report.html").exists():
        write_report(folder)


def _check_path(path: str) -> None:
    root, _, rest = path.partition(".")
    if root in _SEARCHED or (root == "trainer" and rest.split(".")[0] in _SEARCHED_IN_TRAINER):
        return
    raise ConfigError(
        f"`{path}` cannot be searched: trials share data, label, folds and costs, or their objectives could not be "
        f"compared. Searched are {', '.join(_SEARCHED)} and, in trainer, {', '.join(_SEARCHED_IN_TRAINER)}"
    )


def _check_task(task: WalkForwardTask, spaces: Mapping[str, Space]) -> None:
    """Refuse what makes no objective, or ends all trials at once."""
    trainer = task.trainer
    if trainer.monitor == "train_loss":
        raise ConfigError("`trainer.monitor` must be measured on validation rows to choose by it, got train_loss")
    if trainer.monitor == "val_loss" and any(path.split(".")[0] == "loss" for path in spaces):
        raise ConfigError(
            "losses cannot be compared by `val_loss`, each measures another thing: set `trainer.monitor` to a metric, "
            "such as `val_rank_ic` with `metrics: [rank_ic]` and `mode: max`"
        )
    if trainer.max_seconds is not None or trainer.fast_dev_run:
        raise ConfigError("leave out `trainer.max_seconds` and `trainer.fast_dev_run`; `tune.timeout` limits a search")
