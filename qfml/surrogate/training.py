"""From labels to trained networks: a data set in the network's coordinates, a loss, a stack of seeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from qfml.config import OneOf, Section
from qfml.data.dataset import TimeDataset
from qfml.engine import Callback, Cosine, Fit, Member, Muon, Trainer
from qfml.errors import ConfigError, DataError
from qfml.losses import MSE, Loss, Twin
from qfml.networks import MLP, NETWORKS, ConvexMLP, MonotoneMLP, Network
from qfml.surrogate.bounded import INNER, Bounded
from qfml.surrogate.coordinates import Coordinates, columns_of, row_jacobian
from qfml.surrogate.labels import LabelTable, split_by_law
from qfml.surrogate.noise import smoothed_variance
from qfml.surrogate.problem import Problem
from qfml.surrogate.target import Target

PREDICTIONS = ("best", "mean")
OUTLYING = 3.0  # fewer bias what is learnt, for errors go with what they are of; more leave outliers their weight
LEAST_VARIANCE = 1e-6  # of a derivative, beside the noisiest one's


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
        twin: what one derivative counts beside the value (see `Twin`), of simulated labels after both are measured in
            their own noise, so that 1 is what independent noise would ask for; None learns from values alone. The best
            epoch is then that of the least squared error of the values, unless the trainer has another `monitor`.
        noise_floor: a label where simulations have the standard error e (`smoothed_variance`) is weighted by
            1 / (e^2 + floor^2), in the unit of the target; None takes the root mean square error of the labels.
        seed: names the networks' seeds and the draw of the validation laws.
    """

    trainer: Annotated[Trainer, Section(Trainer)] = Trainer(  # noqa: RUF009  (frozen)
        max_epochs=30,
        batch_size=2048,
        optimizer=Muon(lr=2e-2, weight_decay=0.0),
        schedule=Cosine(),
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
    if coordinates.standardised is not None:  # its feature moves with the expiry and the parameters of the vol too
        strike = problem.inputs[coordinates.standardised]
        for name in (*shape.increasing, *shape.decreasing):
            if name != strike:
                raise ConfigError(
                    f"`shape`: `{name}` moves the feature of `{strike}` too, which is standardised, so that a network "
                    "monotone in the features is not monotone in the input: vary `log_moneyness` or `strike` in the box"
                )
    rising, falling = columns_of(problem, shape.increasing), columns_of(problem, shape.decreasing)
    return MonotoneMLP(increasing=rising, decreasing=falling, hidden=network.hidden)


def row_weights(slope: Tensor, std_error: Tensor, noise_floor: float | None) -> Tensor:
    """Weights (N,) that make of a squared error of what is learnt one of the value, over its variance.

    Args:
        slope: by how much the value moves with what is learnt (N,).
        std_error: standard errors of the values (N,), 0 where they are exact.
        noise_floor: what is added to each, in squares; None takes their root mean square.
    """
    weight = slope.square()
    if bool((std_error > 0).any()):
        floor = float(std_error.square().mean().sqrt()) if noise_floor is None else noise_floor
        weight = weight / (std_error.square() + floor**2)
    return weight


def derivative_weights(target: Target, table: LabelTable, features: Tensor, weight: Tensor) -> Tensor:
    """What the squared errors of simulated derivatives count (N, F) in a row that counts `weight` (N,).

    Together they are one over the typical variance of each derivative at its place, of what is learnt in each feature.
    Derivatives along few paths have tails so heavy that one row in a hundred holds most of the sum of squares. Their
    own errors tell which: a row whose own are beyond `OUTLYING` times the typical ones counts by what is beyond.
    To count every row by its own would be biased, for the paths that made the one made the other.
    """
    assert table.gradient_std_error is not None
    inverse = torch.linalg.inv(row_jacobian(Coordinates(target.problem), table.inputs)).transpose(1, 2)
    learnt = (table.gradient_std_error / target.slope(table.value, table.inputs)[:, None]).square()
    variance = (inverse.square() @ learnt[..., None])[..., 0]
    typical = torch.stack([smoothed_variance(features, column) for column in variance.unbind(1)], 1)
    floor = typical.median(0).values
    floor = floor.clamp_min(LEAST_VARIANCE * float(floor.max()))  # a derivative without noise counts much, not for ever
    return 1.0 / (torch.maximum(typical, variance / OUTLYING**2) + floor) / weight[:, None]


def training_data(problem: Problem, table: LabelTable, target: Target, settings: SurrogateTraining) -> TimeDataset:
    """The labels as a data set in the network's coordinates.

    Simulated points have no time. The row number stands for it: all that the engine asks is that no two rows share a
    time, and which rows are held out is decided by law (`split_by_law`), not by time.
    """
    inputs, value, std_error = table.inputs, table.value, table.std_error
    learnt, features = target.encode(value, inputs), Coordinates(problem)(inputs)
    if bool((std_error > 0).any()):
        std_error = smoothed_variance(features, std_error.square()).sqrt()
    weight = row_weights(target.slope(value, inputs), std_error, settings.noise_floor)
    gradient = gradient_weight = None
    if settings.twin is not None:
        if table.gradient is None:
            raise ConfigError(
                "`twin` learns from derivatives, which these labels do not have: make them with gradients"
            )
        gradient = target.encode_gradient(value, table.gradient, inputs)
        if table.gradient_std_error is not None and bool((table.gradient_std_error > 0).any()):
            gradient_weight = derivative_weights(target, table, features, weight)
    weight = weight / weight.mean()
    if table.weight is not None:  # points that were drawn where the error is, weighted back to the whole box
        weight = weight * table.weight / table.weight.mean()
    row = np.arange(len(value))
    return TimeDataset(
        features,
        learnt,
        time=row,
        label_end=row + 1,
        weight=weight,
        feature_names=problem.inputs,
        label_gradient=gradient,
        label_gradient_weight=gradient_weight,
    )


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
        DataError: labels of another problem, or of too few laws.
    """
    if table.names != problem.inputs:
        raise DataError(
            f"the labels are of {', '.join(table.names)}, and the problem's inputs {', '.join(problem.inputs)}"
        )
    start = time.perf_counter()
    inputs, value, std_error = table.inputs, table.value, table.std_error
    target = Target.of(problem, value, std_error, shaped=settings.shape is not None)
    ds = training_data(problem, table, target, settings)
    train, val = split_by_law(table, (1.0 - settings.validation_share, settings.validation_share), settings.seed)
    if not (len(train) and len(val)):
        raise DataError(
            f"the labels are of {len(table.law.unique())} laws, of which {len(train)} rows are left to train on and "
            f"{len(val)} to validate: make more labels, or choose another `validation_share`"
        )
    network = network_for(problem, settings, target)
    loss = loss_for(ds, train, settings.twin)
    members = [Member(network, train, val, seed=settings.seed + i) for i in range(settings.n_seeds)]
    prepared = time.perf_counter()
    trainer = settings.trainer if settings.twin is None else judged_by_values(settings.trainer)
    fits = trainer.fit_many(members, loss, ds, callbacks=callbacks, checkpoint_dir=checkpoint_dir, resume=resume)
    trained = time.perf_counter()
    rows = torch.from_numpy(val)
    share = torch.ones(len(val)).double() if table.weight is None else table.weight[rows]
    errors = _errors(target, fits, ds, val, inputs[rows], value[rows], share / share.sum())
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


def loss_for(ds: TimeDataset, train: np.ndarray, twin: float | None) -> Loss:
    """Squared errors of the values, or of values and derivatives: in units of their sizes, or of their noise."""
    if twin is None:
        return MSE()
    if ds.label_gradient_weight is None:
        return Twin.of(ds, train, twin)
    return Twin(1.0, (1.0,) * ds.n_features, twin)


def judged_by_values(trainer: Trainer) -> Trainer:
    """The trainer, its best epoch chosen by the squared error of the values and not by the whole twin loss.

    Derivatives along few paths have heavy tails: some held-out rows would decide by their noise.
    """
    if trainer.monitor != "val_loss":
        return trainer
    return replace(trainer, monitor="val_mse", metrics=tuple(dict.fromkeys((*trainer.metrics, "mse"))))


def _errors(
    target: Target,
    fits: Sequence[Fit],
    ds: TimeDataset,
    rows: np.ndarray,
    inputs: Tensor,
    value: Tensor,
    share: Tensor,
) -> list[float]:
    """Root mean square errors of each fit, then of the mean over them, in the unit of the target."""
    found = [target.decode(torch.from_numpy(fit.predict(ds, rows)), inputs) for fit in fits]
    found.append(torch.stack(found).mean(0))
    return [float(((one - value).square() * share).sum().sqrt()) for one in found]
