"""Policies trained by the engine: members of one stack on shared paths, fresh ones at every step.

Members may live in several worlds, such as the folds of a walk through history: each has paths of its own, and a member
is trained and validated on those of its world alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.config import config_hash
from qfml.data.fitted_transforms import FittedTransform
from qfml.engine import Callback, Member, Muon, Shuffled, Trainer
from qfml.engine.clock import Counters
from qfml.engine.feed import Batch, BatchData
from qfml.engine.fit import Fit
from qfml.engine.training import train
from qfml.errors import ConfigError, DataError
from qfml.hedging.costs import check_costs
from qfml.hedging.loss import Labels, Risk, RiskRows, labels_of, unpacked
from qfml.hedging.objective_base import Objective
from qfml.hedging.paths import PathSet
from qfml.losses import Loss
from qfml.networks import Network, works_on_all_threads

__all__ = ["PathData", "PathMember", "train_policies"]

Draw = Callable[[int], PathSet]  # the paths of a step, by its number
PATHS_AT_A_TIME = 2048  # of each member: the matrices of a graph lie in the cache


def _no_rows() -> np.ndarray:
    return np.array([], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class PathMember(Member):
    """A policy to be trained, with its own seed, risk aversion and level of cost.

    Args:
        network, seed, lr, weight_decay, clip_norm, patience, start: as of `Member`.
        aversion: risk aversion (or tail) in place of the objective's; None takes that one.
        cost_level: factor of all costs.
        centre: of the level of an additive objective; the network learns the level in units of `scale` from there.
        scale: likewise.
        world: number of the draw and the validation paths of `PathData` that it is trained on.
    """

    train: np.ndarray = field(init=False, repr=False, default_factory=_no_rows)
    val: np.ndarray | None = field(init=False, repr=False, default=None)  # all are judged on the same paths
    transforms: FittedTransform | None = field(init=False, repr=False, default=None)  # features come in units of one
    aversion: float | None = None
    cost_level: float = 1.0
    centre: float = 0.0
    scale: float = 1.0
    world: int = 0

    @property
    def numbers(self) -> list[Any]:
        """What is its own beside the network."""
        return [*super().numbers, self.aversion, self.cost_level, self.centre, self.scale, self.world]

    @property
    def labels(self) -> list[float]:
        """Its four numbers among the labels; an aversion that the objective has not stands for nothing."""
        return [1.0 if self.aversion is None else self.aversion, self.cost_level, self.centre, self.scale]

    def checked(self, objective: Objective) -> PathMember:
        """The member with the aversion of the objective where it has none of its own."""
        if objective.dial is None:
            if self.aversion is not None:
                raise ConfigError(
                    f"the objective `{objective.kind}` has no aversion that could differ between members, got "
                    f"`aversion` {self.aversion}: leave it out"
                )
            return self
        if self.aversion is None:
            return replace(self, aversion=getattr(objective, objective.dial))
        objective.check_dial(self.aversion)
        return self


class PathData(BatchData):
    """Paths for a training, fresh ones at every step, and others that the epochs are judged on.

    Args:
        draw: the paths of a step, by its number; or one such for each world.
        validation: the paths that epochs are judged on, of each world; all have the same shapes and names.
        steps_per_epoch: steps between two judgements.
        identity: what decides the paths; it enters the fingerprint of a checkpoint.
        device: where the training runs.

    Raises:
        DataError: worlds whose paths differ in number, dates, instruments or features.
    """

    is_sample: ClassVar[bool] = True

    def __init__(
        self,
        draw: Draw | Sequence[Draw],
        validation: PathSet | Sequence[PathSet],
        steps_per_epoch: int,
        identity: Any,
        device: torch.device | str = "cpu",
    ) -> None:
        self.draws: list[Draw] = [draw] if callable(draw) else list(draw)
        self.validations = [validation] if isinstance(validation, PathSet) else list(validation)
        self.steps_per_epoch, self.identity, self.device = steps_per_epoch, identity, torch.device(device)
        assert len(self.draws) == len(self.validations)
        for world, paths in enumerate(self.validations):
            check_alike(self.validations[0], paths, world)

    @property
    def shape(self) -> torch.Size:
        """(L, F)."""
        return self.validations[0].features.shape[1:]

    @property
    def validates(self) -> bool:
        """It has paths of its own for it."""
        return True

    @property
    def data_hash(self) -> str:
        """16 hex digits of what decides the paths."""
        return config_hash([self.identity, len(self.validations[0]), self.steps_per_epoch])

    def to(self, device: torch.device | str) -> PathData:
        """The same data for a training on `device`."""
        self.device = torch.device(device)
        self.validations = [paths.to(self.device, torch.float32) for paths in self.validations]
        return self

    def feed(self, trainer: Trainer, members: Sequence[Any]) -> PathFeed:
        """The same paths for every member of a world."""
        return PathFeed(trainer, members, self)


class PathFeed:
    """The paths of each step, the same ones for every member of a world; all clocks go together."""

    def __init__(self, trainer: Trainer, members: Sequence[PathMember], data: PathData) -> None:
        assert trainer.batch_size is not None
        self.data, self.inputs = data, None
        self.n_features, self.window = data.n_features, data.window
        seeds = [(trainer.seed, member.seed) for member in members]
        steps = np.full(len(members), data.steps_per_epoch, dtype=np.int64)
        self.clock = Counters(seeds, trainer.batch_size, steps, trainer.max_steps)
        self.numbers = torch.tensor([member.labels for member in members], dtype=torch.float32, device=data.device)
        self.worlds = [member.world for member in members]
        self.size = trainer.micro_batch_size or trainer.batch_size

    def next(self) -> Batch:
        """The paths of the step that all members stand at."""
        step = int(self.clock.n_steps[0])
        drawn = {world: self.data.draws[world](step) for world in sorted(set(self.worlds))}
        drawn = {world: paths.to(self.data.device, torch.float32) for world, paths in drawn.items()}
        x, y = stacked(drawn, self.worlds, self.numbers)
        weight = torch.ones(y.shape[:2], device=self.data.device)
        total = weight.sum(-1, keepdim=True)
        return Batch(x, y, weight, weight / total, total[..., 0].double())

    @torch.no_grad()
    def validated(
        self, network: Network, loss: Loss, parameters: Mapping[str, Tensor], places: np.ndarray
    ) -> list[dict[str, float]]:
        """The exact risk of the validation paths."""
        assert isinstance(loss, RiskRows | Risk)
        numbers = self.numbers[torch.from_numpy(places).to(self.data.device)]
        worlds = [self.worlds[place] for place in places]
        parts = []
        for start in range(0, len(self.data.validations[0]), self.size):
            rows = slice(start, start + self.size)
            x, y = stacked({world: self.data.validations[world].rows(rows) for world in set(worlds)}, worlds, numbers)
            labels: Labels = unpacked(y, loss.n_instruments)
            parts.append(loss.pnl(network.forward(parameters, x), labels, smooth=False))
        pnl = torch.cat(parts, 1)
        dial = loss.objective.dials(pnl, None if loss.objective.dial is None else numbers[:, 0])
        # an infinite gain, which many a risk is blind to, is as much an error as an infinite loss
        values = loss.objective.value(pnl, dial).where(pnl.isfinite().all(1), torch.nan)
        return [{"val_loss": value} for value in values.tolist()]  # of a lost member: nan

    def keep(self, places: np.ndarray) -> None:
        """Forget all members but those at `places`."""
        self.clock.keep(places)
        self.numbers = self.numbers[torch.from_numpy(places).to(self.data.device)]
        self.worlds = [self.worlds[place] for place in places]


def stacked(paths: Mapping[int, PathSet], worlds: Sequence[int], numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Features (M, B, L, F) and labels (M, B, C) of members that live in these worlds.

    Args:
        paths: of each world, of one shape.
        worlds: of each member.
        numbers: of each member, as `labels_of` wants them.
    """
    if len(paths) == 1:
        (shared,) = paths.values()
        return shared.features.expand(len(worlds), -1, -1, -1), labels_of(shared, numbers)
    labels = [labels_of(paths[world], numbers[place : place + 1]) for place, world in enumerate(worlds)]
    return torch.stack([paths[world].features for world in worlds]), torch.cat(labels)


def check_alike(one: PathSet, other: PathSet, world: int) -> None:
    """Raise DataError unless two worlds' paths can be stacked."""
    for what, first, second in (
        ("number", len(one), len(other)),
        ("dates", one.times.tolist(), other.times.tolist()),
        ("instruments", one.instrument_names, other.instrument_names),
        ("features", one.feature_names, other.feature_names),
    ):
        if first != second:
            raise DataError(f"paths of all worlds must have the same {what}, {first}, world {world} has {second}")


def train_policies(
    members: Sequence[PathMember],
    loss: RiskRows | Risk,
    data: PathData,
    trainer: Trainer,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint_dir: Path | None = None,
    resume: bool = False,
) -> list[Fit]:
    """Train policies as one stack, those of a world on shared paths.

    Args:
        members: what to train.
        loss: of `loss_of`.
        data: the paths.
        trainer: `batch_size` is the number of paths of a step, a multiple of 16; the paths go through the networks in
            pieces of `paths_at_a_time` unless `micro_batch_size` says otherwise.
        callbacks, checkpoint_dir, resume: as of `Trainer.fit_many`.

    Returns:
        One fit a member, in their order.

    Raises:
        ConfigError: settings of the trainer that have no meaning for paths; see `check_trainer`.
    """
    check_trainer(trainer)
    size = trainer.batch_size
    assert size is not None
    if trainer.micro_batch_size is None and loss.additive:
        trainer = replace(trainer, micro_batch_size=min(size, paths_at_a_time(members[0].network, data.shape[0])))
    trainer = replace(trainer, member_block=trainer.member_block or len(members))
    check_matrices(trainer, members, data, loss)
    check_costs(loss.costs, loss.n_instruments, [member.cost_level for member in members])
    members = [member.checked(loss.objective) for member in members]
    return train(trainer, members, loss, data, callbacks, checkpoint_dir, resume)


def paths_at_a_time(network: Network, n_times: int) -> int:
    """Paths that go through a network in one piece: few, and more of a written walk on all threads.

    There each date is a handful of products, and the more paths share them the less Python costs; beyond a quarter of a
    million steps of all paths what the walk keeps for its gradient only takes memory.
    """
    if not works_on_all_threads(network):
        return PATHS_AT_A_TIME
    return min(5 * PATHS_AT_A_TIME, max(PATHS_AT_A_TIME, 2**18 // n_times))


def check_trainer(trainer: Trainer) -> None:
    """Refuse settings that do nothing, or nothing good, on paths that are new at every step.

    Raises:
        ConfigError: a batch size that is no multiple of 16, the optimizer lbfgs, a sampler, metrics, or a mode that
            takes the worst epoch for the best.
    """
    size = trainer.batch_size
    for name, told, refused, why in (
        ("optimizer", trainer.optimizer.kind, trainer.optimizer.kind == "lbfgs", LBFGS),
        ("batch_size", size, size is None or size % 16, "is the number of paths of a step, a multiple of 16"),
        ("sampler", trainer.sampler.kind, trainer.sampler != Shuffled(), "orders rows of a data set: leave it out"),
        ("metrics", trainer.metrics, bool(trainer.metrics), "compare predictions with labels: leave them out"),
        ("mode", trainer.mode, trainer.mode != "min", "must be min: what is monitored is a risk"),
    ):
        if refused:
            raise ConfigError(f"`{name}` {why}, got {told!r}")


def check_matrices(trainer: Trainer, members: Sequence[PathMember], data: PathData, loss: RiskRows | Risk) -> None:
    """Refuse the optimizer muon where it would find no matrix, and be AdamW."""
    optimizer = trainer.optimizer
    if not isinstance(optimizer, Muon):
        return
    for network in {member.network for member in members}:
        drawn = network.init(data.n_features, data.window, torch.Generator(), loss.n_outputs)
        if not any(optimizer.is_matrix(name, tuple(value.shape)) for name, value in drawn.items()):
            raise ConfigError(
                f"`optimizer` cannot be 'muon' with a policy of kind {network.kind!r}, whose maps lie date by date: it "
                "would find no matrix to make orthogonal; take adamw"
            )


LBFGS = "cannot be lbfgs, which searches along one and the same function: every step has new paths; take adamw"
