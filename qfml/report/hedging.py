"""The page of a hedge: its price beside textbook hedges, the P&L, what it holds, under stress, and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qfml.errors import UserError
from qfml.finished import check_sections, read_metrics
from qfml.hedging.objective_base import FEW_PATHS
from qfml.report import formats
from qfml.report.folder import read_text
from qfml.report.hedging_charts import curve_figure, holdings_figure, pnl_figure, training_figure
from qfml.report.hedging_maps import map_places
from qfml.report.hedging_measure import measure_section
from qfml.report.hedging_run import HedgingRun, hedging_arrays, hedging_log, instrument_label, label_of
from qfml.report.hedging_settings import settings_text
from qfml.report.hedging_walk_forward import write_walk_page
from qfml.report.layout import Charts, Section, note
from qfml.report.markup import Html, definitions, el, join, scrolling_table
from qfml.report.page import write_page
from qfml.report.provenance import origin

__all__ = ["write_hedging_report"]

REQUIRED = {
    "judgement": ("objective", "dial", "paths", "cases", "left_out", "stress", "surface"),
    "training": ("policy", "objective", "costs", "unwind", "n_parameters", "members"),
    "versions": (),
    "seconds": (),
}
HEADS = (
    "Hedge",
    "Price",
    "Std error",
    "Mean",
    "Std",
    "1 %",
    "5 %",
    "Median",
    "95 %",
    "Shortfall 5 %",
    "Cost",
    "Turnover",
)


def write_hedging_report(folder: Path) -> Path:
    """Write `report.html` of a finished hedging run.

    Raises:
        UserError: a part of the folder is missing, damaged or of another version.
    """
    metrics = read_metrics(folder)
    if "walk_forward" in metrics:
        return write_walk_page(folder)
    path = folder / "metrics.json"
    check_sections(path, metrics, REQUIRED)
    if not metrics["judgement"]["cases"]:
        raise UserError(
            f"{path} has no entries in `judgement.cases`; it is damaged or of another version: run it again"
        )
    run = HedgingRun(read_text(folder / "config.yaml"), metrics, hedging_arrays(folder), hedging_log(folder))
    charts = Charts()
    sections = [
        _hedges(run),
        _curve(run, charts),
        _pnl(run, charts),
        _holdings(run, charts),
        _stress(run),
        measure_section(run),
        _training(run, charts),
        _reproduction(run),
    ]
    sections = [section for section in sections if section is not None]
    return write_page(folder, "Hedge", _headline(run), sections, charts, metrics["versions"].get("qfml"))


DAGGER = "\u202f†"
FEW = (
    f"† Fewer than {FEW_PATHS} paths carry the error: this tail is too heavy for the sample. The risk may be far "
    "larger, and the interval is too short."
)


def carried_by_few(told: dict[str, Any]) -> bool:
    """Whether a standard error rests on a handful of paths; runs of earlier versions do not say."""
    return told.get("effective_paths", FEW_PATHS) < FEW_PATHS


def _few_anywhere(case: dict[str, Any]) -> bool:
    """Whether an error of a case rests on a handful of paths."""
    best = case["policies"][case["best"]]
    told = [hedge["price"] for hedge in (*case["policies"], *case["baselines"])]
    return any(map(carried_by_few, [*told, *best["against"].values(), case["mean_price"]]))


def _headline(run: HedgingRun) -> Html:
    best, rival = run.best, run.rival
    price = run.cash(best["price"]["value"])
    title = f"A price of {price} {run.unit}"
    few = DAGGER * carried_by_few(best["price"])
    cards = [("Price", price, f"± {run.cash(1.96 * best['price']['std_error'], 2)} {run.unit}{few}")]
    if rival is not None:
        own = best["against"][rival["name"]]
        title += f", {_standing(run, own)}"
        cards.append((label_of(rival["name"]), run.cash(rival["price"]["value"]), "best textbook hedge"))
        ends = formats.interval((own["low"], own["high"]), lambda x: run.risk(x, 2))
        cards.append(("Risk, less the textbook's", run.risk(own["difference"], 2), ends + DAGGER * carried_by_few(own)))
        few = few or carried_by_few(own)
    shortfall = best["expected_shortfall"]
    cards += [
        ("Cost paid", run.cash(best["cost"]["value"]), run.unit),
        ("Standard deviation", run.cash(best["std"]), f"{run.unit}, of the P&L"),
        (f"Mean of the worst {100 * shortfall['tail']:g}%", run.cash(shortfall["value"]), f"{run.unit} lost"),
    ]
    shown = [
        el("div", el("dt", name), el("dd", value), el("dd", small, class_="interval")) for name, value, small in cards
    ]
    told = f"Owed: {run.book}. Hedged with {run.instruments} on {run.found['paths']['n_steps']} dates, for {run.aim}."
    if run.found["paths"].get("measure"):
        told += " The drift of the market is removed."
    elif run.found["paths"].get("martingale") is False:
        told += " Prices may drift on these paths: what trading alone earns of that is in the price."
    if rival is not None:
        told += f" The best textbook hedge: {label_of(rival['name'], inside=True)}."
    parts = [el("p", "Deep hedge", class_="eyebrow"), el("h1", title), el("p", told, class_="lead")]
    if len(run.cases) > 1:
        parts.append(el("p", f"The figures here are those at {run.name_of(run.cases[0])}.", class_="muted"))
    small = [el("p", FEW, class_="muted")] if few else []
    return el("header", *parts, el("dl", *shown, class_="cards"), *small, class_="title")


def _standing(run: HedgingRun, own: dict[str, Any]) -> str:
    """How the policy stands beside the best textbook hedge."""
    if own["low"] <= 0 <= own["high"]:
        return "not told apart from the best textbook hedge"
    size, unit = run.risk(abs(own["difference"]), 2), "" if run.of_cash else "of risk "
    return f"{size} {unit}{'below' if own['difference'] < 0 else 'above'} the best textbook hedge"


def _hedges(run: HedgingRun) -> Section:
    parts: list[Html] = []
    for place, case in enumerate(run.cases):
        body = [*_case_tables(run, case)]
        if len(run.cases) == 1:
            parts += body
        else:
            name = run.name_of(case)
            parts.append(el("details", el("summary", name[0].upper() + name[1:]), *body, open=place == 0))
    parts += [note(f"Left out, {label_of(name, inside=True)}: {why}.") for name, why in run.found["left_out"].items()]
    paths = run.found["paths"]
    intro = (
        f"All on the same {formats.count(paths['n_paths'])} fresh paths, in {run.unit}, today's money. No premium is "
        "in the P&L; the price is the premium that makes up for the book."
    )
    return Section("hedges", "Hedges", intro, join(parts))


def _case_tables(run: HedgingRun, case: dict[str, Any]) -> list[Html]:
    hedges = [*case["policies"], *sorted(case["baselines"], key=lambda hedge: hedge["risk"]["value"])]
    table = scrolling_table(
        HEADS, [_row(run, hedge) for hedge in hedges], caption="Hedges", marked=frozenset({case["best"]})
    )
    found = [table]
    if len(case["policies"]) > 1:
        mean = case["mean_price"]
        error = run.cash(1.96 * mean["std_error"], 2) + DAGGER * carried_by_few(mean)
        found.append(
            note(
                f"Mean price over {len(case['policies'])} seeds {run.cash(mean['value'])} ± {error}, standard "
                f"deviation between them {run.cash(mean['spread'], 2)}. In bold the seed that was best on the paths of "
                "the validation."
            )
        )
    best = case["policies"][case["best"]]
    if best["against"]:
        rows = [
            [
                label_of(name),
                run.risk(own["difference"], 3),
                formats.interval((own["low"], own["high"]), lambda x: run.risk(x, 3)),
                formats.interval((own["bootstrap"]["low"], own["bootstrap"]["high"]), lambda x: run.risk(x, 3))
                if "bootstrap" in own
                else formats.MISSING,
                _verdict(own),
            ]
            for name, own in sorted(best["against"].items(), key=lambda item: -item[1]["difference"])
        ]
        heads = ("Policy less", f"Risk, {run.risk_unit}", "95 % interval", "By bootstrap", "")
        found += [el("h3", "Against each textbook hedge"), scrolling_table(heads, rows, caption="Differences of risk")]
    return [*found, note(FEW)] if _few_anywhere(case) else found


def _row(run: HedgingRun, hedge: dict[str, Any]) -> list[str]:
    name = label_of(hedge["name"]) if hedge["seed"] is None else f"Policy, seed {hedge['seed']}"
    quantiles, shortfall = hedge["quantiles"], hedge["expected_shortfall"]
    interval = formats.interval((shortfall["low"], shortfall["high"]), run.cash)
    return [
        name,
        run.cash(hedge["price"]["value"]),
        run.cash(hedge["price"]["std_error"], 2) + DAGGER * carried_by_few(hedge["price"]),
        run.cash(hedge["mean"]),
        run.cash(hedge["std"]),
        *(run.cash(quantiles[level]) for level in ("0.01", "0.05", "0.5", "0.95")),
        join([run.cash(shortfall["value"]), el("small", interval)]),
        run.cash(hedge["cost"]["value"]),
        f"{hedge['turnover'] / run.spot:.2f}{formats.TIMES}",
    ]


def _verdict(own: dict[str, float]) -> str:
    few = DAGGER * carried_by_few(own)
    if own["low"] <= 0 <= own["high"]:
        return f"not told apart{few}"
    return f"{'policy better' if own['difference'] < 0 else 'policy worse'}{few}"


def _curve(run: HedgingRun, charts: Charts) -> Section | None:
    figure = curve_figure(run)
    if figure is None:
        return None
    intro = "One stack of policies, trained on shared paths; bars are two standard errors of the mean over the seeds."
    chart = charts.place("curve", figure, f"Price by {run.varies}", f"In {run.unit}.")
    return Section("curve", "Price curve", intro, chart)


def _pnl(run: HedgingRun, charts: Charts) -> Section:
    price = run.cash(run.best["price"]["value"])
    caption = f"Share of paths; {run.unit}, after the policy's price of {price} as a premium for all."
    chart = charts.place("pnl", pnl_figure(run), "P&L at the horizon", caption)
    told = note("The policy beside the best textbook hedges; what lies beyond 99.8 % of paths stands at the ends.")
    return Section("pnl", "P&L", "How the result is distributed over the fresh paths.", join([chart, told]))


def _holdings(run: HedgingRun, charts: Charts) -> Section:
    surface = run.found["surface"]
    places = []
    for column, instrument in enumerate(surface["instruments"]):
        for row, date in enumerate(surface["dates"]):
            key = f"holdings-{column}-{row}"
            title = f"After {365 * date:.3g} days"
            title = title if len(surface["instruments"]) == 1 else f"{instrument_label(instrument)}: {title.lower()}"
            places.append(charts.place(key, holdings_figure(run, row, column), title))
    beside = "" if surface["delta"] is None else f", beside the {label_of(surface['delta'], inside=True)}"
    intro = (
        f"What the policy holds by spot on some dates{beside}: the mean over the fresh paths, and the range of 80 % of "
        "them. With costs a holding depends on the one before."
    )
    lines = el("div", *places, class_="maps")
    return Section("holdings", "Holdings", intro, join([lines, *map_places(run, charts)]))


def _stress(run: HedgingRun) -> Section | None:
    if not run.found["stress"]:
        return None
    rows: list[list[object]] = []
    for stress in [{"name": "as trained", "cases": run.cases}, *run.found["stress"]]:
        case = stress["cases"][0]
        best = case["policies"][run.cases[0]["best"]]
        for place, hedge in enumerate([best, *sorted(case["baselines"], key=lambda each: each["risk"]["value"])]):
            own = best["against"].get(hedge["name"])
            rows.append(
                [
                    stress["name"] if not place else "",
                    label_of(hedge["name"]),
                    run.cash(hedge["price"]["value"]) + DAGGER * carried_by_few(hedge["price"]),
                    "" if own is None else run.risk(own["difference"], 3),
                    ""
                    if own is None
                    else formats.interval((own["low"], own["high"]), lambda x: run.risk(x, 3))
                    + DAGGER * carried_by_few(own),
                    run.cash(hedge["std"]),
                    run.cash(hedge["expected_shortfall"]["value"]),
                    run.cash(hedge["cost"]["value"]),
                ]
            )
    heads = (
        "Market",
        "Hedge",
        "Price",
        f"Policy less it, {run.risk_unit}",
        "95 % interval",
        "Std",
        "Shortfall 5 %",
        "Cost",
    )
    table = scrolling_table(heads, rows, n_text=2, caption="Under other markets")
    intro = (
        "The same hedges on markets that they do not know of: the policy as it was trained, the textbook with the "
        f"settings it had{', with the drift of the market' * bool(run.found['paths'].get('measure'))}. In {run.unit}."
    )
    told = [note(f"At {run.name_of(run.cases[0])}.")] if len(run.cases) > 1 else []
    told += [note(FEW)] if any(_few_anywhere(stress["cases"][0]) for stress in run.found["stress"]) else []
    told += [
        note(f"Left out under {stress['name']}, {label_of(name, inside=True)}: {why}.")
        for stress in run.found["stress"]
        for name, why in stress.get("left_out", {}).items()
    ]
    return Section("stress", "Stress", intro, join([table, *told]))


def _training(run: HedgingRun, charts: Charts) -> Section:
    training = run.metrics["training"]
    members = training["members"]
    pairs: list[tuple[object, object]] = [
        ("Policy", settings_text(training["policy"])),
        ("Sees", ", ".join(run.found["paths"]["features"])),
        ("Parameters", formats.count(training["n_parameters"])),
        ("Objective", settings_text(training["objective"])),
        ("Costs", "; ".join(map(settings_text, training["costs"])) or "none"),
        ("At the horizon", "holdings are sold" if training["unwind"] else "holdings are valued, not sold"),
        ("Policies", f"{len(members)}, trained as one stack" if len(members) > 1 else "1"),
        ("Paths of a step", formats.count(training["paths_per_step"])),
        ("Best epoch", ", ".join(f"{one['best_epoch']} of {one['n_epochs']}" for one in members[:8])),
    ]
    figure = training_figure(run)
    caption = "Exact risk of the validation paths, by epoch."
    chart = charts.place("training", figure, "Risk on the paths of the validation", caption)
    intro = "Fresh paths at every step; the epoch with the least risk on paths of their own is kept."
    return Section("training", "Training", intro, join([chart, definitions(pairs)]))


def _reproduction(run: HedgingRun) -> Section:
    metrics = run.metrics
    pairs: list[tuple[object, object]] = [
        ("Made", formats.day(metrics.get("created", formats.MISSING)).replace("T", " ")),
        *origin(metrics, metrics.get("data_hash")),
        *(
            (f"Seconds, {name.replace('_', ' ')}", formats.significant(value, 3))
            for name, value in metrics["seconds"].items()
        ),
        *metrics["versions"].items(),
    ]
    parts = [definitions(pairs), el("details", el("summary", "Configuration"), el("pre", run.config), open=True)]
    intro = "Everything needed to make this page again; `model/` holds the policies, for load_hedger."
    return Section("reproduction", "Reproduction", intro, join(parts))
