"""What a block is fed, step by step: features, labels and weights of every member's next rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qfml.engine.clock import Clock
from qfml.engine.inputs import Inputs
from qfml.losses import Panel

CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**27}  # gathered at a time: from the cache, or by few kernels


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


class ResidentFeed:
    """Batches of a data set in memory, gathered for several steps at once by the row ids of each member's clock."""

    def __init__(self, inputs: Inputs, clock: Clock, panel: Panel | None) -> None:
        self.inputs, self.clock, self.panel = inputs, clock, panel
        self._chunk: list[Batch] = []
        self._length = self._at = 0

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
        most = max(1, CHUNK_BYTES[self.inputs.y.device.type] // per_step)
        rows, filled = clock.batches(min(most, clock.steps_left))
        x, y = self.inputs.gather(rows)
        weight = self.inputs.weights(rows, filled)
        total = weight.sum(-1, keepdim=True)
        parts = (x, y, weight, weight / total.clamp_min(1e-30), total[..., 0].double(), rows)
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        self._chunk = [Batch(*step, self.panel) for step in steps]  # pyright: ignore[reportCallIssue]
        self._length, self._at = len(rows), 0

    def keep(self, places: np.ndarray) -> None:
        """Forget all members but those at `places`."""
        index = torch.from_numpy(places).to(self.inputs.y.device)
        self.clock.keep(places)
        self.inputs.keep(index)
        if self.panel is not None:
            self.panel = Panel(self.panel.period[index], self.panel.first[index])
        self._length = self._at = 0  # what was gathered is of other members
