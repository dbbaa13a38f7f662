"""The training engine: one loop that trains a stack of members."""

from qfml.engine.averaging import AVERAGES, EMA, SWA
from qfml.engine.callbacks import Callback
from qfml.engine.finders import find_batch_size, find_lr
from qfml.engine.fit import Fit, load_fits, save_fits
from qfml.engine.groups import ParameterGroup
from qfml.engine.member import Member
from qfml.engine.optimizers import (
    LBFGS,
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    Muon,
    RAdam,
    RMSprop,
    TorchOptimizer,
)
from qfml.engine.progress import Bar
from qfml.engine.sampling import SAMPLERS, ClassBalanced, Sequential, SequentialBootstrap, Shuffled, Weighted
from qfml.engine.saving import load_member
from qfml.engine.schedules import SCHEDULES, Constant, Cosine, Exponential, OneCycle, Plateau, StepDecay, Warmup
from qfml.engine.sklearn import NeuralClassifier, NeuralRegressor
from qfml.engine.stream_feed import StreamMember
from qfml.engine.trainer import Trainer
from qfml.engine.watching.settings import Profile

__all__ = [
    "AVERAGES",
    "EMA",
    "LBFGS",
    "OPTIMIZERS",
    "SAMPLERS",
    "SCHEDULES",
    "SGD",
    "SWA",
    "Adagrad",
    "Adam",
    "AdamW",
    "Bar",
    "Callback",
    "ClassBalanced",
    "Constant",
    "Cosine",
    "Exponential",
    "Fit",
    "Lion",
    "Member",
    "Muon",
    "NeuralClassifier",
    "NeuralRegressor",
    "OneCycle",
    "ParameterGroup",
    "Plateau",
    "Profile",
    "RAdam",
    "RMSprop",
    "Sequential",
    "SequentialBootstrap",
    "Shuffled",
    "StepDecay",
    "StreamMember",
    "TorchOptimizer",
    "Trainer",
    "Warmup",
    "Weighted",
    "find_batch_size",
    "find_lr",
    "load_fits",
    "load_member",
    "save_fits",
]
