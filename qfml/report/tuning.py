"""The page of a search: the winner and what its luck may be, every trial, and which parameters mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qfml.errors import UserError
from qfml.finished import read_metrics
from qfml.report import formats
from qfml.report.charts import Figure, plain
from qfml.report.folder import read_text
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.parameters import COLORS, parameter_panels, value_text
from qfml.report.provenance import origin
from qfml.tune.space import short_names

__all__ = ["write_tuning_report"]

REQUIRED = (
    "winner",
    "significance",
    "trials",
    "objective",
    "space",
    "search",
    "n_planned",
    "folds",
    "backtest",
    "versions",
    "data",
    "seconds",
)
WINNER, PRUNED, OTHER = "#c8553d", "#cfd4d9", "#86a9c8"


def write_tuning_report(run_dir: str | Path) -> Path:
    """Write `report.html`, one page that works offline, into the folder of a finished search.

    Args:
        run_dir: Folder of `qfml tune`.

    Returns:
        Path of `report.html`.

    Raises:
        UserError: If the search is not finished, or its files are damaged or from another version.
    """
    folder = Path(run_dir)
    found, text = _read(folder)
    charts = Charts()
    sections = [
        _significance(found),
        _trials(found, charts),
        _parameters(found),
        _folds(found),
        _reproduction(found, text),
    ]
    return write_page(folder, "Hyperparameter search", _headline(found), sections, charts)


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    found = read_metrics(folder, search=True)
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise UserError(
            f"{folder / 'metrics.json'} lacks {', '.join(missing)}; it was written by another version: search again"
        )
    return found, read_text(folder / "config.yaml")


def _headline(found: Mapping[str, Any]) -> Html:
    """What won, how sure that is, and what its backtest says."""
    winner, significance = found["winner"], found["significance"]
    params = join((el("code", f"{name} = {value_text(value)}") for name, value in winner["params"].items()), " ")
    cards = [
        (found["objective"]["name"], formats.significant(winner["value"]), "of the winner"),
        ("Sharpe ratio", formats.ratio(significance["sharpe_ratio"]), "on the blocks it was chosen by"),
        ("Deflated Sharpe", formats.probability(significance["deflated_sharpe_ratio"]), _trial_count(significance)),
        ("PBO", formats.probability(significance["pbo"]), "probability of overfitting"),
        ("Deflated Sharpe", formats.probability(found["backtest"].get("deflated_sharpe_ratio")), "of its backtest"),
    ]
    parts = [
        el("div", el("dt", name), el("dd", value), el("dd", small, class_="interval")) for name, value, small in cards
    ]
    link = el("a", "its backtest", href="winner/report.html")
    return el(
        "header",
        el("p", "Hyperparameter search", class_="eyebrow"),
        el("h1", f"Trial {winner['place'] + 1} of {len(found['trials'])} won"),
        el("p", params, class_="lead"),
        el(
            "p",
            found["data"]["source"],
            ". On rows that no trial has seen (",
            link,
            "): ",
            found["backtest"]["verdict"],
        ),
        el("dl", *parts, class_="cards"),
        class_="title",
    )


def _trial_count(significance: Mapping[str, Any]) -> str:
    return f"{formats.count(significance['n_trials'])} trials in the ledger"


def _made(found: Mapping[str, Any]) -> str:
    """How many trials there were and what became of them."""
    trials = found["trials"]
    pruned = sum(trial["state"] == "pruned" for trial in trials)
    ended = f"{formats.count(len(trials) - pruned)} trained to the end"
    left = found["n_planned"] - len(trials)
    late = f" The time limit ended the search before the other {formats.count(left)}." if left > 0 else ""
    if not found["search"].get("halving"):
        return f"{formats.count(len(trials))} trials, all trained to the end; there was no successive halving.{late}"
    return f"{formats.count(len(trials))} trials: {ended}, {formats.count(pruned)} dropped by successive halving.{late}"


def _significance(found: Mapping[str, Any]) -> Section:
    own = found["significance"]
    rows = [
        ("Sharpe ratio of the winner, a year", formats.ratio(own["sharpe_ratio"])),
        ("Probabilistic Sharpe ratio", formats.probability(own["probabilistic_sharpe_ratio"])),
        ("Trials of this search", formats.count(len(found["trials"]))),
        ("Trials in the ledger, all on these data", formats.count(own["n_trials"])),
        ("Variance of the trials' Sharpe ratios a period", formats.significant(own["trial_variance"], 3)),
        ("Deflated Sharpe ratio", formats.probability(own["deflated_sharpe_ratio"])),
        ("Probability of backtest overfitting (PBO)", formats.probability(own["pbo"])),
        ("Periods judged", formats.count(own["n_periods"])),
    ]
    remarks = [note(f"No probability of overfitting: {own['pbo_missing']}.")] if own["pbo_missing"] else []
    remarks.append(
        note(
            "A network's epoch and the winner are both chosen on these blocks, so that the first two rows flatter. The "
            "deflated ratio is the probability that the true Sharpe ratio is above what the best of all trials in the "
            "ledger would show by luck; PBO is how often the best trial on one half of the periods falls below the "
            "median on the other. The winner's backtest is free of both choices."
        )
    )
    intro = "How much of the winner's record on the blocks it was chosen by is the luck of the best of many."
    table = scrolling_table(("Measure", "Value"), rows, caption="Significance of the winner")
    return Section("significance", "Significance", intro, join([table, *remarks]))


def _trials(found: Mapping[str, Any], charts: Charts) -> Section:
    """The objective by epoch, and every trial from the best."""
    objective, winner = found["objective"], found["winner"]["place"]
    names = list(found["space"])
    sign = -1.0 if objective["mode"] == "max" else 1.0

    def rank(trial: Mapping[str, Any]) -> tuple[bool, float]:
        return trial["state"] != "complete", sign * trial["value"] if trial["value"] is not None else np.inf

    ordered = sorted(found["trials"], key=rank)
    rows = [
        [
            str(trial["place"] + 1),
            "dropped" if trial["state"] == "pruned" else "to the end",
            formats.significant(trial["value"]),
            formats.ratio(trial["sharpe_ratio"]),
            formats.count(max(trial["epochs"])),
            *(value_text(trial["params"][name]) for name in names),
        ]
        for trial in ordered
    ]
    shorts = [el("span", short, title=name) for name, short in short_names(names).items()]
    heads = ["Trial", "Trained", objective["name"], "Sharpe ratio", "Epochs", *shorts]
    marked = frozenset(i for i, trial in enumerate(ordered) if trial["place"] == winner)
    figure = charts.place(
        "trials",
        _curves(found),
        "Objective by epoch",
        f"Best so far, mean over folds and seeds; {'higher' if sign < 0 else 'lower'} is better. What first epochs "
        "have beyond the last values of all trials is cut off.",
    )
    table = scrolling_table(heads, rows, n_text=2, caption="Trials, the best first", marked=marked)
    return Section("trials", "Trials", f"{_made(found)} All of them count as tried.", join([figure, table]))


def _curves(found: Mapping[str, Any]) -> Figure:
    """A line a trial: what was dropped behind, the winner in front."""
    kinds = {"pruned": ("Dropped", PRUNED, 1.0), "complete": ("To the end", OTHER, 1.2)}
    winner, traces = found["winner"]["place"], []
    order = sorted(found["trials"], key=lambda each: (each["place"] == winner, each["state"] != "pruned"))
    for trial in order:
        name, color, width = kinds.get(trial["state"], kinds["pruned"])
        if trial["place"] == winner:
            name, color, width = "Winner", WINNER, 2.5
        curve = np.array([np.nan if value is None else value for value in trial["curve"]], dtype=float)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(curve) == 1 else "lines",
                "x": np.arange(1, len(curve) + 1, dtype=float),
                "y": curve,
                "name": name,
                "legendgroup": name,
                "legendrank": {"Winner": 1, "To the end": 2, "Dropped": 3}[name],
                "showlegend": all(name != trace["name"] for trace in traces),
                "line": {"color": color, "width": width},
                "hovertemplate": f"trial {trial['place'] + 1}, epoch %{{x}}: %{{y:.4g}}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": plain(found["objective"]["name"])}, "range": _range_of_last(found["trials"])},
        "hovermode": "closest",
        "margin": {"l": 60, "r": 10, "t": 10, "b": 40},
    }
    return {"data": traces, "layout": layout, "height": 380}


def _range_of_last(trials: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """From the best to the worst of the trials' last values, and a little more."""
    known = [trial["value"] for trial in trials if trial["value"] is not None]
    margin = 0.06 * (max(known) - min(known)) if known else 0.0
    return [min(known) - margin, max(known) + margin] if margin else None


def _parameters(found: Mapping[str, Any]) -> Section:
    """Which parameters mattered, and which of their values were good."""
    intro = "Which parameters moved the objective, and where in their ranges the good trials lie."
    shares = found.get("importance")
    if shares:
        rows = [[el("code", name), formats.percent(share)] for name, share in shares.items()]
        table = scrolling_table(("Parameter", "Importance"), rows, caption="Importance of the parameters")
        how = (
            "Importance: the share of the objective's variance over the trials trained to the end that a parameter "
            "explains (functional ANOVA)."
        )
        told = join([el("div", table, class_="compact"), note(how)])
    else:
        told = note(
            "Importance is not told: it needs at least four trials trained to the end, with different objectives."
        )
    key = el(
        "p",
        *(
            part
            for kind, text in (("winner", "winner"), ("complete", "trained to the end"), ("pruned", "dropped"))
            for part in (el("i", class_="dot", style=f"background:{COLORS[kind]}"), text)
        ),
        class_="key",
    )
    edge = note(
        "A dot is a trial at its objective; those outside the range of the trials trained to the end stand at the edge."
    )
    return Section("parameters", "Parameters", intro, join([told, key, parameter_panels(found), edge]))


def _folds(found: Mapping[str, Any]) -> Section:
    """What each fold trained on and was judged on, and how many training rows look back into the block."""
    back = sum(fold["looking_back"] for fold in found["folds"])
    counted = {"train": "Train rows", "purged": "Purged", "embargoed": "Embargoed", "judged": "Rows judged"}
    counted |= {"looking_back": "Train rows looking back"} if back else {}
    rows = [
        [str(number), formats.span(fold["from"], fold["to"]), *(formats.count(fold[name]) for name in counted)]
        for number, fold in enumerate(found["folds"])
    ]
    heads = ("Fold", "Judged on", *counted.values())
    parts = [scrolling_table(heads, rows, n_text=2, caption="Folds of the search")]
    if back:
        parts.append(
            note(
                f"{formats.count(back)} training rows lie after their block and look back into it: their features see "
                "prices that its labels are made of, so that trials may look better than they are. ",
                el("code", "purge_lookback: true"),
                " in ",
                el("code", "tune.split"),
                " leaves those rows out.",
            )
        )
    intro = "All before the first test block of the backtest; rows whose labels overlap a block are purged."
    return Section("folds", "Folds", intro, join(parts))


def _reproduction(found: Mapping[str, Any], text: str) -> Section:
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(found["created"]).replace("T", " ")),
        *origin(found, found["data"].get("data_hash")),
        *((f"Seconds, {name}", formats.significant(value, 3)) for name, value in found["seconds"].items()),
        *found["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", text), open=True)]
    intro = "Everything needed to make this page again; study.db is Optuna's storage, best.yaml the winner's config."
    return Section("reproduction", "Reproduction", intro, join(parts))
