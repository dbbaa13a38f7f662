"""From labels to a surrogate in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qfml.data.dataset import TimeDataset
from qfml.engine import Callback, Member
from qfml.engine.differential import check_differential
from qfml.errors import ConfigError, UserError
from qfml.losses import Twin
from qfml.networks import Network
from qfml.surrogate.coordinates import moneyness_range
from qfml.surrogate.labels import LabelTable
from qfml.surrogate.problem import Problem
from qfml.surrogate.surrogate import Surrogate
from qfml.surrogate.target import Target
from qfml.surrogate.training import SurrogateTraining, network_for, train_networks


def check_training(problem: Problem, settings: SurrogateTraining, simulated: bool) -> None:
    """Refuse, before any label is made, what could not be trained on the labels of a problem.

    Args:
        problem: what is learned.
        settings: how to train.
        simulated: whether the labels have noise.

    Raises:
        ConfigError: a shape that the problem does not have, or a network or trainer that cannot learn it.
    """
    two = torch.ones(2, dtype=torch.float64)  # labels, of which the kind of the target depends on their noise alone
    target = Target.of(problem, two, two if simulated else torch.zeros_like(two), shaped=settings.shape is not None)
    try:
        network = network_for(problem, settings, target)
        _check_network(network, problem, settings)
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(f"`training`: {error}") from None


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


def _check_network(network: Network, problem: Problem, settings: SurrogateTraining) -> None:
    n_inputs = len(problem.inputs)
    network.init(n_inputs, None, torch.Generator())  # refuses a network that reads windows
    if settings.twin is None:
        return
    one, row = torch.ones(2), np.arange(2)
    rows = one[:, None].expand(2, n_inputs)
    ds = TimeDataset(rows, one, time=row, label_end=row + 1, label_gradient=rows)
    trainer, loss = settings.trainer, Twin(1.0, (1.0,) * n_inputs, settings.twin)
    check_differential(loss, Member(network, row), 0, ds, trainer.precision, trainer.compile is not None)
