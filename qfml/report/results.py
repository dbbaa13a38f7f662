"""What came out: the verdict, the headline numbers, the comparison, its significance, the folds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from qfml.report import charts, formats, time_charts
from qfml.report.folder import RunFolder
from qfml.report.layout import Charts, Section, note, warning
from qfml.report.markup import Html, el, join, scrolling_table

__all__ = ["folds", "headline", "performance", "significance"]

HEADLINES = ("sharpe_ratio", "annualised_return", "annualised_vol", "max_drawdown", "hit_rate", "turnover")
CONFIDENT = 0.95


def headline(run: RunFolder) -> Html:
    """The title block: what was run, the verdict in words, and the numbers it rests on."""
    metrics = run.metrics
    rows = run.strategy("network")
    folds, members = metrics["folds"], metrics["members"]
    seeds = len({member["seed"] for member in members})
    subtitle = [
        f"{metrics['data']['source']}. Out of sample ",
        formats.span(rows["time"][0], rows["time"][-1]),
        f": {formats.count(len(rows))} periods, {formats.years(len(rows) / run.periods_per_year)}; ",
        f"{_plural(len(folds), 'fold')}, {_plural(seeds, 'seed')}, {_plural(len(members), 'network')} trained.",
    ]
    verdict = metrics["significance"]["verdict"] or "This run states no verdict."
    return el(
        "header",
        el("p", "Walk-forward backtest", class_="eyebrow"),
        el("h1", verdict),
        el("p", _comparison(metrics["strategies"]), class_="lead"),
        el("p", *subtitle, class_="muted"),
        _cards(metrics),
        class_="title",
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _comparison(strategies: Mapping[str, Any]) -> str:
    """The plain fact behind the verdict: the network's Sharpe ratio beside that of the best baseline."""
    sharpes = {name: entry.get("metrics", {}).get("sharpe_ratio") for name, entry in strategies.items()}
    own = sharpes.pop("network", None)
    bounds = strategies["network"].get("intervals", {}).get("sharpe_ratio")
    written = " ".join(filter(None, (formats.ratio(own), formats.interval(bounds, formats.ratio))))
    sentence = f"After costs the network earned a Sharpe ratio of {written}"
    known = {name: value for name, value in sharpes.items() if isinstance(value, (int, float)) and np.isfinite(value)}
    if not known:
        return sentence + "; there is no baseline to set it against."
    best = max(known, key=lambda name: known[name])
    label = formats.label_of(best)
    return (
        f"{sentence}; the best baseline, {label if label.isupper() else label.lower()}, {formats.ratio(known[best])}."
    )


def _cards(metrics: Mapping[str, Any]) -> Html:
    network = metrics["strategies"]["network"]
    cards = []
    for name in HEADLINES:
        if name in network["metrics"]:
            bounds = formats.interval(
                network.get("intervals", {}).get(name), lambda x, n=name: formats.metric_value(n, x)
            )
            cards.append((formats.metric_label(name), formats.metric_value(name, network["metrics"][name]), bounds))
    deflated = metrics["significance"].get("deflated_sharpe_ratio")
    trials = metrics["significance"].get("n_trials")
    small = f"{formats.count(trials)} trial{'' if trials == 1 else 's'} counted" if trials is not None else ""
    cards.insert(1, ("Deflated Sharpe", formats.probability(deflated), small))
    parts = [
        el("div", el("dt", label), el("dd", value), el("dd", bounds or Html("&nbsp;"), class_="interval"))
        for label, value, bounds in cards
    ]
    return el("dl", *parts, class_="cards")


def performance(run: RunFolder, figures: Charts) -> Section:
    """Equity and drawdown, and the table of every strategy's metrics."""
    network_first = "All strategies trade the same folds, pay the same costs and wait the same execution lag."
    buttons = []
    if time_charts.can_be_logarithmic(run):
        buttons.append(el("button", "log scale", type="button", data_log="equity", aria_pressed="false"))
    chart = figures.place(
        "equity",
        time_charts.equity_figure(run),
        "Growth of 1 after costs, and drawdown",
        "Compounded; a point carries the date on which its period starts.",
        join(buttons),
    )
    content = join([chart, *_remarks(run), _strategy_table(run.metrics)])
    return Section("performance", "Performance", network_first, content)


def _remarks(run: RunFolder) -> list[Html]:
    """What the chart cannot show: lines that end in ruin, periods without a return."""
    remarks = []
    for name in run.pnl["strategy"].unique(maintain_order=True).to_list():
        rows = run.strategy(name)
        ruined = rows.filter(pl.col("net") <= -1.0)
        label = formats.label_of(name)
        if not ruined.is_empty():
            remarks.append(warning(f"{label} lost its whole capital on {formats.day(ruined['time'][0])}."))
        unknown = int((~np.isfinite(rows["net"].cast(pl.Float64).fill_null(np.nan).to_numpy())).sum())
        if unknown:
            remarks.append(
                note(f"{label}: {formats.count(unknown)} periods without a known return, drawn as no return.")
            )
    return remarks


def _strategy_table(metrics: Mapping[str, Any]) -> Html:
    strategies = metrics["strategies"]
    names = formats.sort_strategies(name for name in strategies if not charts.is_seed(name))
    columns = list(dict.fromkeys(metric for name in names for metric in strategies[name].get("metrics", {})))
    columns.sort(key=lambda metric: HEADLINES.index(metric) if metric in HEADLINES else len(HEADLINES))
    rows = []
    for name in names:
        entry = strategies[name]
        swatch = el("i", class_="swatch", style=f"background:{charts.color_of(name, names)}")
        cells: list[object] = [el("span", swatch, formats.label_of(name), class_="nb")]
        for metric in columns:
            value = formats.metric_value(metric, entry.get("metrics", {}).get(metric))
            bounds = formats.interval(
                entry.get("intervals", {}).get(metric), lambda x, metric=metric: formats.metric_value(metric, x)
            )
            cells.append(join([value, el("small", bounds)]) if bounds else value)
        rows.append(cells)
    heads = ["Strategy", *map(formats.metric_label, columns)]
    level = metrics["conventions"].get("confidence")
    stated = f"{formats.percent(level)} intervals" if isinstance(level, float) else "Intervals"
    table = scrolling_table(heads, rows, caption="Out-of-sample metrics of every strategy", marked=frozenset({0}))
    return join([table, note(f"{stated} in brackets come from a stationary bootstrap of the strategy's own returns.")])


def significance(run: RunFolder) -> Section:
    """What the record can bear: probabilistic and deflated Sharpe, track-record lengths, SPA, PBO."""
    found = run.metrics["significance"]
    n_years = formats.years(len(run.strategy("network")) / run.periods_per_year)
    rows = [
        (
            "Probabilistic Sharpe ratio",
            formats.probability(found.get("probabilistic_sharpe_ratio")),
            _confidence(found.get("probabilistic_sharpe_ratio")),
            "Probability that the true Sharpe ratio is above zero, given the length, skew and tails of the record.",
        ),
        (
            "Deflated Sharpe ratio",
            formats.probability(found.get("deflated_sharpe_ratio")),
            _confidence(found.get("deflated_sharpe_ratio")),
            _deflation(found),
        ),
        (
            "SPA p-value",
            formats.probability(found.get("spa_p_value")),
            _rejects(found.get("spa_p_value")),
            "Superior predictive ability: how often chance alone would beat the baselines by this much.",
        ),
        (
            "Probability of backtest overfitting",
            formats.probability(found.get("pbo")),
            "",
            found.get("pbo_note") or "How often the best configuration in sample falls below the median out of sample.",
        ),
        (
            "Minimum track record",
            formats.years(found.get("min_track_record_length_years")),
            _long_enough(found.get("min_track_record_length_years"), run),
            f"Record needed to hold this Sharpe ratio above zero with 95% confidence; this one has {n_years}.",
        ),
        (
            "Minimum backtest length",
            formats.years(found.get("min_backtest_length_years")),
            _long_enough(found.get("min_backtest_length_years"), run),
            "Below this length the number of trials alone makes a Sharpe ratio of one likely by luck.",
        ),
    ]
    table = scrolling_table(("Test", "Value", "Reading", "What it says"), rows, n_text=1, caption="Significance")
    intro = "Whether the result could be luck, counting every configuration that was ever tried on these data."
    return Section("significance", "Significance", intro, el("div", table, class_="wordy"))


def _deflation(found: Mapping[str, Any]) -> str:
    trials = found.get("n_trials")
    if trials == 1:
        return "One configuration was tried on these data, so that this is the probabilistic Sharpe ratio."
    return (
        f"The same against the best of {formats.count(trials)} configurations tried on these data "
        f"(variance of their Sharpe ratios {formats.significant(found.get('trial_variance'), 3)})."
    )


def _confidence(value: Any) -> str:
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        return ""
    return "above 0.95" if value >= CONFIDENT else "below 0.95"


def _rejects(value: Any) -> str:
    if not isinstance(value, (int, float)) or not np.isfinite(value):
        return ""
    return "significant at 5%" if value < 1 - CONFIDENT else "not significant at 5%"


def _long_enough(needed: Any, run: RunFolder) -> str:
    if not isinstance(needed, (int, float)) or np.isnan(needed):
        return ""
    return "long enough" if len(run.strategy("network")) / run.periods_per_year >= needed else "too short"


def folds(run: RunFolder, figures: Charts) -> Section:
    """The fold diagram, the network's Sharpe ratio by fold and seed, and the table of folds."""
    entries = run.metrics["folds"]
    parts = [figures.place("folds", charts.fold_figure(entries), "What each fold saw")]
    by_seed = charts.fold_sharpe_figure(entries, run.metrics["members"])
    if by_seed is not None:
        spread = "A bar is the ensemble of all seeds, a dot one seed: the spread is what the seed alone decides."
        parts.append(figures.place("fold-sharpe", by_seed, "Sharpe ratio by fold", spread))
    parts.append(_fold_table(entries))
    intro = "Each network is tested on the time after its training data; rows whose labels overlap the test are purged."
    return Section("folds", "Folds", intro, join(parts))


def _fold_table(entries: Sequence[Mapping[str, Any]]) -> Html:
    names = list(dict.fromkeys(name for fold in entries for name in fold.get("metrics", {})))
    heads = ["Fold", "Train", "Test", "Train rows", "Valid. rows", "Purged", "Embargoed", "Test rows"]
    rows = []
    for fold in entries:
        sizes = [formats.count(fold.get(f"n_{kind}")) for kind in ("train", "val", "purged", "embargoed", "test")]
        values = [formats.metric_value(name, fold.get("metrics", {}).get(name)) for name in names]
        rows.append([fold["fold"], _span(fold, "train"), _span(fold, "test"), *sizes, *values])
    if len(rows) > 1 and names:
        medians = [formats.metric_value(name, _median(entries, name)) for name in names]
        rows.append(["median", "", "", *[""] * 5, *medians])
    marked = frozenset({len(entries)}) if len(rows) > len(entries) else frozenset()
    heads += [formats.metric_label(name) for name in names]
    return scrolling_table(heads, rows, n_text=3, caption="Folds of the network", marked=marked)


def _median(entries: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [fold.get("metrics", {}).get(name) for fold in entries]
    known = [value for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
    return statistics.median(known) if known else None


def _span(fold: Mapping[str, Any], kind: str) -> object:
    parts = [part for part in fold["blocks"] if part["kind"] == kind]
    if not parts:
        return formats.MISSING
    more = f" ({len(parts)} blocks)" if len(parts) > 1 else ""
    return join([formats.span(parts[0]["start"], parts[-1]["end"]), more])
