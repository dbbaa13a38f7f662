"""Optimizers of a stack."""

from qfml.engine.optimizers.adam import AdamW
from qfml.engine.optimizers.base import Optimizer, State, Step
from qfml.engine.optimizers.sgd import SGD

__all__ = ["OPTIMIZERS", "SGD", "AdamW", "Optimizer", "State", "Step"]

OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in (AdamW, SGD)}
