"""A run folder made readable: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from qfml.errors import UserError
from qfml.finished import is_search, read_metrics
from qfml.report.calibration import write_calibration_report
from qfml.report.hedging import write_hedging_report
from qfml.report.surrogate import write_surrogate_report
from qfml.report.tuning import write_tuning_report
from qfml.report.walk_forward import write_walk_forward_report

__all__ = ["PAGES", "write_report", "write_tuning_report"]

PAGES = {
    "walk_forward": write_walk_forward_report,
    "surrogate": write_surrogate_report,
    "calibration": write_calibration_report,
    "hedging": write_hedging_report,
}


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html`, one page that works offline, into the folder of a finished run or search.

    Nothing outside the folder is read and nothing in it is executed. The page holds all it needs, plotly.js included,
    and forbids the browser any request.

    Args:
        run_dir: Folder of a finished run, or of a finished search.

    Returns:
        Path of `report.html`.

    Raises:
        UserError: If the folder or a part of it is missing, damaged or from another version; the message names it.
    """
    folder = Path(run_dir)
    if is_search(folder):
        return write_tuning_report(folder)
    task = read_metrics(folder).get("task")
    if task not in PAGES:
        raise UserError(f"{folder / 'metrics.json'}: `task` must be one of {', '.join(PAGES)}, got {task!r}")
    return PAGES[task](folder)
