"""What a finished run shows in the terminal: a table, and where its report is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console
import rich.table
import rich.text

from qfml.finished import read_metrics, tells_q999
from qfml.hedging.objective_base import FEW_PATHS
from qfml.tune.space import short_names

__all__ = ["SUMMARIES", "cell", "printable", "say_report", "show_run", "show_search"]

out = rich.console.Console()


def show_run(folder: Path) -> None:
    """The table of a finished run, by its task, and where its report is."""
    found = read_metrics(folder)
    SUMMARIES[found["task"]](found)
    say_report(folder / "report.html")


def say_report(path: Path) -> None:
    """Where a report is, on one line that can be copied."""
    out.print(f"report: {printable(str(path))}", highlight=False, soft_wrap=True, markup=False)


def _walk_forward(found: dict[str, Any]) -> None:
    """The strategies side by side, and how sure the network's record is."""
    table = rich.table.Table(title="out of sample, after costs, per year")
    table.add_column("strategy", no_wrap=True)
    for name in ("Sharpe", "95 %", "return", "vol", "drawdown", "turnover"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, strategy in found["strategies"].items():
        values, interval = strategy["metrics"], strategy["intervals"].get("sharpe_ratio")
        shown = ("annualised_return", "annualised_vol", "max_drawdown")
        table.add_row(
            name.replace("_", " "),
            _number(values.get("sharpe_ratio"), "{:.2f}"),
            "" if interval is None else "{:.2f} to {:.2f}".format(*interval),
            *(_number(values.get(key), "{:.1%}") for key in shown),
            _number(values.get("turnover"), "{:.1f}"),
        )
    out.print(table)
    significance = found["significance"]
    deflated = _number(significance["deflated_sharpe_ratio"], "{:.3f}")
    probabilistic = _number(significance["probabilistic_sharpe_ratio"], "{:.3f}")
    out.print(
        f"probabilistic Sharpe ratio {probabilistic}; deflated for {significance['n_trials']} trial(s) on these data "
        f"{deflated}; training took {found['seconds']['training']:.1f} s",
        highlight=False,
    )
    out.print(significance["verdict"], highlight=False)


def _surrogate(found: dict[str, Any]) -> None:
    """Errors on fresh points, the bound, and what it saves."""
    judged = found["judgement"]
    table = rich.table.Table(title="on fresh points, basis points")
    heads = {"rmse": "rms", "q99": "99 %", "q999": "99.9 %", "max": "largest"}
    if not tells_q999(judged):
        del heads["q999"]
    table.add_column("error")
    for head in heads.values():
        table.add_column(head, justify="right")
    for name, key in (("vol", "vol_bps"), ("price, of spot", "price_bps")):
        if own := judged.get(key):
            table.add_row(name, *(f"{own[measure]:.2f}" for measure in heads))
    out.print(table)
    bound, speed = judged["conformal"], judged["speed"]
    told = [
        f"bound at {100 * bound['level']:g}%: {1e4 * bound['bound']:.2f} bps, kept by {bound['coverage']:.2%} of "
        f"{bound['n_test']:,} fresh points"
    ]
    if speed:
        own = speed["surrogate"]
        timed = {{"implied_vol": "vols", "time_value": "time values"}.get(judged["target"], "prices"): "batch_seconds"}
        if "price_batch_seconds" in own:
            timed.setdefault("prices", "price_batch_seconds")
        for what, key in timed.items():
            told.append(f"{own['n_batch']:,} {what} in {1e3 * own[key]['median']:.1f} ms")
        if ratio := speed.get("ratio_simulated"):
            told.append(f"{ratio:.0f} times faster than simulation to equal error")
    out.print("; ".join(told), highlight=False)


MOST_SURFACES = 4  # of which every parameter is shown


def _calibration(found: dict[str, Any]) -> None:
    """Parameters with their errors, the fit, and what warns."""
    fit = found["fit"]
    surfaces = fit["surfaces"]
    for place, surface in enumerate(surfaces[:MOST_SURFACES]):
        out.print(_fitted_parameters(fit, place, surface))
        out.print(
            f"rms error {_number(surface['rmse_bps'], '{:.2f}')} bps of vol, largest "
            f"{_number(surface['max_bps'], '{:.1f}')}; {surface['n_quotes']} quotes; sum of squares "
            f"{_number(surface['sse'], '{:.4f}')} vol points squared; {surface['status']}",
            highlight=False,
            markup=False,
        )
        for text in surface["warnings"]:
            out.print(f"! {printable(text)}", style="yellow", highlight=False, markup=False)
    if len(surfaces) > MOST_SURFACES:
        errors = sorted(s["rmse_bps"] for s in surfaces if s["rmse_bps"] is not None)
        spread = "none has a fit"
        if errors:
            spread = f"rms error in the median {errors[len(errors) // 2]:.2f} bps, at most {errors[-1]:.2f}"
        n_converged, kind = sum(s["converged"] for s in surfaces), "tenors" if "shift" in fit else "surfaces"
        out.print(
            f"{len(surfaces)} {kind}, {n_converged} converged, the first {MOST_SURFACES} shown; {spread}",
            highlight=False,
        )
    out.print(f"calibrated in {found['seconds']['calibration']:.2f} s by {fit['method']}", highlight=False)


def _fitted_parameters(fit: dict[str, Any], place: int, surface: dict[str, Any]) -> rich.table.Table:
    """One row a parameter, or one an expiry."""
    table = rich.table.Table(title=rich.text.Text(f"{fit['model']}: {printable(surface['name'])}"))
    names = list(fit["params"])
    if "expiries" not in fit or not all(isinstance(fit["params"][name][place], list) for name in names):
        for head in ("parameter", "value", "std error"):
            table.add_column(head, justify="left" if head == "parameter" else "right")
        for name in names:
            value, error = fit["params"][name][place], fit["std_error"][name][place]
            if not isinstance(value, list):
                table.add_row(name, _error(value), _error(error, ".3g"))
                continue
            for expiry, one, its_error in zip(fit["expiries"][place], value, error):
                if expiry is not None:
                    table.add_row(f"{name} at {expiry:.4f} y", _error(one), _error(its_error, ".3g"))
        return table
    table.add_column("expiry", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for slot, expiry in enumerate(fit["expiries"][place]):
        if expiry is not None:
            pairs = ((fit["params"][name][place][slot], fit["std_error"][name][place][slot]) for name in names)
            table.add_row(
                f"{expiry:.4f}", *(f"{_error(value, '.4g')} ± {_error(error, '.2g')}" for value, error in pairs)
            )
    return table


def _error(value: float | None, form: str = ".6g") -> str:
    return "n/a" if value is None else f"{value:{form}}"


def _hedging(found: dict[str, Any]) -> None:
    """Prices of policies and textbook hedges, in cash, and how they differ."""
    if "walk_forward" in found:
        _hedging_walk(found["walk_forward"])
        return
    cases = found["judgement"]["cases"]
    for case in cases[:MOST_SURFACES]:
        dial = (
            "" if case["aversion"] is None else f"{found['judgement']['dial'].replace('_', ' ')} {case['aversion']:g}, "
        )
        table = rich.table.Table(title=f"on fresh paths, {dial}cost level {case['cost_level']:g}")
        table.add_column("hedge")
        for head in ("price", "std error", "std of P&L", "cost", "policy less it"):
            table.add_column(head, justify="right")
        best, few = case["policies"][case["best"]], False
        for hedge in (*case["policies"], *case["baselines"]):
            own = best["against"].get(hedge["name"])
            seed = "" if hedge["seed"] is None else f", seed {hedge['seed']}"
            numbers = (hedge["price"]["value"], hedge["price"]["std_error"], hedge["std"], hedge["cost"]["value"])
            less = "" if own is None else f"{own['difference']:.3g} ± {1.96 * own['std_error']:.2g}"
            cells = [f"{number:.4g}" for number in numbers]
            if hedge["price"].get("effective_paths", FEW_PATHS) < FEW_PATHS:
                cells[1], few = f"{cells[1]} †", True
            table.add_row(hedge["name"].replace("_", " ") + seed, *cells, less)
        out.print(table)
        if few:
            out.print(f"† fewer than {FEW_PATHS} paths carry this error: the risk may be far larger", highlight=False)
    if len(cases) > MOST_SURFACES:
        out.print(f"{len(cases)} cases, the first {MOST_SURFACES} shown", highlight=False)


def _hedging_walk(walk: dict[str, Any]) -> None:
    """The same of a walk through history, with intervals."""
    episodes = walk["episodes"]
    for case in walk["cases"][:MOST_SURFACES]:
        dial = "" if case["aversion"] is None else f"{walk['dial'].replace('_', ' ')} {case['aversion']:g}, "
        title = f"{episodes['n']} episodes, {episodes['start']} to {episodes['end']}, {dial}cost level "
        table = rich.table.Table(title=f"{title}{case['cost_level']:g}")
        table.add_column("hedge")
        for head in ("price", "95 %", "std of P&L", "cost", "policy less it, 95 %"):
            table.add_column(head, justify="right")
        against = case["policies"][0]["against"]
        for hedge in (*case["policies"], *case["baselines"]):
            own, price = against.get(hedge["name"]), hedge["price"]
            ends = f"{price['low']:.3g} to {price['high']:.3g}"
            less = "" if own is None else f"{own['low']:.3g} to {own['high']:.3g}"
            numbers = (f"{hedge[name]:.4g}" for name in ("std", "cost"))
            table.add_row(hedge["name"].replace("_", " "), f"{price['value']:.4g}", ends, *numbers, less)
        out.print(table)
    if len(walk["cases"]) > MOST_SURFACES:
        out.print(f"{len(walk['cases'])} cases, the first {MOST_SURFACES} shown", highlight=False)


def show_search(folder: Path) -> None:
    """The table of the best trials, what their number makes of the winner, and where the reports are."""
    found = read_metrics(folder, search=True)
    objective, winner = found["objective"], found["winner"]
    known = [trial for trial in found["trials"] if trial["value"] is not None and trial["state"] == "complete"]
    known.sort(key=lambda trial: trial["value"], reverse=objective["mode"] == "max")
    table = rich.table.Table(
        title=f"best of {len(found['trials'])} trials by {objective['name']} ({objective['mode']})"
    )
    shorts = short_names(winner["params"])
    for name in ("trial", objective["name"], "Sharpe", *shorts.values()):
        table.add_column(cell(name), justify="right", overflow="fold")
    for trial in known[:10]:
        params = (trial["params"][path] for path in shorts)
        sharpe = _number(trial["sharpe_ratio"], "{:.2f}")
        table.add_row(str(trial["place"] + 1), cell(trial["value"]), sharpe, *(cell(value, ".4g") for value in params))
    out.print(table)
    significance = found["significance"]
    deflated, pbo = significance["deflated_sharpe_ratio"], significance["pbo"]
    out.print(
        f"winner: trial {winner['place'] + 1}; on the blocks it was chosen by, Sharpe ratio deflated for "
        f"{significance['n_trials']} trial(s) on these data {_number(deflated, '{:.3f}')}, probability of backtest "
        f"overfitting {_number(pbo, '{:.3f}')}",
        highlight=False,
    )
    out.print(f"its backtest: {found['backtest']['verdict']}", highlight=False)
    for report in (folder / "report.html", folder / "winner" / "report.html"):
        say_report(report)


def cell(value: object, form: str = ".6g") -> rich.text.Text:
    """A value as text: a name out of a file is shown, and no markup in it obeyed."""
    shown = f"{value:{form}}" if isinstance(value, float) else "none" if value is None else printable(str(value))
    return rich.text.Text(shown)


def printable(text: str) -> str:
    """What a file or a path puts into a message must not reach the terminal as a command."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else form.format(value)


SUMMARIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "walk_forward": _walk_forward,
    "surrogate": _surrogate,
    "calibration": _calibration,
    "hedging": _hedging,
}
