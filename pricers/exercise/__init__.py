"""Early exercise by simulation."""

from pricers.exercise.engine import LongstaffSchwartz

__all__ = ["LongstaffSchwartz"]
