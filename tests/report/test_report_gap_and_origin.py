"""The gap between the losses as the page tells it, against the histories; and where the run came from."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Report = Callable[[Path], Any]


def histories(run_dir: Path) -> dict[tuple[int, int], list[tuple[int, float, float]]]:
    found: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    for line in (run_dir / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        found.setdefault((entry["fold"], entry["seed"]), []).append(
            (entry["epoch"], entry["train_loss"], entry["val_loss"])
        )
    return found


def opened_at(history: list[tuple[int, float, float]]) -> int | None:
    """The definition, by trying every epoch."""
    best = min(history, key=lambda row: row[2])
    limit = best[2] - best[1] + 0.05 * abs(best[2])
    for epoch, _, _ in history:
        if epoch > best[0] and all(val - train > limit for later, train, val in history if later >= epoch):
            return epoch
    return None


def three(value: float) -> str:
    """Three significant digits of a number between 0.001 and 10."""
    return f"{abs(value):.{2 - math.floor(math.log10(abs(value)))}f}"


def test_the_sentence_and_the_chart_equal_brute_force_over_the_histories(run_dir: Path, report: Report) -> None:
    each = histories(run_dir)
    opened = [at for at in map(opened_at, each.values()) if at is not None]
    assert 0 < len(opened) < len(each)
    page = report(run_dir)
    when = f"{statistics.median(opened):g} in the median (from {min(opened)} to {max(opened)})"
    assert f"The gap opened for good in {len(opened)} of {len(each)} networks, at epoch {when}" in page.text
    at_best = [min((val, val - train) for _, train, val in rows)[1] for rows in each.values()]
    at_last = [rows[-1][2] - rows[-1][1] for rows in each.values()]
    shown = f"Its median is {three(np.median(at_best))} at the epoch of the lowest validation loss"
    assert f"{shown} and {three(np.median(at_last))} at the last." in page.text
    drawn = [("Middle half", 25), ("Median", 50), ("Upper quartile", 75)]
    lines = {share: page.trace("gap", name) for name, share in drawn}
    seen, is_open = page.trace("gap", "Networks", "y2"), page.trace("gap", "Networks with an open gap", "y2")
    around: dict[int, list[float]] = {}
    opened_after = []
    for rows in each.values():
        best = min(rows, key=lambda row: row[2])
        at = opened_at(rows)
        opened_after += [] if at is None else [at - best[0]]
        for epoch, train, val in rows:
            wider = (val - train - (best[2] - best[1])) / abs(best[2])
            around.setdefault(epoch - best[0], []).append(wider)
    assert sorted(around) == list(seen["x"])
    for i, after in enumerate(seen["x"]):
        for share, line in lines.items():
            assert line["y"][i] == pytest.approx(np.percentile(around[after], share), rel=1e-12, abs=1e-15)
        assert seen["y"][i] == len(around[after])
        assert is_open["y"][i] == sum(opened <= after for opened in opened_after)
    assert {line["y"][list(seen["x"]).index(0)] for line in lines.values()} == {0.0}


def test_the_table_of_members_says_when_the_gap_of_each_opened(make_run: Callable[..., Path], report: Report) -> None:
    run_dir = make_run(n_folds=2, n_seeds=2)
    text = report(run_dir).text
    rows = text[text.index("Gap open from") :]
    for (fold, seed), history in histories(run_dir).items():
        status = "stopped early" if len(history) < 38 else "ran all epochs"
        best = min(history, key=lambda row: row[2])[0]
        at = opened_at(history)
        assert f" {fold} {seed} {status} {len(history)} {best} {'not open' if at is None else at} " in rows


def test_a_gap_that_never_opens_and_networks_without_validation_are_said(run_dir: Path, report: Report) -> None:
    entries = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    for entry in entries:
        entry["val_loss"] = None if entry["fold"] == 0 else entry["train_loss"] + 0.1
    (run_dir / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = report(run_dir).text
    assert "The gap opened for good in none of 28 networks." in text
    assert "Left out for want of a finite validation loss: 4 of 32 networks." in text
    for entry in entries:
        entry["val_loss"] = 0.0 if entry["fold"] == 1 else entry["val_loss"]
    (run_dir / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = report(run_dir)
    assert "Not drawn, since a share of a loss of zero is not defined: 4." in page.text
    assert max(page.trace("gap", "Networks", "y2")["y"]) == 24
    for entry in entries:
        entry["val_loss"] = None
    (run_dir / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = report(run_dir)
    assert "No gap between training and validation loss" in page.text
    assert "gap" not in page.figures


def test_seeds_revision_machine_and_hashes_are_on_the_page(run_dir: Path, change: Callable, report: Report) -> None:
    text = report(run_dir).text
    text = text[text.rindex("Everything needed to make this page again") :]
    assert "Config hash 5f2a8c0d91be7e34 Data hash c0ffee1234567890 Seeds 0 to 3 " in text
    assert "Git revision 0123456789abcdef0123456789abcdef01234567 (with changes that are not committed)" in text
    assert "Machine Linux-6.1-x86_64, 2 threads" in text
    assert "torch 2.13.0" in text

    def without_git(metrics: dict[str, Any]) -> None:
        metrics["provenance"] |= {"git": None, "seeds": [3, 8]}

    text = report(change(without_git)).text
    assert "Seeds 3, 8 Git revision none: not run in a git repository" in text
    text = report(change(lambda metrics: metrics.pop("provenance"))).text
    assert "Seeds n/a Git revision n/a Machine n/a" in text
