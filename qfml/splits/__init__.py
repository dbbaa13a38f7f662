"""Splitters that purge: walk-forward, purged K-fold and combinatorial purged K-fold."""

from qfml.splits.base import Fold, LookbackWarning, Splitter
from qfml.splits.combinatorial import CombinatorialPurgedKFold, combinatorial_paths
from qfml.splits.cross_validation import cross_val_predict
from qfml.splits.plot import plot_folds
from qfml.splits.purged_kfold import PurgedKFold
from qfml.splits.timeline import Timed, Timeline
from qfml.splits.validation import validation_tail
from qfml.splits.walk_forward import WalkForward

SPLITTERS: dict[str, type[Splitter]] = {cls.kind: cls for cls in (WalkForward, PurgedKFold, CombinatorialPurgedKFold)}
"""Every splitter by the `kind` that names it in a config."""

__all__ = [
    "SPLITTERS",
    "CombinatorialPurgedKFold",
    "Fold",
    "LookbackWarning",
    "PurgedKFold",
    "Splitter",
    "Timed",
    "Timeline",
    "WalkForward",
    "combinatorial_paths",
    "cross_val_predict",
    "plot_folds",
    "validation_tail",
]
