"""What a block is fed, step by step: features, labels and weights of every member's next rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.engine.clock import Clock, Counters
from qfml.engine.differential import labels_of
from qfml.engine.inputs import Inputs, panel_of, time_order
from qfml.engine.member import Member
from qfml.engine.sampling import Sampler
from qfml.engine.trainer import Trainer
from qfml.errors import UserError
from qfml.losses import Loss, Panel
from qfml.networks import Network

CPU_CHUNK_BYTES, CHUNK_BYTES = 2**21, 2**27  # gathered at a time: from the cache, elsewhere by few kernels


class Batch(NamedTuple):
    """The rows of one step of M members.

    Attributes:
        x: features, shape (M, B, F) or (M, B, L, F).
        y: labels, shape (M, B), or (M, B, K) where a row has several.
        weight: (M, B), 0 on rows that only fill up a batch.
        share: (M, B), the weight over the sum of the member's weights.
        total: (M,) float64, that sum.
        rows: (M, B) row ids on the CPU, None where rows have none.
        panel: where each row stands in time, for a loss of the whole sample.
    """

    x: Tensor
    y: Tensor
    weight: Tensor
    share: Tensor
    total: Tensor
    rows: Tensor | None = None
    panel: Panel | None = None


@runtime_checkable
class Feed(Protocol):
    """What a block takes its batches from.

    The `clock` says which batch comes next, so that its counters are all that a checkpoint holds of a feed.
    """

    @property
    def clock(self) -> Counters:
        """Where each member stands."""
        ...

    @property
    def inputs(self) -> Inputs | None:
        """The data in memory that validation rows are taken from; None where there are none."""
        ...

    @property
    def n_features(self) -> int:
        """Features of a row, after the members' transforms."""
        ...

    @property
    def window(self) -> int | None:
        """Rows of a window; None where an input is one row."""
        ...

    def next(self) -> Batch:
        """The batch of each member's next step; the clock is moved on by `advance` alone."""
        ...

    def keep(self, places: np.ndarray) -> None:
        """Forget all members but those at `places`, in the clock too."""
        ...

    def validated(
        self, network: Network, loss: Loss, parameters: Mapping[str, Tensor], places: np.ndarray
    ) -> list[dict[str, float]]:
        """`val_loss` of the members at `places` with these `parameters`, by other means than rows of `inputs`."""
        ...


class BatchData(ABC):
    """Data that make their own batches, which all members share, in place of a data set in memory."""

    is_sample: ClassVar[bool] = False  # each batch is a sample, of which a loss of the whole sample may be taken
    device: torch.device

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(F,) or (L, F), what one row of the features has."""

    @property
    def n_features(self) -> int:
        """Features of a row."""
        return self.shape[-1]

    @property
    def window(self) -> int | None:
        """Rows of a window; None where an input is one row."""
        return self.shape[0] if len(self.shape) == 2 else None

    @property
    def validates(self) -> bool:
        """Whether there is something of its own to validate on."""
        return False

    @property
    @abstractmethod
    def data_hash(self) -> str:
        """16 hex digits of what decides the batches."""

    @abstractmethod
    def to(self, device: torch.device | str) -> BatchData:
        """The same data for a training on `device`."""

    @abstractmethod
    def feed(self, trainer: Trainer, members: Sequence[Any]) -> Feed:
        """What members are fed."""


class ResidentFeed:
    """Batches of a data set in memory, gathered for several steps at once by the row ids of each member's clock."""

    def __init__(self, inputs: Inputs, clock: Clock, panel: Panel | None) -> None:
        self.inputs, self.clock, self.panel = inputs, clock, panel
        self._chunk: list[Batch] = []
        self._length = self._at = 0

    @property
    def n_features(self) -> int:
        """Features of a row, after the transforms."""
        return self.inputs.features.shape[1]

    @property
    def window(self) -> int | None:
        """Rows of a window, None where an input is one row."""
        return self.inputs.window

    def next(self) -> Batch:
        """The batches of each member's next step; the clock is moved on by `advance` alone.

        A chunk ends where the first member ends its epoch, so that no other order is needed within it.
        """
        if self._at == self._length and not (self._length and self.clock.repeats):
            self._gather()
        self._at %= self._length
        batch = self._chunk[self._at]
        self._at += 1
        return batch

    def _gather(self) -> None:
        clock = self.clock
        per_step = max(1, self.inputs.bytes_per_row * clock.width * len(clock.seeds))
        most = max(1, (CPU_CHUNK_BYTES if self.inputs.y.device.type == "cpu" else CHUNK_BYTES) // per_step)
        rows, filled = clock.batches(min(most, clock.steps_left))
        x, y = self.inputs.gather(rows)
        weight = self.inputs.weights(rows, filled)
        total = weight.sum(-1, keepdim=True)
        parts = (x, y, weight, weight / total.clamp_min(1e-30), total[..., 0].double(), rows)
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        self._chunk = [Batch(*step, self.panel) for step in steps]  # pyright: ignore[reportCallIssue]
        self._length, self._at = len(rows), 0

    def validated(
        self, network: Network, loss: Loss, parameters: Mapping[str, Tensor], places: np.ndarray
    ) -> list[dict[str, float]]:
        """Nothing: validation rows are those of `inputs`."""
        return [{} for _ in places]

    def keep(self, places: np.ndarray) -> None:
        """Forget all members but those at `places`."""
        index = torch.from_numpy(places).to(self.inputs.y.device)
        self.clock.keep(places)
        self.inputs.keep(index)
        if self.panel is not None:
            self.panel = Panel(self.panel.period[index], self.panel.first[index])
        self._length = self._at = 0  # what was gathered is of other members


def resident_feed(trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset) -> ResidentFeed:
    """The feed of members that train on rows of `ds`."""
    seeds = [(trainer.seed, member.seed) for member in members]
    ordered = trainer.batch_size is None  # all rows at once: their order only matters to a loss of the whole sample
    rows = [time_order(ds, member.train) if ordered else np.asarray(member.train) for member in members]
    batch_size = len(rows[0]) if trainer.batch_size is None else min(trainer.batch_size, len(rows[0]))
    order = None if ordered else partial(_order, trainer.sampler, ds)
    clock = Clock(rows, seeds, batch_size, order, trainer.max_steps)
    weighted = not trainer.sampler.replaces_weight
    inputs = Inputs(ds, [member.transforms for member in members], weighted, labels_of(loss, ds))
    panel = None if loss.additive else panel_of(ds, rows, clock.width)
    return ResidentFeed(inputs, clock, panel)


def _order(sampler: Sampler, ds: TimeDataset, rows: np.ndarray, generator: torch.Generator) -> np.ndarray:
    taken = sampler.order(rows, ds, generator)
    if taken.shape != rows.shape:
        raise UserError(
            f"the sampler `{sampler.kind}` must take as many rows as a member has, {len(rows)}, got {len(taken)}: draw "
            "some more than once, or give the member other rows"
        )
    return taken


def feed_of(trainer: Trainer, members: Sequence[Member], loss: Loss, ds: TimeDataset | BatchData) -> Feed:
    """What members train on: rows in memory, or batches that come."""
    return ds.feed(trainer, members) if isinstance(ds, BatchData) else resident_feed(trainer, members, loss, ds)
