"""From labels to trained networks: a data set in the network's coordinates, a loss, a stack of seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from qfml.config import OneOf, Section
from qfml.data.dataset import TimeDataset
from qfml.engine import EMA, Callback, Cosine, Fit, Member, Muon, Trainer
from qfml.errors import ConfigError, DataError
from qfml.losses import MSE, Loss, Twin
from qfml.networks import MLP, NETWORKS, ConvexMLP, MonotoneMLP, Network
from qfml.surrogate.bounded import INNER, Bounded
from qfml.surrogate.coordinates import Coordinates, columns_of
from qfml.surrogate.problem import Problem
from qfml.surrogate.target import Target

if TYPE_CHECKING:
    from qfml.surrogate.labels import LabelTable

PREDICTIONS = ("best", "mean")


@dataclass(frozen=True)
class Shape:
    """What the value must obey in some inputs, whatever the weights; at most one of the two kinds.

    Args:
        increasing: inputs in which the value never falls.
        decreasing: inputs in which it never rises.
        convex: inputs in which it is convex; their features must be affine in them.
    """

    increasing: tuple[str, ...] = ()
    decreasing: tuple[str, ...] = ()
    convex: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.convex and (self.increasing or self.decreasing):
            raise ConfigError(
                "`shape` names convex inputs and monotone ones: no network here is both; keep one of the two"
            )
        if not (self.convex or self.increasing or self.decreasing):
            raise ConfigError("`shape` names no input: name one, such as `decreasing: [strike]`, or leave it out")


@dataclass(frozen=True)
class SurrogateTraining:
    """How a surrogate is trained: the YAML section `training:`.

    Args:
        network: what is trained, on rows; the target decides what its output passes through.
        trainer: the engine's settings.
        shape: monotone or convex inputs by name, which make of the network `mlp` one of the same widths that obeys.
        n_seeds: networks that differ by their seed only, trained as one stack.
        combine: "best" predicts by the seed of least validation loss; "mean" by the mean over the seeds, which is more
            exact and takes as many times as long.
        validation_share: share of the laws (rows that differ by their strike at most) that decide which epoch was best.
        twin: what one derivative counts beside the value (see `Twin`); None learns from values alone.
        noise_floor: a label of standard error e is weighted by 1 / (e^2 + floor^2), in the unit of the target; None
            takes the root mean square error of the labels.
        seed: names the networks' seeds and the draw of the validation laws.
    """

    trainer: Annotated[Trainer, Section(Trainer)] = Trainer(  # noqa: RUF009  (frozen)
        max_epochs=60,
        batch_size=1024,
        optimizer=Muon(lr=1e-2, weight_decay=0.0),
        schedule=Cosine(),
        averaging=EMA(decay=0.999),
    )
    network: Annotated[Network, OneOf(NETWORKS)] = MLP(hidden=(64, 64, 64, 64), activation="silu")  # noqa: RUF009
    shape: Annotated[Shape, Section(Shape)] | None = None
    n_seeds: int = 2
    combine: str = "best"
    validation_share: float = 0.05
    twin: float | None = None
    noise_floor: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.n_seeds, bool) or not isinstance(self.n_seeds, int) or self.n_seeds < 1:
            raise ConfigError(f"`n_seeds` must be a whole number, at least 1, got {self.n_seeds!r}")
        if self.combine not in PREDICTIONS:
            raise ConfigError(f"`combine` must be one of {', '.join(PREDICTIONS)}, got {self.combine!r}")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"`validation_share` must lie in (0, 1), got {self.validation_share}")
        if self.twin is not None and not self.twin > 0:
            raise ConfigError(f"`twin` must be positive, got {self.twin}; leave it out to learn from values alone")
        if self.noise_floor is not None and not self.noise_floor > 0:
            raise ConfigError(
                f"`noise_floor` must be positive, got {self.noise_floor}; leave it out for the labels' own"
            )
        if self.shape is not None and not isinstance(self.network, MLP):
            raise ConfigError(
                f"`shape` makes a network of the widths of `network`, which must then be mlp, got {self.network.kind}"
            )


def network_for(problem: Problem, settings: SurrogateTraining, target: Target) -> Network:
    """The network that is trained: the settings' own, monotone or convex where asked, inside the target's bounds."""
    network, shape = settings.network, settings.shape
    if shape is not None:
        network = _shaped(problem, shape, network)
    if target.output is None:
        return network
    if type(network) not in INNER.values():
        raise ConfigError(f"`network` must be one of {', '.join(INNER)} for this target, got {network.kind}")
    return Bounded(network, target.output)


def _shaped(problem: Problem, shape: Shape, network: Any) -> Network:
    if problem.target != "price":
        raise ConfigError(
            f"`shape` is one of prices, and the target is {problem.target}: neither vols nor time values have a "
            "direction or a curvature that no arbitrage asks for; choose the target price"
        )
    coordinates = Coordinates(problem)
    if shape.convex:
        columns = columns_of(problem, shape.convex)
        for name in shape.convex:
            if not coordinates.is_affine_in(name):
                raise ConfigError(
                    f"`shape.convex`: the feature of `{name}` is not affine in it, so that a network convex in the "
                    "feature is not convex in the input: give its range the scale linear"
                )
        return ConvexMLP(convex=columns, hidden=network.hidden)
    rising, falling = columns_of(problem, shape.increasing), columns_of(problem, shape.decreasing)
    return MonotoneMLP(increasing=rising, decreasing=falling, hidden=network.hidden)


def split_by_law(law: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows: each law, the rows of one draw of everything but the strike, is on one side.

    Args:
        law: number of each row's law (N,).
        share: share of the laws that go to validation, at least one.
        seed: names the draw.

    Example:
        >>> train, val = split_by_law(np.array([0, 0, 1, 1, 2, 2]), 0.3, seed=0)
        >>> len(train), len(val)
        (4, 2)
    """
    laws = np.unique(law)
    if len(laws) < 2:
        raise DataError(f"the labels are of {len(laws)} law: at least 2 are needed, one of them for validation")
    count = min(max(1, round(share * len(laws))), len(laws) - 1)
    chosen = np.random.default_rng([seed, 0x5EED]).choice(laws, count, replace=False)
    held_out = np.isin(law, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def row_weights(slope: Tensor, std_error: Tensor, noise_floor: float | None) -> Tensor:
    """Weights (N,) of mean 1 that make of a squared error of what is learnt one of the value, over its variance.

    Args:
        slope: by how much the value moves with what is learnt (N,).
        std_error: standard errors of the values (N,), 0 where they are exact.
        noise_floor: what is added to each, in squares; None takes their root mean square.
    """
    weight = slope.square()
    if bool((std_error > 0).any()):
        floor = float(std_error.square().mean().sqrt()) if noise_floor is None else noise_floor
        weight = weight / (std_error.square() + floor**2)
    return weight / weight.mean()


def training_data(problem: Problem, table: LabelTable, target: Target, settings: SurrogateTraining) -> TimeDataset:
    """The labels as a data set in the network's coordinates.

    Simulated points have no time. The row number stands for it: all that the engine asks is that no two rows share a
    time, and which rows are held out is decided by law (`split_by_law`), not by time.
    """
    inputs, value, std_error = columns_of_table(table)
    learnt = target.encode(value, inputs)
    weight = row_weights(target.slope(value, inputs), std_error, settings.noise_floor)
    gradient = None
    if settings.twin is not None:
        if table.gradient is None:
            raise ConfigError(
                "`twin` learns from derivatives, which these labels do not have: make them with gradients"
            )
        gradient = target.encode_gradient(value, torch.as_tensor(table.gradient, dtype=torch.float64), inputs)
    row = np.arange(len(value))
    return TimeDataset(
        Coordinates(problem)(inputs),
        learnt,
        time=row,
        label_end=row + 1,
        weight=weight,
        feature_names=problem.inputs,
        label_gradient=gradient,
    )


def columns_of_table(table: LabelTable) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (N, d), values (N,) and standard errors (N,) of labels, float64."""
    inputs, value, std_error = (
        torch.as_tensor(column, dtype=torch.float64) for column in (table.inputs, table.value, table.std_error)
    )
    return inputs, value, std_error


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gave.

    Attributes:
        target: what the networks put out.
        fits: one a seed, best first.
        report: seconds; rows; root mean square error of the validation rows in the unit of the target, of each seed
            and of the mean over the seeds; the history of each seed.
    """

    target: Target
    fits: tuple[Fit, ...]
    report: dict[str, Any] = field(default_factory=dict)


def train_networks(
    problem: Problem,
    table: LabelTable,
    settings: SurrogateTraining,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> Trained:
    """Train the seeds of `settings` on labels, as one stack, each judged on the laws that are held out.

    Raises:
        ConfigError: settings that do not suit problem and labels.
        DataError: labels of one law only.
    """
    start = time.perf_counter()
    inputs, value, std_error = columns_of_table(table)
    target = Target.of(problem, value, std_error, shaped=settings.shape is not None)
    ds = training_data(problem, table, target, settings)
    train, val = split_by_law(np.asarray(table.law), settings.validation_share, settings.seed)
    network = network_for(problem, settings, target)
    loss: Loss = MSE() if settings.twin is None else Twin.of(ds, train, settings.twin)
    members = [Member(network, train, val, seed=settings.seed + i) for i in range(settings.n_seeds)]
    prepared = time.perf_counter()
    fits = settings.trainer.fit_many(
        members, loss, ds, callbacks=callbacks, checkpoint_dir=checkpoint_dir, resume=resume
    )
    trained = time.perf_counter()
    rows = torch.from_numpy(val)
    errors = _errors(target, fits, ds, val, inputs[rows], value[rows])
    order = sorted(range(len(fits)), key=errors.__getitem__)
    report = {
        "target": target.kind,
        "n_train": len(train),
        "n_validation": len(val),
        "n_parameters": fits[0].layout.n_parameters,
        "seconds_preparation": prepared - start,
        "seconds_training": trained - prepared,
        "validation_rmse": [errors[i] for i in order],
        "validation_rmse_of_mean": errors[-1],
        "seeds": [fits[i].seed for i in order],
        "status": [fits[i].status for i in order],
        "history": [list(fits[i].history) for i in order],
    }
    return Trained(target, tuple(fits[i] for i in order), report)


def _errors(
    target: Target, fits: Sequence[Fit], ds: TimeDataset, rows: np.ndarray, inputs: Tensor, value: Tensor
) -> list[float]:
    """Root mean square errors of each fit, then of the mean over them, in the unit of the target."""
    found = [target.decode(torch.from_numpy(fit.predict(ds, rows)), inputs) for fit in fits]
    found.append(torch.stack(found).mean(0))
    return [float((one - value).square().mean().sqrt()) for one in found]
