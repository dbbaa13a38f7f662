"""Each member's own clock: the rows of its next step, in an order that depends on its seed and epoch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from qfml.engine.streams import stream

Order = Callable[[np.ndarray, torch.Generator], np.ndarray]


class Counters:
    """Where M members stand: each in its epoch, at a step of it, after a number of steps in all.

    Args:
        seeds: address of each member's random streams.
        batch_size: rows of one step.
        steps_per_epoch: of each member, shape (M,).
        max_steps: steps after which a member's last epoch ends, complete or not.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[int, int]],
        batch_size: int,
        steps_per_epoch: np.ndarray,
        max_steps: int | None = None,
    ) -> None:
        self.seeds, self.batch_size, self.max_steps = list(seeds), batch_size, max_steps
        self.steps_per_epoch = steps_per_epoch
        self.epoch = np.zeros(len(seeds), dtype=np.int64)
        self.step = np.zeros(len(seeds), dtype=np.int64)  # within the epoch
        self.n_steps = np.zeros(len(seeds), dtype=np.int64)  # in all

    @property
    def width(self) -> int:
        """Rows of one step as they are computed: the batch size, filled up to a multiple of 16.

        A matrix product rounds differently where a matrix does not begin on a cache line. With 16 rows, or a multiple,
        each member's matrices do, wherever the member stands in the stack.
        """
        return -(-self.batch_size // 16) * 16

    @property
    def steps_left(self) -> int:
        """Steps until the first member ends its epoch."""
        return int((self.steps_per_epoch - self.step).min())

    def advance(self) -> np.ndarray:
        """Count one step of every member; returns the members whose epoch ends here."""
        self.step += 1
        self.n_steps += 1
        ended = self.step == self.steps_per_epoch
        if self.max_steps is not None:
            ended |= self.n_steps == self.max_steps
        return np.flatnonzero(ended)

    def begin_epoch(self, member: int) -> None:
        """Roll a member into its next epoch."""
        self.epoch[member] += 1
        self.step[member] = 0

    def keep(self, members: np.ndarray) -> None:
        """Forget all but `members`."""
        self.seeds = [self.seeds[member] for member in members]
        for name in ("steps_per_epoch", "epoch", "step", "n_steps"):
            setattr(self, name, getattr(self, name)[members])

    def state(self) -> dict[str, list[int]]:
        """The counters as plain numbers; with the seeds they determine everything else."""
        return {name: getattr(self, name).tolist() for name in ("epoch", "step", "n_steps")}

    def restore(self, state: dict[str, list[int]]) -> None:
        """Set the counters."""
        for name, values in state.items():
            setattr(self, name, np.array(values, dtype=np.int64))


class Clock(Counters):
    """Epochs and batches of M members that may have different numbers of rows.

    A member with fewer rows rolls into its next epoch while the others go on; its last batch is filled up with rows of
    weight 0. Shuffles are addressed by (seed, member seed, epoch).

    Args:
        rows: the training rows of each member.
        seeds: address of each member's random streams.
        batch_size: rows of one step.
        order: from a member's rows and the generator of an epoch to the rows that it takes, in their order; None takes
            them as they are in every epoch.
        max_steps: steps after which a member's last epoch ends, complete or not.
    """

    def __init__(
        self,
        rows: Sequence[np.ndarray],
        seeds: Sequence[tuple[int, int]],
        batch_size: int,
        order: Order | None,
        max_steps: int | None = None,
    ) -> None:
        self.rows, self.order = list(rows), order
        self.n_rows = np.array([len(own) for own in rows])
        super().__init__(seeds, batch_size, -(-self.n_rows // batch_size), max_steps)
        self._order = torch.zeros(len(rows), int(self.steps_per_epoch.max()), batch_size, dtype=torch.int32)
        for member in range(len(rows)):
            self._draw(member)

    @property
    def repeats(self) -> bool:
        """Whether every step has the same rows: all of them, in the same order."""
        return self.order is None and int(self.steps_per_epoch.max()) == 1

    def batches(self, n_steps: int) -> tuple[Tensor, Tensor]:
        """Row ids (S, M, B) of the next S steps, and the weight (S, M, B): 1 for a row, 0 for a filler."""
        step = self.step + np.arange(n_steps)[:, None]
        ids = self._order[torch.arange(len(self.rows)), torch.from_numpy(step)]
        place = np.arange(self.width)
        seen = step[..., None] * self.batch_size
        weight = (place < self.batch_size) & (place + seen < self.n_rows[:, None])
        if self.width > self.batch_size:
            ids = torch.cat([ids, ids[..., :1].expand(-1, -1, self.width - self.batch_size)], dim=-1)
        return ids, torch.from_numpy(weight.astype(np.float32))

    def begin_epoch(self, member: int) -> None:
        """Roll a member into its next epoch."""
        super().begin_epoch(member)
        if self.order is not None:
            self._draw(member)

    def keep(self, members: np.ndarray) -> None:
        """Forget all but `members`."""
        super().keep(members)
        self.rows = [self.rows[member] for member in members]
        self.n_rows = self.n_rows[members]
        self._order = self._order[torch.from_numpy(members)]

    def restore(self, state: dict[str, list[int]]) -> None:
        """Set the counters and draw the orders that belong to them."""
        super().restore(state)
        for member in range(len(self.rows)):
            self._draw(member)

    def _draw(self, member: int) -> None:
        rows, filled = self.rows[member], self._order[member].view(-1)
        if self.order is not None:
            rows = self.order(rows, stream(*self.seeds[member], "shuffle", int(self.epoch[member])))
        filled[: len(rows)] = torch.from_numpy(rows.astype(np.int32))
        filled[len(rows) :] = filled[0]
