"""What a block of members is fed: one resident feature tensor, one view of it for each distinct transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qfml.data.dataset import TimeDataset, gather_windows
from qfml.data.fitted_transforms import FittedTransform
from qfml.losses import Panel

ROWS_AT_A_TIME = 256  # of one forward pass outside training: fixed, so that an output does not depend on the others


class Inputs:
    """Features, labels and weights of a data set, gathered by (M, B) row ids; each member sees its own transform.

    A transform is applied once to all rows, not batch by batch; members that share one share the transformed rows.
    Without `weighted` the sample weights do not weigh the training loss. `labels` (N,) or (N, K) replace the data's.
    """

    def __init__(
        self,
        ds: TimeDataset,
        transforms: Sequence[FittedTransform | None],
        weighted: bool = True,
        labels: Tensor | None = None,
    ) -> None:
        distinct = list({id(transform): transform for transform in transforms}.values())
        views = [ds.features if each is None else each.apply(ds.features) for each in distinct]
        place = {id(transform): view * len(ds.features) for view, transform in enumerate(distinct)}
        self.ds = ds
        self.features = views[0] if len(views) == 1 else torch.cat(views)
        self.offset = torch.tensor([place[id(transform)] for transform in transforms], device=ds.y.device)[:, None]
        self.ends, self.y, self.window = ds.ends, ds.y if labels is None else labels, ds.window
        self.sample_weight = ds.weight if weighted else None
        rows = torch.arange(len(ds.ends), device=ds.ends.device)
        self.plain = len(views) == 1 and ds.window is None and torch.equal(ds.ends, rows)  # samples are rows
        self._x: Tensor | None = None

    @property
    def bytes_per_row(self) -> int:
        """What one gathered row takes."""
        return 4 * (self.features.shape[1] * (self.window or 1) + 4)

    def gather(self, rows: Int[Tensor, "step member row"]) -> tuple[Tensor, Tensor]:
        """`x` (S, M, B, F) or (S, M, B, L, F) and `y` (S, M, B[, K]); `x` is overwritten by the next call."""
        rows = rows.to(self.y.device)
        ends = rows if self.plain else self.ends.index_select(0, rows.flatten()).view(rows.shape) + self.offset
        shape = (*ends.shape, *(() if self.window is None else (self.window,)), self.features.shape[1])
        if self._x is None or self._x.numel() < math.prod(shape):
            self._x = self.features.new_empty(math.prod(shape))  # fresh memory for each chunk would cost as much again
        x = self._x[: math.prod(shape)].view(shape)
        gather_windows(self.features, ends, self.window, out=x)
        return x, self.y.index_select(0, rows.flatten()).view(*rows.shape, *self.y.shape[1:])

    def weights(self, rows: Int[Tensor, "step member row"], weight: Tensor) -> Tensor:
        """The weights (S, M, B) of rows, 0 for fillers, times the sample weights."""
        weight = weight.to(self.y.device)
        if self.sample_weight is None:
            return weight
        return weight * self.sample_weight.index_select(0, rows.to(self.y.device).flatten()).view(rows.shape)

    def gather_x(self, rows: Int[Tensor, "member row"], members: Tensor) -> Tensor:
        """Only the features, for some of the members."""
        return gather_windows(self.features, self.ends[rows] + self.offset[members], self.window)

    def keep(self, members: Tensor) -> None:
        """Forget all but `members`."""
        self.offset = self.offset[members]


def time_order(ds: TimeDataset, rows: np.ndarray) -> np.ndarray:
    """The rows sorted by (group, time), as a loss of the whole sample wants them."""
    codes = np.zeros(len(ds), dtype=np.int64) if ds.group is None else ds.group
    return rows[np.lexsort((ds.time[rows], codes[rows]))]


def panel_of(ds: TimeDataset, rows: Sequence[np.ndarray], width: int | None = None) -> Panel:
    """Period numbers and first rows of M equally long row lists that are sorted by (group, time).

    With a `width`, the lists are filled up to it with rows of their own that stand for nothing (period 0, first).
    """
    codes = np.zeros(len(ds), dtype=np.int64) if ds.group is None else ds.group
    period = np.stack([np.unique(ds.time[own], return_inverse=True)[1] for own in rows])
    group = np.stack([codes[own] for own in rows])
    first = np.concatenate([np.ones((len(rows), 1), dtype=bool), group[:, 1:] != group[:, :-1]], axis=1)
    fill = ((0, 0), (0, 0 if width is None else width - period.shape[1]))
    period, first = np.pad(period, fill), np.pad(first, fill, constant_values=True)
    return Panel(torch.from_numpy(period).to(ds.y.device), torch.from_numpy(first).to(ds.y.device))


def n_periods(ds: TimeDataset, rows: np.ndarray) -> int:
    """Number of distinct decision times among `rows`."""
    return len(np.unique(ds.time[rows]))


def pad_rows(
    rows: Sequence[np.ndarray], multiple: int
) -> tuple[Int[Tensor, "member row"], Float[Tensor, "member row"]]:
    """Row lists of different lengths as one table padded to a multiple, and the weight 1 of rows that are real."""
    width = -(-max(len(own) for own in rows) // multiple) * multiple
    table = np.zeros((len(rows), width), dtype=np.int64)
    weight = np.zeros((len(rows), width), dtype=np.float32)
    for member, own in enumerate(rows):
        table[member] = own[0]
        table[member, : len(own)] = own
        weight[member, : len(own)] = 1
    return torch.from_numpy(table), torch.from_numpy(weight)
