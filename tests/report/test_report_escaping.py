"""Nothing that comes from data or config becomes markup."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from hostile_text import HOSTILE, Elements


def hostile(value: Any) -> Any:
    """The same structure with every string that a section may show turned hostile, keys included where free."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_strings_in_every_place_stay_text(run_dir: Path, report: Callable[[Path], Any]) -> None:
    path = run_dir / "metrics.json"
    original = json.loads(path.read_text())
    metrics = hostile(original)
    metrics["task"] = original["task"]
    for fold, plain in zip(metrics["folds"], original["folds"]):
        fold["metrics"][HOSTILE] = HOSTILE
        fold["fold"] = HOSTILE
        fold["blocks"] = plain["blocks"]
    metrics["data"]["dropped"] = {HOSTILE: 3}
    metrics["versions"] = {HOSTILE: HOSTILE, "qfml": HOSTILE}
    metrics["seconds"][HOSTILE] = HOSTILE
    metrics["conventions"][HOSTILE] = {HOSTILE: [HOSTILE]}
    metrics["strategies"][HOSTILE] = {"metrics": {HOSTILE: 1.0}, "intervals": {HOSTILE: [HOSTILE, 0.0]}}
    metrics["prediction"][HOSTILE] = {HOSTILE: 1.0, "other": {HOSTILE: HOSTILE}}
    metrics["members"][0]["metrics"][HOSTILE] = HOSTILE
    metrics["audit"] = {
        "ran": True,
        "n_times": 8,
        "leaks": [{"feature": HOSTILE, "first_time": HOSTILE, "n_changed": 1}],
    }
    path.write_text(json.dumps(metrics))
    (run_dir / "config.yaml").write_text(f"name: {HOSTILE}\n")
    for name in ("pnl.parquet", "positions.parquet"):
        table = pl.read_parquet(run_dir / name)
        renamed = pl.col("strategy").replace("ridge", HOSTILE)
        table.with_columns(renamed).write_parquet(run_dir / name)
    positions = pl.read_parquet(run_dir / "positions.parquet")
    two = [positions.with_columns(group=pl.lit(HOSTILE)), positions.with_columns(group=pl.lit("B"))]
    pl.concat(two).write_parquet(run_dir / "positions.parquet")

    page = report(run_dir)

    found = Elements()
    found.feed(page.markup)
    assert found.started.count("script") == 4  # two of data, plotly, ours
    assert found.handlers == []
    assert not {"img", "b"} & set(found.started)
    shown = " ".join(HOSTILE.split())
    for section in ("Leak audit", "Reproduction"):
        assert shown in page.text[page.text.rindex(section) :]
    assert page.text.count(shown) > 30


def test_text_inside_charts_is_escaped_for_plotly(run_dir: Path, report: Callable[[Path], Any]) -> None:
    table = pl.read_parquet(run_dir / "pnl.parquet")
    table.with_columns(pl.col("strategy").replace("ridge", "<b>bold</b>")).write_parquet(run_dir / "pnl.parquet")
    names = {trace["name"] for trace in report(run_dir).figures["equity"]["data"]}
    assert "&lt;b&gt;bold&lt;/b&gt;" in names
