"""From labels to a surrogate in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qfml.engine import Callback
from qfml.surrogate.coordinates import moneyness_range
from qfml.surrogate.labels import LabelTable
from qfml.surrogate.problem import Problem
from qfml.surrogate.surrogate import Surrogate
from qfml.surrogate.training import SurrogateTraining, train_networks


def fit_surrogate(
    problem: Problem,
    table: LabelTable,
    settings: SurrogateTraining | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> Surrogate:
    """Train the networks of a surrogate on labels.

    Args:
        problem: what the labels are of.
        table: the labels.
        settings: how to train; by default two seeds of a perceptron of four layers of 64.
        callbacks: told of what happens.
        checkpoint_dir: checkpoints of the training are written here.
        resume: continue from the newest of them.

    Returns:
        A surrogate without an error bound: `judge` gives it one. Its `report` holds seconds, rows, and the validation
        error of each seed and of the mean over the seeds.

    Raises:
        ConfigError: settings that do not suit problem and labels.
        DataError: labels of another problem, or of too few laws.
    """
    settings = SurrogateTraining() if settings is None else settings
    trained = train_networks(
        problem, table, settings, callbacks=callbacks, checkpoint_dir=checkpoint_dir, resume=resume
    )
    fits = trained.fits if settings.combine == "mean" else trained.fits[:1]
    report = trained.report | {"labels": table.hash}
    return Surrogate(problem, trained.target, fits, report=report, moneyness=moneyness_range(problem, table.inputs))
