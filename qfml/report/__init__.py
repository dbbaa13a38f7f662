"""A run folder made readable: one self-contained HTML page."""

from qfml.report.page import write_report

__all__ = ["write_report"]
