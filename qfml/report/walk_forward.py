"""The page of a walk-forward backtest."""

from __future__ import annotations

from pathlib import Path

from qfml.report import evidence, provenance, results
from qfml.report.folder import read_run_folder
from qfml.report.layout import Charts, note
from qfml.report.markup import Html, el, join
from qfml.report.page import write_page
from qfml.report.tearsheet import Tearsheet, write_tearsheet

__all__ = ["write_walk_forward_report"]


def write_walk_forward_report(folder: Path) -> Path:
    """Write `report.html` and `tearsheet.html`; a sheet that quantstats cannot make is a note on the page, no error."""
    run = read_run_folder(folder)
    tearsheet = _tearsheet_note(write_tearsheet(run))
    charts = Charts()
    sections = [
        results.performance(run, charts),
        results.significance(run),
        results.folds(run, charts),
        evidence.prediction(run, charts),
        evidence.positions(run, charts),
        evidence.activity(run, charts),
        evidence.training(run, charts),
        provenance.data(run),
        provenance.audit(run),
        provenance.conventions(run),
        provenance.reproduction(run, tearsheet),
    ]
    version = run.metrics["versions"].get("qfml")
    return write_page(run.path, "Walk-forward backtest", results.headline(run), sections, charts, version)


def _tearsheet_note(tearsheet: Tearsheet) -> Html:
    told = [note(text) for text in tearsheet.notes]
    if tearsheet.path is None:
        return join(told)
    link = el("a", tearsheet.path.name, href=tearsheet.path.name)
    return join([el("p", link, ", made by quantstats, lies beside this page."), *told])
