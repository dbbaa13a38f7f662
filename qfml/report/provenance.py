"""Where it came from: data and what was dropped, the leak audit, conventions, configuration, versions, hashes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qfml.report import formats
from qfml.report.folder import RunFolder
from qfml.report.layout import Section, note, warning
from qfml.report.markup import Html, definitions, el, join, scrolling_table

__all__ = ["audit", "conventions", "data", "origin", "reproduction"]


def data(run: RunFolder) -> Section:
    """What went in, what was dropped and why, and what validation found."""
    found = run.metrics["data"]
    features = found["features"]
    pairs: list[tuple[object, object]] = [
        ("Source", found["source"]),
        ("Period", formats.span(found.get("start"), found.get("end"))),
        ("Rows read", formats.count(found["n_rows"])),
        ("Samples used", formats.count(found["n_samples"])),
        ("Assets", formats.count(found.get("n_groups") or 1)),
        ("Label", el("code", found["label"])),
        (f"Features ({len(features)})", join((el("code", name) for name in features), " ")),
    ]
    parts = [definitions(pairs), el("h3", "Dropped"), _dropped(found), el("h3", "Validation")]
    lines = found["validation"]
    if isinstance(lines, str):
        lines = lines.splitlines()
    if lines:
        parts.append(el("ul", *(el("li", line) for line in lines)))
    else:
        parts.append(note("Validation had nothing to report."))
    intro = "What the run read, and every row that did not become a sample."
    return Section("data", "Data", intro, join(parts))


def _dropped(found: Mapping[str, Any]) -> Html:
    dropped = found["dropped"]
    if not dropped:
        return note("No row was dropped.")
    n_rows = found["n_rows"]
    rows = [
        [reason, formats.count(number), formats.percent(number / n_rows) if n_rows else formats.MISSING]
        for reason, number in dropped.items()
    ]
    return scrolling_table(("Reason", "Rows", "Of rows read"), rows, caption="Rows dropped, by reason")


def audit(run: RunFolder) -> Section:
    """Whether any feature knew the future."""
    found = run.metrics["audit"]
    intro = "Features are computed again with the future cut off; a value that changes has used the future."
    if not found["ran"]:
        told = warning(
            el("strong", "Switched off. "),
            "The config switched the leak audit off: nothing here shows that the features are free of the future.",
        )
        return Section("audit", "Leak audit", intro, told)
    times = f"{formats.count(found.get('n_times'))} sampled times"
    leaks = found.get("leaks") or []
    if not leaks:
        return Section("audit", "Leak audit", intro, el("p", f"No feature changed at any of {times}."))
    rows = [[leak["feature"], formats.day(leak["first_time"]), formats.count(leak["n_changed"])] for leak in leaks]
    table = scrolling_table(
        ("Feature", "First changed at", "Values changed"), rows, n_text=2, caption="Features that used the future"
    )
    named = "1 feature uses" if len(leaks) == 1 else f"{len(leaks)} features use"
    told = warning(
        el("strong", f"{named} the future. "), "No result on this page can be trusted before that is mended."
    )
    return Section("audit", "Leak audit", intro, join([told, table, note(f"Compared at {times}.")]))


def conventions(run: RunFolder) -> Section:
    """The choices behind the numbers."""
    found = run.metrics["conventions"]
    named = {
        "periods_per_year": ("Periods per year", lambda v: f"{v:.5g}"),
        "ddof": ("Standard deviation", lambda v: f"divides by n {formats.MINUS} {v}" if v else "divides by n"),
        "kurtosis": ("Kurtosis", lambda v: f"{v} (a normal has 3)" if v == "raw" else v),
        "cost_bps": ("Cost", lambda v: f"{formats.bps(v)} of turnover"),
        "slippage": ("Slippage", lambda v: f"{formats.significant(v, 3)} {formats.TIMES} volatility" if v else "none"),
        "execution_lag": ("Execution lag", lambda v: f"{v} period{'' if v == 1 else 's'}"),
        "confidence": ("Confidence of intervals", formats.percent),
        "n_bootstrap": ("Bootstrap resamples", formats.count),
        "pnl": ("P&L", _settings),
    }
    pairs: list[tuple[object, object]] = []
    for key, value in found.items():
        title, write = named.get(key, (key.replace("_", " ").capitalize(), _settings))
        pairs.append((title, write(value)))
    units = note(
        "Returns are simple, per period, of a capital of one; P&L is positive for a gain; risk measures are positive "
        "for a loss; ratios are annualised by the periods per year above."
    )
    intro = "The choices that move the numbers, stated."
    return Section("conventions", "Conventions", intro, join([definitions(pairs), units]))


def _settings(value: Any) -> object:
    """A nested setting on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_settings(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else value


def origin(metrics: Mapping[str, Any], data_hash: Any) -> list[tuple[object, object]]:
    """What a result came from, as far as it was recorded: hashes, seeds, revision, machine."""
    made = metrics.get("provenance") or {}
    threads = made.get("threads")
    machine = [made.get("platform", formats.MISSING), made.get("gpu"), _plural(threads, "thread") if threads else None]
    return [
        ("Config hash", el("code", metrics.get("config_hash", formats.MISSING))),
        ("Data hash", el("code", formats.MISSING if data_hash is None else data_hash)),
        ("Seeds", _seeds(made.get("seeds"))),
        ("Git revision", _revision(made["git"]) if "git" in made else formats.MISSING),
        ("Machine", ", ".join(str(part) for part in machine if part is not None)),
    ]


def _seeds(seeds: Any) -> str:
    """All of them; a run of consecutive ones by its ends."""
    if not isinstance(seeds, list) or not seeds:
        return formats.MISSING
    numbers = all(isinstance(seed, int) for seed in seeds)
    if numbers and len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(str(seed) for seed in seeds)


def _revision(git: Any) -> Html | str:
    """The commit, and whether the files were as it has them."""
    if not isinstance(git, Mapping):
        return "none: not run in a git repository"
    states = {True: " (with changes that are not committed)", False: " (nothing changed)", None: ""}
    return join([el("code", git.get("revision", formats.MISSING)), states.get(git.get("dirty"), "")])


def _plural(number: Any, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def reproduction(run: RunFolder, tearsheet: Html) -> Section:
    """Config, versions, hashes and times: what is needed to make this page again."""
    metrics = run.metrics
    identity = [
        ("Made", formats.day(metrics.get("created", formats.MISSING)).replace("T", " ")),
        *origin(metrics, metrics.get("data_hash")),
    ]
    identity += [(f"Seconds, {key}", formats.significant(value, 3)) for key, value in metrics["seconds"].items()]
    versions = [(name, version) for name, version in metrics["versions"].items()]
    parts = [
        definitions(identity),
        el("h3", "Tear sheet"),
        tearsheet,
        el("h3", "Versions"),
        el("div", definitions(versions), class_="columns"),
        el("details", el("summary", "Configuration"), el("pre", run.config), open=True),
    ]
    intro = "Everything needed to make this page again."
    return Section("reproduction", "Reproduction", intro, join(parts))
