"""Learning-rate schedules: a factor for each member, from the member's own clock."""

from qfml.engine.schedules.base import Constant, Moment, Schedule, State
from qfml.engine.schedules.decay import Cosine, Exponential, OneCycle, StepDecay
from qfml.engine.schedules.plateau import Plateau
from qfml.engine.schedules.warmup import SCHEDULES, Warmup

__all__ = [
    "SCHEDULES",
    "Constant",
    "Cosine",
    "Exponential",
    "Moment",
    "OneCycle",
    "Plateau",
    "Schedule",
    "State",
    "StepDecay",
    "Warmup",
]
