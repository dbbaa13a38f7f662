"""The result of a walk-forward, and its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from qfml import config
from qfml.backtest.judgement import deflation
from qfml.backtest.training import FoldFit
from qfml.engine import save_fits
from qfml.errors import UserError
from qfml.files import replace_file, replace_text
from qfml.metrics import SharpeMoments

__all__ = ["WalkForwardResult"]


@dataclass(frozen=True, eq=False)
class WalkForwardResult:
    """What a walk-forward backtest found.

    Attributes:
        predictions: One row per tested sample: time, group (panels), fold, y, network (the mean over seeds), a column
            per seed, and one per baseline that predicts.
        positions: One row per time, asset and strategy: position held over the period that starts at `time`, and the
            gross P&L, cost and net P&L of that period, in fractions of capital.
        pnl: One row per time and strategy, the seeds included: totals over the assets, turnover and exposure.
        metrics: Everything measured, in plain JSON types: folds, members, strategies, prediction, calibration,
            significance and the conventions behind them.
        fits: The trained members with fold and seed.
        settings: How the run was set up, in plain types.
    """

    predictions: pl.DataFrame
    positions: pl.DataFrame
    pnl: pl.DataFrame
    metrics: dict[str, Any]
    fits: list[FoldFit]
    settings: dict[str, Any]

    @property
    def moments(self) -> SharpeMoments:
        """Sharpe ratio per period, length, skew and raw kurtosis of the network's net P&L: what a ledger records."""
        found = self.metrics["significance"]
        values = {"sharpe": found["sharpe_per_period"], "skew": found["skew"], "kurtosis": found["kurtosis"]}
        known = {name: float("nan") if value is None else float(value) for name, value in values.items()}
        return SharpeMoments(n_obs=int(found["n_obs"]), **known)

    @property
    def log(self) -> list[dict[str, Any]]:
        """One entry per member and epoch: fold, seed, epoch, train_loss, val_loss."""
        return [{"fold": each.fold, "seed": each.seed, **record} for each in self.fits for record in each.fit.history]

    def with_trials(self, n_trials: int, trial_variance: float | None) -> WalkForwardResult:
        """The same result, deflated for the number of configurations tried on these data.

        Args:
            n_trials: Configurations tried, this one included.
            trial_variance: Variance of their Sharpe ratios per period; None or nan with fewer than two.
        """
        found = self.metrics["significance"] | deflation(self.moments, n_trials, trial_variance)
        return dataclasses.replace(self, metrics=self.metrics | {"significance": found})

    def with_metrics(self, **sections: Any) -> WalkForwardResult:
        """The same result with sections of `metrics` added; a mapping is merged into the section that is there."""
        merged = dict(self.metrics)
        for name, section in sections.items():
            old = merged.get(name)
            both = isinstance(old, Mapping) and isinstance(section, Mapping)
            merged[name] = {**old, **section} if both else section  # pyright: ignore[reportGeneralTypeIssues]
        return dataclasses.replace(self, metrics=merged)

    def save(self, folder: str | Path) -> Path:
        """Write the run folder: tables, metrics, the log of the training, the trained members, and the settings.

        A `config.yaml` that is there already is kept: it says more than the settings do.

        Args:
            folder: Made if it does not exist.

        Returns:
            The folder.

        Raises:
            UserError: If the folder holds a result already.
        """
        folder = Path(folder)
        if (folder / "metrics.json").exists() or (folder / "model").exists():
            raise UserError(f"{folder} holds a result already; save into another folder, or remove it first")
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists():
            config.write_yaml(self.settings, folder / "config.yaml")
        for name in ("predictions", "positions", "pnl"):
            table: pl.DataFrame = getattr(self, name)
            replace_file(folder / f"{name}.parquet", table.write_parquet)
        replace_text(folder / "log.jsonl", "".join(json.dumps(_finite(entry)) + "\n" for entry in self.log))
        places = [{"fold": each.fold, "seed": each.seed} for each in self.fits]
        save_fits(folder / "model", [each.fit for each in self.fits], {"members": places})
        # last, because a folder with metrics is a finished one
        replace_text(folder / "metrics.json", json.dumps(self.metrics, indent=1, allow_nan=False))
        return folder


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """nan and infinite losses as null: JSON has neither."""
    return {key: None if isinstance(value, float) and value - value != 0.0 else value for key, value in entry.items()}
