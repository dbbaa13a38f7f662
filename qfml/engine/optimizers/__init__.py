"""Optimizers of a stack."""

from qfml.engine.optimizers.adagrad import Adagrad
from qfml.engine.optimizers.adam import Adam, AdamW, RAdam
from qfml.engine.optimizers.base import Optimizer, State, Step
from qfml.engine.optimizers.lbfgs import LBFGS
from qfml.engine.optimizers.lion import Lion
from qfml.engine.optimizers.muon import Muon
from qfml.engine.optimizers.rmsprop import RMSprop
from qfml.engine.optimizers.sgd import SGD
from qfml.engine.optimizers.torch_optimizer import TorchOptimizer, start_state

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "Muon",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "State",
    "Step",
    "TorchOptimizer",
    "start_state",
]

OPTIMIZERS: dict[str, type] = {cls.kind: cls for cls in (Adagrad, Adam, AdamW, LBFGS, Lion, Muon, RAdam, RMSprop, SGD)}
