"""The page's word on the measure: the drift that the paths have, and what has been taken away of it."""

from __future__ import annotations

from qfml.report import formats
from qfml.report.hedging_run import HedgingRun, instrument_label
from qfml.report.layout import Section, note
from qfml.report.markup import definitions, join, scrolling_table

__all__ = ["measure_section"]

HEADS = ("Instrument", "As given", "Std error", "Under the measure", "Std error")


def measure_section(run: HedgingRun) -> Section | None:
    """The measure of the fresh paths, of a run whose drift was removed."""
    told = run.found["paths"].get("measure")
    if told is None:
        return None
    rows = [
        [
            instrument_label(one["instrument"]),
            *(run.cash(one[name], 3) for name in ("before", "before_error", "after", "after_error")),
        ]
        for one in told["drift"]
    ]
    entropy = told["entropy"]
    pairs: list[tuple[object, object]] = [
        ("Relative entropy", f"{entropy['value']:.3g} ± {1.96 * entropy['std_error']:.2g}"),
        ("Effective paths", f"{formats.count(round(told['effective_paths']))} of {formats.count(told['n_paths'])}"),
        ("Kept of the paths drawn", f"{told['kept']:.0%}"),
        ("Probability given up", f"{told['cut']:.1g}"),
    ]
    with_costs = "No policy earns more than it pays there." if told["costs"] else "No policy earns anything there."
    intro = (
        "Training and fresh paths are those of the measure under which trading alone earns nothing, nearest to the "
        f"given one: what a policy shows here it has by hedging. {with_costs}"
    )
    caption = f"Mean change of price up to the horizon, {run.unit}"
    parts = [scrolling_table(HEADS, rows, caption=caption), definitions(pairs)]
    if told["warning"]:
        parts.insert(0, note(f"The measure is not what it should be: {told['warning']}."))
    return Section("measure", "Drift removed", intro, join(parts))
