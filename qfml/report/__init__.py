"""A run folder made readable: one self-contained HTML page."""

from qfml.report.page import write_report
from qfml.report.tuning import write_tuning_report

__all__ = ["write_report", "write_tuning_report"]
