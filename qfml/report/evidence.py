"""How it came about: the training of each member, the quality of the predictions, positions, costs and activity."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from qfml.engine.overfitting import Gap
from qfml.report import charts, formats, time_charts
from qfml.report.curves import learning_curves
from qfml.report.folder import RunFolder
from qfml.report.gap import Gaps, gap_chart, network_gaps
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, el, join, scrolling_table

__all__ = ["activity", "positions", "prediction", "training"]

STATUSES = {"finished": "ran all epochs", "early_stopped": "stopped early", "nan": "diverged (loss not finite)"}


def training(run: RunFolder, figures: Charts) -> Section:
    """Learning curves of every member, the gap between their losses, and the table behind them."""
    members = run.metrics["members"]
    counts = Counter(member["status"] for member in members)
    told = ", ".join(f"{number} {STATUSES.get(status, status)}" for status, number in counts.most_common())
    best = [m["best_epoch"] for m in members if isinstance(m["best_epoch"], (int, float))]
    spread = f" Best epoch: median {statistics.median(best):.0f}, from {min(best)} to {max(best)}." if best else ""
    parts: list[Html] = []
    if counts.get("nan"):
        parts.append(warning(f"{counts['nan']} of {len(members)} members diverged: their loss is not finite."))
    legend = el(
        "p",
        el("i", class_="line", style="background:#9aa4ae"),
        "training loss",
        el("i", class_="line", style="background:#0b4f8a"),
        "validation loss",
        el("i", class_="dot", style="background:#c8553d"),
        "best epoch, whose weights are used",
        class_="key",
    )
    parts += [legend, learning_curves(run.log, members)]
    parts.append(note("Every panel has its own scale; a first epoch far above the rest is cut off at the top."))
    gaps = network_gaps(run.log)
    parts.append(gap_chart(gaps, len(members), figures))
    parts.append(el("details", el("summary", f"All {len(members)} members"), _member_table(members, gaps)))
    return Section("training", "Training", f"{len(members)} members: {told}.{spread}", join(parts))


def _member_table(members: Sequence[Mapping[str, Any]], gaps: Gaps) -> Html:
    names = list(dict.fromkeys(name for member in members for name in member.get("metrics", {})))
    heads = ["Fold", "Seed", "Status", "Epochs", "Best epoch", "Gap open from"]
    heads += ["Best validation loss", "Final training loss"]
    rows = [
        [
            member["fold"],
            member["seed"],
            STATUSES.get(member["status"], member["status"]),
            formats.count(member.get("n_epochs")),
            formats.count(member["best_epoch"]),
            _opened(gaps.get((member["fold"], member["seed"]))),
            formats.significant(member.get("best_val_loss")),
            formats.significant(member.get("final_train_loss")),
            *(formats.metric_value(name, member.get("metrics", {}).get(name)) for name in names),
        ]
        for member in members
    ]
    heads += [formats.metric_label(name) for name in names]
    return scrolling_table(heads, rows, n_text=3, caption="Members")


def _opened(gap: Gap | None) -> str:
    """The epoch from which on the gap is open."""
    if gap is None:
        return formats.MISSING
    return "not open" if gap.opened_at is None else formats.count(gap.opened_at)


def prediction(run: RunFolder, figures: Charts) -> Section:
    """Out-of-sample quality of the predictions beside the baselines, and calibration."""
    models = {k: v for k, v in run.metrics["prediction"].items() if isinstance(v, Mapping)}
    names = formats.sort_strategies(models)
    is_number = {m: _is_number(v) for name in names for m, v in models[name].items()}
    columns = [metric for metric, numeric in is_number.items() if numeric]
    rows = [
        [formats.label_of(name), *(formats.metric_value(metric, models[name].get(metric)) for metric in columns)]
        for name in names
    ]
    heads = ["Model", *map(formats.metric_label, columns)]
    parts = [scrolling_table(heads, rows, caption="Out-of-sample predictions, all folds", marked=frozenset({0}))]
    for metric in (metric for metric, numeric in is_number.items() if not numeric):
        parts += [_other(metric, name, models[name][metric]) for name in names if metric in models[name]]
    figure = charts.calibration_figure(run.metrics["calibration"])
    if figure is None:
        parts.append(note("No calibration: the run recorded no bins."))
    else:
        caption = "Samples are binned by what the network predicted; on the dotted line it is right on average."
        parts.append(figures.place("calibration", figure, "Calibration", caption))
    label = run.metrics["data"]["label"]
    n_rows = formats.count(len(run.predictions))
    intro = join(["How well ", el("code", label), f" was predicted on {n_rows} test rows, before any position."])
    return Section("prediction", "Prediction", intro, join(parts))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _other(metric: str, model: str, value: Any) -> Html:
    """A metric that is not one number: a confusion matrix as a table, anything else as it was written."""
    title = f"{formats.metric_label(metric)}, {formats.label_of(model)}"
    if isinstance(value, list) and value and all(isinstance(row, list) and len(row) == len(value) for row in value):
        heads = ["actual \\ predicted", *(str(k) for k in range(len(value)))]
        rows = [[k, *map(formats.count, row)] for k, row in enumerate(value)]
        return el("div", el("h3", title), scrolling_table(heads, rows, caption=title), class_="compact")
    return note(f"{title}: {json.dumps(value)}")


def positions(run: RunFolder, figures: Charts) -> Section:
    """What was held and what it cost."""
    window = _month(run)
    parts = [
        figures.place(
            "position", time_charts.position_figure(run, window), "What the network held", f"Dark: {_averaged(window)}."
        ),
        figures.place(
            "cost", time_charts.cost_figure(run), "Where the network's return went", "Running sums, not compounded."
        ),
        _cost_table(run),
    ]
    if run.is_panel:
        per_asset = _per_asset(run)
        half = charts.MAX_ASSETS // 2
        shown = f"The {half} best and the {half} worst." if len(per_asset) > charts.MAX_ASSETS else ""
        parts.append(figures.place("assets", charts.asset_figure(per_asset), "Net contribution by asset", shown))
        table = el("details", el("summary", f"All {len(per_asset)} assets"), _asset_table(per_asset))
        parts.append(table)
    conventions = run.metrics["conventions"]
    lag = conventions["execution_lag"]
    wait = (
        "at the price of the decision itself"
        if lag == 0
        else f"{lag} period{'' if lag == 1 else 's'} after the decision"
    )
    intro = f"Trades cost {formats.bps(conventions['cost_bps'])} of turnover and are filled {wait}."
    return Section("positions", "Positions and costs", intro, join(parts))


def _cost_table(run: RunFolder) -> Html:
    names = formats.sort_strategies(n for n in run.pnl["strategy"].unique().to_list() if not charts.is_seed(n))
    rows = []
    for name in names:
        total = (
            run.strategy(name).select(pl.col("gross", "cost", "net", "turnover", "exposure").mean()).row(0, named=True)
        )
        a_year = {key: _times(value, run.periods_per_year) for key, value in total.items()}
        paid = _times(_over(total["cost"], total["turnover"]), 1e4)
        rows.append(
            [
                formats.label_of(name),
                formats.percent(a_year["gross"]),
                formats.percent(a_year["cost"]),
                formats.percent(a_year["net"]),
                formats.percent(_over(a_year["cost"], abs(a_year["gross"]) if a_year["gross"] else None)),
                formats.times(a_year["turnover"]),
                formats.bps(paid),
                formats.ratio(total["exposure"]),
            ]
        )
    heads = ["Strategy", "Gross a year", "Cost a year", "Net a year", "Cost / |gross|"]
    heads += ["Turnover a year", "Cost per turnover", "Mean exposure"]
    return scrolling_table(heads, rows, caption="Returns before and after costs", marked=frozenset({0}))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _per_asset(run: RunFolder) -> pl.DataFrame:
    held = run.positions.filter(pl.col("strategy") == "network")
    sums = (pl.col("gross", "cost", "net").fill_nan(None).sum(), pl.col("position").mean(), pl.len().alias("n"))
    return held.group_by(pl.col("group").cast(pl.String)).agg(*sums).sort("net", descending=True)


def _asset_table(per_asset: pl.DataFrame) -> Html:
    rows = [
        [
            row["group"],
            *(formats.percent(row[k]) for k in ("gross", "cost", "net", "position")),
            formats.count(row["n"]),
        ]
        for row in per_asset.iter_rows(named=True)
    ]
    heads = ("Asset", "Gross, sum", "Cost, sum", "Net, sum", "Mean position", "Periods")
    return scrolling_table(heads, rows, caption="Network by asset")


def activity(run: RunFolder, figures: Charts) -> Section:
    """Turnover and exposure through time."""
    window = _month(run)
    figure = time_charts.activity_figure(run, window)
    chart = figures.place("activity", figure, "Turnover and exposure", f"Per period; {_averaged(window)}.")
    intro = "Turnover is the fraction of capital traded in a period; exposure the sum of absolute positions."
    return Section("activity", "Activity", intro, chart)


def _month(run: RunFolder) -> int:
    """Periods in about a month, over which noisy lines are averaged."""
    return max(1, round(run.periods_per_year / 12))


def _averaged(window: int) -> str:
    return "every period" if window == 1 else f"average of the last {window} periods"
