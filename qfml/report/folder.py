"""Reading a finished run folder, with a clear word about what is missing from it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from qfml.errors import UserError
from qfml.finished import check_sections, read_metrics, require

__all__ = ["RunFolder", "read_run_folder", "read_table", "read_text"]

# The keys the page cannot do without, section by section; everything else in a section is shown if it is there.
REQUIRED: dict[str, tuple[str, ...]] = {
    "conventions": ("periods_per_year", "cost_bps", "execution_lag"),
    "data": ("source", "n_rows", "n_samples", "features", "label", "dropped", "validation"),
    "audit": ("ran",),
    "calibration": ("kind", "bins"),
    "significance": ("verdict",),
    "versions": (),
    "seconds": (),
    "strategies": ("network",),
    "prediction": ("network",),
}
REQUIRED_IN_LISTS: dict[str, tuple[str, ...]] = {
    "folds": ("fold", "n_train", "n_test", "blocks"),
    "members": ("fold", "seed", "status", "best_epoch"),
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "log.jsonl": ("fold", "seed", "epoch", "train_loss", "val_loss"),
    "predictions.parquet": ("time", "fold", "y", "network"),
    "positions.parquet": ("time", "strategy", "position", "gross", "cost", "net"),
    "pnl.parquet": ("time", "strategy", "gross", "cost", "net", "turnover", "exposure"),
}


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What a run left behind, read and checked.

    Args:
        path: The folder.
        config: Text of `config.yaml`.
        metrics: Content of `metrics.json`.
        log: One row per member and epoch.
        predictions: One row per sample of the test blocks.
        positions: One row per time, asset and strategy.
        pnl: One row per time and strategy (totals).
    """

    path: Path
    config: str
    metrics: dict[str, Any]
    log: pl.DataFrame
    predictions: pl.DataFrame
    positions: pl.DataFrame
    pnl: pl.DataFrame

    @property
    def periods_per_year(self) -> float:
        """Periods per year by which the run annualised."""
        return float(self.metrics["conventions"]["periods_per_year"])

    @property
    def is_panel(self) -> bool:
        """Whether positions were taken in more than one asset."""
        return "group" in self.positions.columns and self.positions["group"].n_unique() > 1

    def strategy(self, name: str) -> pl.DataFrame:
        """The P&L rows of one strategy in order of time; empty where the strategy was not run."""
        return self.pnl.filter(pl.col("strategy") == name).sort("time")


def read_run_folder(run_dir: str | Path) -> RunFolder:
    """Read everything the report needs from a run folder.

    Args:
        run_dir: Folder of a finished run.

    Returns:
        The content, checked for the files, columns and keys that the page needs.

    Raises:
        UserError: If the folder, one of its files, a column or a key is missing or cannot be read.
    """
    path = Path(run_dir)
    metrics = _walk_forward_metrics(path / "metrics.json")
    return RunFolder(
        path=path,
        config=read_text(path / "config.yaml"),
        metrics=metrics,
        log=_read_table(path / "log.jsonl"),
        predictions=_read_table(path / "predictions.parquet"),
        positions=_read_table(path / "positions.parquet"),
        pnl=_read_table(path / "pnl.parquet"),
    )


def read_text(path: Path) -> str:
    """The text of a file of a run; UserError names the one that is missing or damaged."""
    if not path.is_file():
        raise UserError(
            f"the run folder {path.parent} has no `{path.name}`: the run did not finish, or an older version made it; "
            f"finish it with `qfml resume {path.parent}` or run it again"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}); run it again") from None


def _walk_forward_metrics(path: Path) -> dict[str, Any]:
    metrics = read_metrics(path.parent)
    task = metrics.get("task")
    if task != "walk_forward":
        raise UserError(f"{path} must be of `task: walk_forward`, got {task!r}")
    check_sections(path, metrics, REQUIRED)
    for section, keys in REQUIRED_IN_LISTS.items():
        entries = metrics.get(section)
        if not isinstance(entries, list) or not entries:
            raise UserError(_old(path, f"has no entries in `{section}`"))
        for index, entry in enumerate(entries):
            require(path, f"{section}.{index}", entry, keys)
    periods = metrics["conventions"]["periods_per_year"]
    if not isinstance(periods, (int, float)) or not 0 < periods < math.inf:
        raise UserError(f"{path}: `conventions.periods_per_year` must be a positive number, got {periods!r}")
    return metrics


def _old(path: Path, what: str) -> str:
    return f"{path} {what}; it was written by another version: run it again"


def read_table(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """A Parquet table of a run that has rows and these columns; UserError names what is wrong with it."""
    if not path.is_file():
        read_text(path)  # raises, naming the file
    try:
        table = _read_log(path) if path.suffix == ".jsonl" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}); run it again") from None
    missing = [f"`{name}`" for name in columns if name not in table.columns]
    if missing:
        raise UserError(_old(path, f"lacks the column(s) {', '.join(missing)}"))
    if table.is_empty():
        raise UserError(f"{path} holds no rows; run it again")
    return table


def _read_table(path: Path) -> pl.DataFrame:
    table = read_table(path, COLUMNS[path.name])
    if path.name == "pnl.parquet" and table.filter(pl.col("strategy") == "network").is_empty():
        raise UserError(_old(path, "has no rows of the strategy `network`"))
    return table


def _read_log(path: Path) -> pl.DataFrame:
    """The learning log; Python's reader, because a diverged member's loss is written as the bare word NaN."""
    names = COLUMNS[path.name]
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            entries.append([entry[name] for name in names])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged in line {number} ({error}); run it again") from None
    columns = list(zip(*entries)) if entries else [[] for _ in names]
    kinds = (pl.Int64, pl.Int64, pl.Int64, pl.Float64, pl.Float64)
    table = pl.DataFrame(
        {name: pl.Series(column, dtype=kind, strict=False) for name, column, kind in zip(names, columns, kinds)}
    )
    # a resumed run may write the epochs after its last checkpoint twice; the later line is the one that counts
    return table.unique(["fold", "seed", "epoch"], keep="last").sort("fold", "seed", "epoch")
