"""Instruments: what is paid, when, and on what."""

from pricers.instruments.base import EarlyExercise, Instrument
from pricers.instruments.european import European

__all__ = ["INSTRUMENTS", "EarlyExercise", "European", "Instrument"]

INSTRUMENTS: dict[str, type[Instrument]] = {cls.kind: cls for cls in (European,)}
