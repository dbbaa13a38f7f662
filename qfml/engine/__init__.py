"""The training engine: one loop that trains a stack of members."""

from qfml.engine.callbacks import Callback
from qfml.engine.fit import Fit, load_fits, save_fits
from qfml.engine.member import Member
from qfml.engine.optimizers import OPTIMIZERS, SGD, AdamW
from qfml.engine.progress import Bar
from qfml.engine.trainer import Trainer

__all__ = ["OPTIMIZERS", "SGD", "AdamW", "Bar", "Callback", "Fit", "Member", "Trainer", "load_fits", "save_fits"]
