"""The page of a walk through history: what hedges would have earned, date by date, beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from qfml.errors import UserError
from qfml.finished import check_sections, read_metrics
from qfml.report import formats
from qfml.report.charts import fold_figure
from qfml.report.folder import read_text
from qfml.report.hedging_run import HedgingRun, label_of
from qfml.report.hedging_settings import settings_text
from qfml.report.hedging_walk_charts import difference_figure, earned_figure, risk_figure, rivals_of
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin

__all__ = ["write_walk_page"]

REQUIRED = {
    "walk_forward": (
        *("objective", "dial", "history", "episodes", "bootstrap", "left_out", "folds", "cases", "trials"),
    ),
    "training": ("policy", "objective", "costs", "unwind", "n_parameters", "members"),
    "versions": (),
    "seconds": (),
}
COLUMNS = ("aversion", "cost_level", "hedge", "start", "end", "pnl", "premium")
HEADS = (
    *("Hedge", "Price", "95 % interval", "Earned", "Std", "1 %", "5 %", "Median", "95 %", "Shortfall 5 %", "Cost"),
    "Turnover",
)


def write_walk_page(folder: Path) -> Path:
    """Write `report.html` of a finished walk through history.

    Raises:
        UserError: a part of the folder is missing, damaged or of another version.
    """
    metrics = read_metrics(folder)
    check_sections(folder / "metrics.json", metrics, REQUIRED)
    if not metrics["walk_forward"]["cases"] or not metrics["walk_forward"]["folds"]:
        raise UserError(f"{folder / 'metrics.json'} has no cases or folds; it is damaged: run it again")
    run, table = walk_run(folder, metrics), episodes_of(folder)
    charts = Charts()
    sections = [
        _hedges(run),
        _earned(run, table, charts),
        _years(run),
        _folds(run, charts),
        _worst(run),
        _training(run),
        _reproduction(run),
    ]
    return write_page(folder, "Hedge, walk forward", _headline(run), sections, charts, metrics["versions"].get("qfml"))


def walk_run(folder: Path, metrics: dict[str, Any]) -> HedgingRun:
    """The run as pages of hedging read it: its walk in place of a judgement on fresh paths."""
    walk = metrics["walk_forward"]
    paths = {"spot": walk["history"]["spot"], "instruments": ["spot"], "n_steps": walk["episodes"]["n_steps"]}
    cases = [{**case, "best": 0} for case in walk["cases"]]  # the policy that traded stands first
    found = metrics | {"judgement": walk | {"paths": paths, "cases": cases}}
    return HedgingRun(read_text(folder / "config.yaml"), found, {}, [])


def episodes_of(folder: Path) -> pl.DataFrame:
    """`episodes.parquet` of a run; UserError says what is wrong with it."""
    path = folder / "episodes.parquet"
    if not path.is_file():
        raise UserError(f"the run folder {folder} has no `{path.name}`: run it again")
    try:
        table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); run it again") from None
    missing = [f"`{name}`" for name in COLUMNS if name not in table.columns]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; it was written by another version: run it again")
    return table


def _headline(run: HedgingRun) -> Html:
    best, rival, walk = run.best, run.rival, run.found
    first, last = walk["episodes"]["start"], walk["episodes"]["end"]
    title = f"{formats.day(first)[:4]} to {formats.day(last)[:4]} out of sample: a price of {_cash(run, best['price'])}"
    cards = [("Price", _cash(run, best["price"]), _interval(run, best["price"]))]
    if rival is not None:
        own = best["against"][rival["name"]]
        title += f", {_standing(run, own)}"
        cards.append((label_of(rival["name"]), _cash(run, rival["price"]), "best of the textbook"))
        cards.append(("Risk, less the textbook's", run.risk(own["value"], 2), _interval(run, own, run.risk)))
    shortfall = best["expected_shortfall"]
    cards += [
        ("Cost paid", run.cash(best["cost"], 3), f"{run.unit}, each episode"),
        ("Standard deviation", run.cash(best["std"], 3), f"{run.unit}, of the P&L"),
        (f"Mean of the worst {100 * shortfall['tail']:g}%", run.cash(shortfall["value"], 3), f"{run.unit} lost"),
    ]
    shown = [
        el("div", el("dt", name), el("dd", value), el("dd", small, class_="interval")) for name, value, small in cards
    ]
    told = (
        f"Owed: {run.book}, sold {_often(walk['episodes']['start_every'])} on {walk['history']['source']}. Hedged with "
        f"the spot on {walk['episodes']['n_steps']} dates, for {run.aim}; trained anew {_refits(walk)} on the returns "
        "known by then."
    )
    parts = [el("p", "Deep hedge, walk forward", class_="eyebrow"), el("h1", title), el("p", told, class_="lead")]
    if walk["trials"] > 1:
        parts.append(
            note(
                f"This is one of {walk['trials']} configurations that were tried on this history with this book. The "
                "intervals do not know of the others: the best of many looks good by luck."
            )
        )
    if len(run.cases) > 1:
        parts.append(el("p", f"The figures here are those at {run.name_of(run.cases[0])}.", class_="muted"))
    return el("header", *parts, el("dl", *shown, class_="cards"), class_="title")


def _refits(walk: dict[str, Any]) -> str:
    count = sum(fold["refit"] for fold in walk["folds"])
    return "once" if count == 1 else f"{count} times"


def _often(start_every: Any) -> str:
    if isinstance(start_every, str):
        return f"each {start_every}"
    return "on each date" if start_every == 1 else f"every {start_every} dates"


def _standing(run: HedgingRun, own: dict[str, float]) -> str:
    if own["low"] <= 0 <= own["high"]:
        return "not told apart from the best textbook hedge"
    return f"{run.risk(abs(own['value']), 2)} {'below' if own['value'] < 0 else 'above'} the best textbook hedge"


def _cash(run: HedgingRun, found: dict[str, float]) -> str:
    return f"{run.cash(found['value'], 3)} bps"


def _interval(run: HedgingRun, found: dict[str, float], write: Any = None) -> str:
    write = run.cash if write is None else write
    return formats.interval((found["low"], found["high"]), lambda x: write(x, 3))


def _hedges(run: HedgingRun) -> Section:
    walk, parts = run.found, list[Html]()
    for place, case in enumerate(run.cases):
        body = _case_tables(run, case)
        if len(run.cases) == 1:
            parts += body
        else:
            name = run.name_of(case)
            parts.append(el("details", el("summary", name[0].upper() + name[1:]), *body, open=place == 0))
    parts += [note(f"Left out, {label_of(name, inside=True)}: {why}.") for name, why in walk["left_out"].items()]
    blocks = walk["bootstrap"]
    parts.append(
        note(
            f"Intervals by a block bootstrap of {formats.count(blocks['n_resamples'])} resamples over the episodes in "
            f"the order of their dates, in blocks of {blocks['block']}; up to {blocks['overlap']} of them overlap. All "
            "hedges are resampled together."
        )
    )
    intro = (
        f"On the same {formats.count(walk['episodes']['n'])} episodes that no training has seen, in {run.unit} at each "
        "start. The price is the premium that would have made up for the book; what is earned is after the premium "
        "that the policy asked for at the time, the same for all hedges."
    )
    return Section("hedges", "Hedges", intro, join(parts))


def _case_tables(run: HedgingRun, case: dict[str, Any]) -> list[Html]:
    hedges = [*case["policies"], *sorted(case["baselines"], key=lambda hedge: hedge["risk"]["value"])]
    found = [
        scrolling_table(HEADS, [_row(run, hedge) for hedge in hedges], caption="Hedges", marked=frozenset({0})),
    ]
    if len(case["policies"]) > 1:
        found.append(note("The policy is in each fold the seed that was best on the paths of its validation."))
    against = case["policies"][0]["against"]
    if against:
        rows = [
            [label_of(name), run.risk(own["value"], 3), _interval(run, own, run.risk), _verdict(own)]
            for name, own in sorted(against.items(), key=lambda item: -item[1]["value"])
        ]
        heads = ("Policy less", f"Risk, {run.risk_unit}", "95 % interval", "")
        found += [el("h3", "Against each textbook hedge"), scrolling_table(heads, rows, caption="Differences of risk")]
    return found


def _row(run: HedgingRun, hedge: dict[str, Any]) -> list[str]:
    quantiles, shortfall = hedge["quantiles"], hedge["expected_shortfall"]
    name = hedge["name"]
    seed = name.removeprefix("policy_seed_")
    return [
        f"Seed {seed} alone" if seed != name else label_of(name),
        run.cash(hedge["price"]["value"]),
        _interval(run, hedge["price"]),
        run.cash(hedge["income"], 3),
        run.cash(hedge["std"]),
        *(run.cash(quantiles[level]) for level in ("0.01", "0.05", "0.5", "0.95")),
        join([run.cash(shortfall["value"]), el("small", _interval(run, shortfall))]),
        run.cash(hedge["cost"], 3),
        f"{hedge['turnover'] / run.spot:.2f}{formats.TIMES}",
    ]


def _verdict(own: dict[str, float]) -> str:
    if own["low"] <= 0 <= own["high"]:
        return "not told apart"
    return "policy better" if own["value"] < 0 else "policy worse"


def _earned(run: HedgingRun, table: pl.DataFrame, charts: Charts) -> Section:
    case = run.cases[0]
    own = table.filter(pl.col("aversion").eq_missing(case["aversion"]), cost_level=case["cost_level"])
    caption = f"Running sum at each expiry of premium and P&L, in {run.unit} at each start."
    parts = [charts.place("earned", earned_figure(run, own), "Earned, one book sold at each start", caption)]
    if rivals_of(run):
        caption = f"The policy's running sum less each hedge's, in {run.unit}; the premium falls out."
        parts.append(charts.place("difference", difference_figure(run, own), "Policy less textbook", caption))
    intro = "Up to now, on each date, for those who sold the book at every start; costs are paid, the premium is taken."
    return Section("earned", "By date", intro, join(parts))


def _years(run: HedgingRun) -> Section:
    rivals = rivals_of(run)
    heads = ["Year", "Episodes", "Earned, policy", *(f"Earned, {label_of(name, inside=True)}" for name in rivals)]
    heads += ["Std, policy", *(f"Std, {label_of(name, inside=True)}" for name in rivals)]
    rows = [
        [
            str(year["year"]),
            str(year["n"]),
            *(run.cash(year["hedges"][name]["mean"], 3) for name in ("policy", *rivals)),
            *(run.cash(year["hedges"][name]["std"], 3) for name in ("policy", *rivals)),
        ]
        for year in run.cases[0]["years"]
    ]
    table = scrolling_table(heads, rows, caption="By year")
    intro = (
        f"By the year of the start, in {run.unit}: mean earned by an episode, premium and costs included, and its "
        "standard deviation. A year is too short for intervals."
    )
    return Section("years", "Years", intro, table)


def _folds(run: HedgingRun, charts: Charts) -> Section:
    folds, rivals = run.found["folds"], rivals_of(run)[:1]
    heads = ["Fold", "Trained on", "Returns", "Vol", "Tested from", "to", "Episodes", "Purged", "Premium"]
    heads += ["Price, policy", *(f"Price, {label_of(name, inside=True)}" for name in rivals), "Seed"]
    rows: list[list[object]] = []
    for fold in folds:
        case = fold["cases"][0]
        rows.append(
            [
                str(fold["fold"]),
                f"{fold['train_start']} to {fold['train_end']}" if fold["refit"] else "as before",
                formats.count(fold["n_returns"]),
                formats.percent(fold["vol"]),
                fold["test_start"],
                fold["test_end"],
                str(fold["n_test"]),
                str(fold["n_purged"] + fold["n_embargoed"]),
                run.cash(case["premium"]),
                *(run.cash(case["hedges"][name]["price"]) for name in ("policy", *rivals)),
                str(case["seed"]),
            ]
        )
    table = scrolling_table(heads, rows, n_text=2, caption="Folds")
    blocks = [{"fold": fold["fold"], "blocks": _blocks(fold)} for fold in folds]
    chart = charts.place("folds", fold_figure(blocks), "Returns that train, episodes that test")
    by_fold = charts.place(
        "risk", risk_figure(run), "Premium asked and price needed", f"By fold, in {run.unit}; the price with hindsight."
    )
    intro = (
        "Each fold's policy knows the returns up to the last expiry before its first test; episodes in between are "
        "purged. Vol, premium and the textbook's settings come from the same returns."
    )
    return Section("folds", "Folds", intro, join([chart, by_fold, table]))


def _blocks(fold: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"kind": "train", "start": fold["train_start"], "end": fold["train_end"]},
        {"kind": "test", "start": fold["test_start"], "end": fold["last_expiry"]},
    ]


def _worst(run: HedgingRun) -> Section:
    unhedged = [hedge["name"] for hedge in run.cases[0]["baselines"] if hedge["name"] == "none"]
    names = list(dict.fromkeys(["policy", *rivals_of(run), *unhedged]))
    heads = ["Start", "End", "Fold", "Spot", "Vol meanwhile", *map(label_of, names)]
    rows = [
        [
            each["start"],
            each["end"],
            str(each["fold"]),
            formats.percent(each["final"] - 1.0),
            formats.percent(each["vol_during"]),
            *(run.cash(each["pnl"][name], 3) for name in names),
        ]
        for each in run.cases[0]["worst"]
    ]
    table = scrolling_table(heads, rows, n_text=2, caption="Worst episodes")
    intro = f"Where the policy lost most, premium included, in {run.unit}; of episodes that overlap, the worst."
    return Section("worst", "Worst episodes", intro, table)


def _training(run: HedgingRun) -> Section:
    training, history = run.metrics["training"], run.found["history"]
    members = training["members"]
    pairs: list[tuple[object, object]] = [
        ("History", f"{history['source']}, {history['start']} to {history['end']}"),
        ("Prices", formats.count(history["n_prices"])),
        ("Rate", formats.percent(history["rate"])),
        ("Look-back", f"{run.found['episodes']['window']} returns"),
        ("Policy", settings_text(training["policy"])),
        ("Sees", ", ".join(training["policy"]["feature_names"])),
        ("Parameters", formats.count(training["n_parameters"])),
        ("Objective", settings_text(training["objective"])),
        ("Costs", "; ".join(map(settings_text, training["costs"])) or "none"),
        ("At the horizon", "holdings are sold" if training["unwind"] else "holdings are valued, not sold"),
        ("Policies", f"{len(members)}, trained as one stack"),
        ("Paths of a step", f"{formats.count(training['paths_per_step'])} of each fold"),
    ]
    intro = (
        "Fresh paths at every step, of blocks of a fold's own returns. Prices begin at the same spot in each episode; "
        f"a period is 1/{history['periods_per_year']:g} of a year, weekends or not."
    )
    return Section("training", "Training", intro, definitions(pairs))


def _reproduction(run: HedgingRun) -> Section:
    metrics = run.metrics
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(metrics.get("created", formats.MISSING)).replace("T", " ")),
        *origin(metrics, metrics.get("data_hash")),
        ("Configurations tried", formats.count(run.found["trials"])),
        *(
            (f"Seconds, {name.replace('_', ' ')}", formats.significant(value, 3))
            for name, value in metrics["seconds"].items()
        ),
        *metrics["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", run.config), open=True)]
    intro = (
        "Everything needed to make this page again. `episodes.parquet` has each hedge's result by episode, "
        "`paths.parquet` what it held by date, `folds/` the policies of each training, `model/` those of the last."
    )
    return Section("reproduction", "Reproduction", intro, join(parts))
