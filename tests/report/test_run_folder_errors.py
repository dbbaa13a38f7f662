"""A run folder that is incomplete, damaged or old is refused by a message that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from qfml.errors import UserError
from qfml.report import write_report
from qfml.report.folder import read_run_folder

FILES = ("config.yaml", "metrics.json", "log.jsonl", "predictions.parquet", "positions.parquet", "pnl.parquet")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run folder at .*nowhere"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named_with_the_way_out(run_dir: Path, name: str) -> None:
    (run_dir / name).unlink()

    with pytest.raises(UserError, match=rf"no `{name}`.*qfml resume"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()


@pytest.mark.parametrize("name", FILES[1:])
def test_damaged_file_is_named(run_dir: Path, name: str) -> None:
    content = (run_dir / name).read_bytes()
    (run_dir / name).write_bytes(content[: len(content) - 40])
    with pytest.raises(UserError, match=name):
        write_report(run_dir)


@pytest.mark.parametrize("name", FILES[3:])
def test_missing_column_is_named(run_dir: Path, name: str) -> None:
    column = "network" if name == "predictions.parquet" else "cost"
    pl.read_parquet(run_dir / name).drop(column).write_parquet(run_dir / name)
    with pytest.raises(UserError, match=rf"{name} lacks the column\(s\) `{column}`"):
        write_report(run_dir)


@pytest.mark.parametrize("name", FILES[3:])
def test_empty_table_is_named(run_dir: Path, name: str) -> None:
    pl.read_parquet(run_dir / name).clear().write_parquet(run_dir / name)
    with pytest.raises(UserError, match=f"{name} holds no rows"):
        write_report(run_dir)


@pytest.mark.parametrize("section", ["conventions", "data", "audit", "folds", "members", "strategies", "significance"])
def test_missing_section_is_named(change: Callable, section: str) -> None:
    with pytest.raises(UserError, match=rf"metrics.json has no .*`{section}`"):
        write_report(change(lambda metrics: metrics.pop(section)))


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda m: m["conventions"].pop("execution_lag"), "`conventions.execution_lag`"),
        (lambda m: m["members"][3].pop("best_epoch"), "`members.3.best_epoch`"),
        (lambda m: m["folds"][1].pop("blocks"), "`folds.1.blocks`"),
        (lambda m: m["strategies"].pop("network"), "`strategies.network`"),
        (lambda m: m["conventions"].update(periods_per_year=0), "periods_per_year.*got 0"),
        (lambda m: m.update(task="trading"), "`task` must be one of .*, got .trading."),
    ],
)
def test_missing_or_impossible_key_is_named(
    change: Callable, edit: Callable[[dict[str, Any]], Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        write_report(change(edit))


def test_log_line_that_broke_off_is_named_by_its_number(run_dir: Path) -> None:
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20]
    (run_dir / "log.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"log.jsonl is damaged in line 5"):
        write_report(run_dir)


def test_log_keeps_diverged_losses_and_the_last_of_repeated_epochs(run_dir: Path) -> None:
    lines = [(1, 1.0), (2, float("nan")), (1, 0.5)]
    entries = [{"fold": 0, "seed": 0, "epoch": e, "train_loss": x, "val_loss": x} for e, x in lines]
    (run_dir / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    log = read_run_folder(run_dir).log
    assert log["epoch"].to_list() == [1, 2]
    np.testing.assert_array_equal(log["val_loss"].to_numpy(), [0.5, np.nan])
