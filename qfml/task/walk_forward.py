"""The task `walk_forward`: its root config, what it does in its folder, and what counts as another trial."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import polars as pl

from qfml import config
from qfml.backtest import POSITIONS, walk_forward
from qfml.backtest.baselines import BASELINES, HAR, Baseline, BuyAndHold, Momentum, Ridge
from qfml.backtest.pnl import check_costs
from qfml.backtest.positions import PositionRule
from qfml.backtest.result import WalkForwardResult
from qfml.config import OneOf, Section
from qfml.data.audit import LeakageAudit, audit_leakage
from qfml.data.build import feature_frame
from qfml.data.dataset import TimeDataset
from qfml.data.feature_base import Feature
from qfml.data.features import FEATURES, source_columns
from qfml.data.label_base import Label
from qfml.data.labels import LABELS, RealisedVolAhead
from qfml.data.sources import SOURCES, Source
from qfml.data.transforms import TRANSFORMS, Transform
from qfml.data.validation import MISSING_POLICIES, MissingPolicy, ValidationReport, validate
from qfml.data.weights import WEIGHTS, Weights
from qfml.engine import Callback, Trainer
from qfml.engine.unvalidated import waits_for_validation
from qfml.errors import ConfigError, DataError
from qfml.ledger import Ledger, Trials, trial_hash
from qfml.losses import LOSSES, Loss
from qfml.metrics import SharpeMoments
from qfml.networks import NETWORKS, Network
from qfml.splits import SPLITTERS
from qfml.splits.base import Splitter
from qfml.task.base import Say, as_settings, check_device

NO_OTHER_TRIAL = (  # settings of a trainer: where and how fast it runs
    *("device", "member_block", "checkpoint_seconds", "keep_checkpoints", "deterministic"),
    *("log_every", "watch", "time_split", "profile"),
)


@dataclass(frozen=True)
class DataConfig:
    """What to read, how it is checked, and what is made of it.

    Args:
        source: where the prices come from.
        missing: what happens to missing values. Never defaulted.
        features: steps that turn prices into features.
        label: what is to be predicted.
        start: first day that is read.
        end: last day that is read.
        max_gap: longest gap between two rows that is accepted, such as "10D"; unchecked if omitted.
        price: the column whose return a position earns.
        window: rows of a feature window; the network sees one row if omitted.
        weight: sample weights.
        audit: recompute the features without their future at sampled times and compare.
    """

    source: Annotated[Source, OneOf(SOURCES)]
    missing: Annotated[MissingPolicy, OneOf(MISSING_POLICIES)]
    features: tuple[Annotated[Feature, OneOf(FEATURES)], ...]
    label: Annotated[Label, OneOf(LABELS)]
    start: str | None = None
    end: str | None = None
    max_gap: str | None = None
    price: str = "close"
    window: int | None = None
    weight: Annotated[Weights, OneOf(WEIGHTS)] | None = None
    audit: bool = True

    @property
    def columns(self) -> tuple[str, ...]:
        """The source columns that are read, and no others."""
        return tuple(dict.fromkeys((self.price, *source_columns(self.features), *self.label.columns)))

    def read(self) -> tuple[pl.DataFrame, ValidationReport]:
        """The prices, checked."""
        frame = self.source.read(self.columns, self.start, self.end)
        return self.check(frame)

    def check(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, ValidationReport]:
        """A frame of these columns, checked by these rules; fresh prices come without those only the label reads."""
        read = [name for name in self.columns if name in frame.columns]
        prices = [name for name in read if name in _PRICES or name == self.price]
        return validate(
            frame, group=self.source.group_column, prices=prices, missing=self.missing, max_gap=self.max_gap
        )

    def dataset(self, frame: pl.DataFrame) -> TimeDataset:
        """Features, label and weights of the checked prices."""
        group = self.source.group_column
        steps = {"features": self.features, "label": self.label, "weight": self.weight}
        return TimeDataset.from_frame(frame, group=group, price=self.price, window=self.window, **steps)

    def leakage(self, frame: pl.DataFrame) -> LeakageAudit:
        """The audit of the features on the checked prices."""
        group = self.source.group_column

        def features_alone(prices: pl.DataFrame) -> pl.DataFrame:
            return feature_frame(prices, self.features, time="time", group=group)[0]

        return audit_leakage(features_alone, frame, group=group)


_PRICES = ("open", "high", "low", "close", "adj_close")


@dataclass(frozen=True)
class BacktestConfig:
    """How predictions are traded.

    Args:
        positions: the rule from predictions to positions.
        cost_bps: cost of trading, basis points of the amount traded. Never defaulted.
        slippage: further cost, in multiples of the asset's volatility per period, times the amount traded.
        execution_lag: periods between a decision and its fill; 0 fills at the price of the decision itself.
        baselines: strategies that are always shown beside the network.
        n_bootstrap: resamples behind intervals and tests.
    """

    positions: Annotated[PositionRule, OneOf(POSITIONS)]
    cost_bps: float
    slippage: float = 0.0
    execution_lag: int = 1
    baselines: tuple[Annotated[Baseline, OneOf(BASELINES)], ...] = (BuyAndHold(), Ridge(), Momentum())
    n_bootstrap: int = 1000

    def __post_init__(self) -> None:
        check_costs(self.cost_bps, self.slippage, self.execution_lag)


@dataclass(frozen=True)
class WalkForwardTask:
    """A walk-forward backtest: the root of a config with `task: walk_forward`.

    Args:
        data: what to read and what is made of it.
        split: the splitter; each fold trains a network for each seed.
        network: the network's specification.
        loss: the training loss.
        trainer: how members are trained.
        backtest: how predictions are traded.
        transforms: fitted on each fold's training rows only.
        n_seeds: members a fold; their mean is traded.
        seed: the first of them.
        validation: fraction of a fold's training times that is kept back, purged, to stop early.
        warm_start: start each fold from the one before; folds are then trained one after another.
        name: names the run folder.
        ledger: file that counts every configuration tried on a data set. A data set is a source with its name or
            path: other dates of it are another configuration of the same data.
    """

    task: ClassVar[str] = "walk_forward"
    data: Annotated[DataConfig, Section(DataConfig)]
    split: Annotated[Splitter, OneOf(SPLITTERS)]
    network: Annotated[Network, OneOf(NETWORKS)]
    loss: Annotated[Loss, OneOf(LOSSES)]
    trainer: Annotated[Trainer, Section(Trainer)]
    backtest: Annotated[BacktestConfig, Section(BacktestConfig)]
    transforms: tuple[Annotated[Transform, OneOf(TRANSFORMS)], ...] = field(default=())
    n_seeds: int = 1
    seed: int = 0
    validation: float = 0.15
    warm_start: bool = False
    name: str = "walk_forward"
    ledger: str = "runs/ledger.jsonl"

    def __post_init__(self) -> None:
        if self.n_seeds < 1:
            raise ConfigError(f"`n_seeds` must be at least 1, got {self.n_seeds}")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"`validation` must be a share of the training times in [0, 1), got {self.validation}")
        if self.validation == 0 and (what := waits_for_validation(self.trainer)):
            raise ConfigError(
                f"`validation` is 0, and {what} waits for `{self.trainer.monitor}`: keep back a share such as 0.2, set "
                "`trainer.monitor` to train_loss, or leave it out"
            )

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Read, train, judge and write everything but the report into `folder`."""
        begin = time.perf_counter()
        check_device(self.trainer.device)
        frame, report = self.data.read()
        ds = self.data.dataset(frame)
        say(f"{self.data.source.describe()}: {len(frame):,} rows, {len(ds):,} samples, {ds.n_features} features")
        audit = self._audit(frame, say)
        data_seconds = time.perf_counter() - begin
        if resume and (folder / "checkpoints").is_dir():
            say("resuming from the last checkpoint")
        result = walk_forward(
            ds,
            splitter=self.split,
            network=self.network,
            trainer=self.trainer,
            loss=self.loss,
            cost_bps=self.backtest.cost_bps,
            positions=self.backtest.positions,
            n_seeds=self.n_seeds,
            seed=self.seed,
            validation=self.validation,
            transforms=self.transforms,
            slippage=self.backtest.slippage,
            execution_lag=self.backtest.execution_lag,
            warm_start=self.warm_start,
            baselines=self._baselines(),
            n_bootstrap=self.backtest.n_bootstrap,
            callbacks=callbacks,
            checkpoint_dir=folder / "checkpoints",
            resume=resume,
        )
        result = self._count_trial(result)
        described = {"source": self.data.source.describe(), "n_rows": len(frame), "label": self.data.label.kind}
        seconds = {"data": data_seconds, "total": time.perf_counter() - begin}
        described |= {"validation": [*report.lines, *result.metrics["data"]["validation"]]}
        result = result.with_metrics(
            data=described,
            audit=audit,
            seconds=seconds,
            config_hash=config.config_hash(as_settings(self)),
        )
        result.save(folder)

    def _baselines(self) -> tuple[Baseline, ...]:
        """The baselines asked for, and HAR wherever realised volatility is predicted."""
        chosen = self.backtest.baselines
        needs_har = isinstance(self.data.label, RealisedVolAhead) and not any(isinstance(b, HAR) for b in chosen)
        return (*chosen, HAR()) if needs_har else chosen

    def _audit(self, frame: pl.DataFrame, say: Say) -> dict[str, Any]:
        """Run the leak audit; a leak stops the run, because every number after it would be wrong."""
        if not self.data.audit:
            say("leak audit: switched off by `data.audit: false`")
            return {"ran": False, "n_times": 0, "leaks": []}
        audit = self.data.leakage(frame)
        say(f"leak audit: {audit}")
        if audit.leaks:
            raise DataError(f"a feature uses the future: {audit}. Mend or remove it")
        return {"ran": True, "n_times": audit.n_times, "leaks": [], "checked": len(audit.checked)}

    def _count_trial(self, result: WalkForwardResult) -> WalkForwardResult:
        """Enter the run into the ledger, and deflate its Sharpe ratio by all that was tried on these data."""
        periods_per_year = result.metrics["conventions"]["periods_per_year"]
        trials = record_trial(self, result.moments, periods_per_year)
        return result.with_trials(trials.n_trials, trials.variance)


def record_trial(task: WalkForwardTask, moments: SharpeMoments, periods_per_year: float) -> Trials:
    """Enter a configuration into its ledger, with the moments of its returns; all trials on its data, it included."""
    settings = as_settings(task)
    Ledger(task.ledger).record(
        data_hash=_source_hash(settings),
        trial_hash=trial_hash(of_a_trial(settings)),
        config_hash=config.config_hash(settings),
        periods_per_year=periods_per_year,
        label=task.name,
        **moments._asdict(),
    )
    return trials_on_the_same_data(task)


def trials_on_the_same_data(task: WalkForwardTask) -> Trials:
    """All that the task's ledger counts on its data."""
    return Ledger(task.ledger).trials(_source_hash(as_settings(task)))


def _source_hash(settings: Mapping[str, Any]) -> str:
    return config.config_hash(absolute(settings["data"]["source"]))


def of_a_trial(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without what does not make another trial: where and how fast it runs, how many seeds, its name."""
    kept = {key: value for key, value in settings.items() if key not in ("name", "ledger", "n_seeds", "seed")}
    kept["trainer"] = {key: value for key, value in settings["trainer"].items() if key not in NO_OTHER_TRIAL}
    kept["data"] = {key: value for key, value in settings["data"].items() if key != "audit"}
    kept["backtest"] = {
        key: value for key, value in settings["backtest"].items() if key not in ("baselines", "n_bootstrap")
    }
    return kept


def absolute(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source's settings with its local path made absolute, so that one file is one data set from any folder."""
    path = source.get("path")
    if not isinstance(path, str) or "://" in path:
        return dict(source)
    return dict(source) | {"path": os.path.abspath(path)}
