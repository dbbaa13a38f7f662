"""The page of a search: the winner and what its luck may be, every trial, and which parameters mattered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qfml.errors import UserError
from qfml.report import formats
from qfml.report.charts import Figure
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import FILE_NAME, OFFLINE, document

__all__ = ["write_tuning_report"]

REQUIRED = (
    "winner",
    "significance",
    "trials",
    "objective",
    "space",
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
        _importance(found),
        _folds(found),
        _reproduction(found, text),
    ]
    links = [el("a", section.title, href=f"#{section.key}") for section in sections]
    body = [
        el("nav", el("div", *links), aria_label="Sections"),
        el("main", _headline(found), *(section.html() for section in sections)),
        el("footer", "Made by qfml from the folder ", el("code", folder.resolve().name), ". ", OFFLINE),
    ]
    target = folder / FILE_NAME
    temporary = target.with_suffix(".html.tmp")
    temporary.write_text(document(body, charts, "Hyperparameter search"), encoding="utf-8")
    os.replace(temporary, target)
    return target


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "metrics.json"
    if not path.is_file():
        raise UserError(f"no finished search in {folder}: it holds no metrics.json; finish it with `qfml resume`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise UserError(f"{folder} is damaged ({error}); search again") from None
    missing = [name for name in REQUIRED if name not in found] if isinstance(found, dict) else list(REQUIRED)
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it was written by another version: search again")
    return found, text


def _headline(found: Mapping[str, Any]) -> Html:
    """What won, how sure that is, and what its backtest says."""
    winner, significance = found["winner"], found["significance"]
    params = join((el("code", f"{name} = {_value(value)}") for name, value in winner["params"].items()), ", ")
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
    return f"{formats.count(significance['n_trials'])} trials counted"


def _significance(found: Mapping[str, Any]) -> Section:
    own = found["significance"]
    rows = [
        ("Sharpe ratio of the winner, a year", formats.ratio(own["sharpe_ratio"])),
        ("Probabilistic Sharpe ratio", formats.probability(own["probabilistic_sharpe_ratio"])),
        ("Trials", formats.count(own["n_trials"])),
        ("Deflated Sharpe ratio", formats.probability(own["deflated_sharpe_ratio"])),
        ("Probability of backtest overfitting", formats.probability(own["pbo"])),
        ("Periods judged", formats.count(own["n_periods"])),
    ]
    remarks = [note(f"No probability of overfitting: {own['pbo_missing']}.")] if own["pbo_missing"] else []
    remarks.append(
        note(
            "A network's epoch and the winner are both chosen on these blocks, so that the first two rows flatter; the "
            "deflated ratio takes the number of trials off, the backtest is free of both."
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
            *(_value(trial["params"][name]) for name in names),
        ]
        for trial in ordered
    ]
    heads = ["Trial", "Trained", objective["name"], "Sharpe ratio", "Epochs", *names]
    marked = frozenset(i for i, trial in enumerate(ordered) if trial["place"] == winner)
    figure = charts.place("trials", _curves(found), "Objective by epoch", "Best so far, mean over folds and seeds.")
    table = scrolling_table(heads, rows, n_text=2, caption="Trials, the best first", marked=marked)
    intro = "Every trial that was made; all of them count as tried."
    return Section("trials", "Trials", intro, join([figure, table]))


def _curves(found: Mapping[str, Any]) -> Figure:
    traces = []
    for trial in sorted(found["trials"], key=lambda each: each["place"] == found["winner"]["place"]):
        own = trial["place"] == found["winner"]["place"]
        curve = np.array([np.nan if value is None else value for value in trial["curve"]], dtype=float)
        color = WINNER if own else PRUNED if trial["state"] == "pruned" else OTHER
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(curve) == 1 else "lines",
                "x": np.arange(1, len(curve) + 1, dtype=float),
                "y": curve,
                "name": f"trial {trial['place'] + 1}",
                "line": {"color": color, "width": 2.5 if own else 1.2},
                "showlegend": False,
            }
        )
    layout = {
        "xaxis": {"title": {"text": "epoch"}},
        "yaxis": {"title": {"text": found["objective"]["name"]}},
        "margin": {"l": 60, "r": 10, "t": 10, "b": 40},
    }
    return {"data": traces, "layout": layout, "height": 380}


def _importance(found: Mapping[str, Any]) -> Section:
    intro = "Share of the objective's variance over the trials that each parameter explains (functional ANOVA)."
    shares = found.get("importance")
    if not shares:
        told = note("Not told: it needs at least four trials that were trained to the end, with different objectives.")
        return Section("importance", "Importance", intro, told)
    rows = [[el("code", name), formats.percent(share)] for name, share in shares.items()]
    table = scrolling_table(("Parameter", "Share"), rows, caption="Importance of the parameters")
    return Section("importance", "Importance", intro, table)


def _folds(found: Mapping[str, Any]) -> Section:
    rows = [
        [
            str(number),
            formats.span(fold["from"], fold["to"]),
            *(formats.count(fold[name]) for name in ("train", "purged", "embargoed", "judged")),
        ]
        for number, fold in enumerate(found["folds"])
    ]
    heads = ("Fold", "Judged on", "Train rows", "Purged", "Embargoed", "Rows judged")
    intro = "All before the first test block of the backtest; rows whose labels overlap a block are purged."
    return Section("folds", "Folds", intro, scrolling_table(heads, rows, n_text=2, caption="Folds of the search"))


def _reproduction(found: Mapping[str, Any], text: str) -> Section:
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(found["created"]).replace("T", " ")),
        ("Config hash", el("code", found["config_hash"])),
        ("Data hash", el("code", found["data"]["data_hash"])),
        *((f"Seconds, {name}", formats.significant(value, 3)) for name, value in found["seconds"].items()),
        *found["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", text), open=True)]
    intro = "Everything needed to make this page again; study.db is Optuna's storage, best.yaml the winner's config."
    return Section("reproduction", "Reproduction", intro, join(parts))


def _value(value: Any) -> str:
    return formats.significant(value) if isinstance(value, float) else "none" if value is None else str(value)
