"""Samplers: which rows a member sees in an epoch, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from qfml.data.bootstrap import sequential_bootstrap
from qfml.data.dataset import TimeDataset
from qfml.errors import UserError


def weighted_draws(weight: np.ndarray, size: int, generator: torch.Generator) -> np.ndarray:
    """Independent draws of places 0 to n - 1, each with a probability proportional to its weight.

    Args:
        weight: non-negative and not all 0, shape (n,).
        size: number of draws.
        generator: of the draws.

    Returns:
        Int64, shape (size,).

    Example:
        >>> weighted_draws(np.array([0.0, 2.0, 0.0]), 4, torch.Generator()).tolist()
        [1, 1, 1, 1]
    """
    cumulative = np.cumsum(weight, dtype=np.float64)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).numpy()
    drawn = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return np.minimum(drawn, np.flatnonzero(weight)[-1])  # a product may round up to the total


def balanced_draws(classes: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """As many places as there are rows, each class as often as any other, in random order.

    Where the classes do not divide the number of rows, those that come once more are drawn. Each class is gone through
    in passes, so that its rows differ by one visit at most.

    Args:
        classes: class of each row, shape (n,).
        generator: of the draws.

    Returns:
        Int64 places 0 to n - 1, shape (n,).

    Example:
        >>> drawn = balanced_draws(np.array([0, 0, 0, 1]), torch.Generator().manual_seed(0))
        >>> np.bincount((drawn == 3).astype(int)).tolist()
        [2, 2]
    """
    distinct, code = np.unique(classes, return_inverse=True)
    share, rest = divmod(len(classes), len(distinct))
    once_more = np.zeros(len(distinct), dtype=np.int64)
    once_more[_permutation(len(distinct), generator)[:rest]] = 1
    parts = []
    for number, more in enumerate(once_more.tolist()):
        places = np.flatnonzero(code == number)
        n_passes = -(-(share + more) // len(places))
        passes = [places[_permutation(len(places), generator)] for _ in range(n_passes)]
        parts += [np.concatenate(passes)[: share + more]] if passes else []
    drawn = np.concatenate(parts)
    return drawn[_permutation(len(drawn), generator)]


class Sampler:
    """The rows of one epoch; a subclass is a frozen dataclass that overrides `order`."""

    kind: ClassVar[str]

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """The rows in the order in which an epoch takes them.

        Args:
            rows: a member's training rows, shape (n,).
            ds: the data.
            generator: all that is random, on the CPU: of the member and the epoch.

        Returns:
            Row ids, all of them from `rows`, shape (n,).
        """
        raise NotImplementedError

    @property
    def replaces_weight(self) -> bool:
        """Whether the rows' weights have gone into the draws: a loss that weighs them too would count them twice."""
        return False


@dataclass(frozen=True)
class Shuffled(Sampler):
    """Every row once, in random order."""

    kind: ClassVar[str] = "shuffled"

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """A permutation."""
        return rows[_permutation(len(rows), generator)]


@dataclass(frozen=True)
class Sequential(Sampler):
    """Every row once, in order of time; rows of one time in order of their group."""

    kind: ClassVar[str] = "sequential"

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """Sorted."""
        group = np.zeros(len(rows), dtype=np.int64) if ds.group is None else ds.group[rows]
        return rows[np.lexsort((group, ds.time[rows]))]


@dataclass(frozen=True)
class Weighted(Sampler):
    """Rows drawn with replacement, with a probability proportional to a weight.

    Args:
        column: the feature that holds the weights, as it stands in the data before any transform; None takes the
            weights of the samples, which the loss then leaves out.
    """

    kind: ClassVar[str] = "weighted"
    column: str | None = None

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """Independent draws.

        Raises:
            UserError: no such weights, or weights that are negative or all 0 on `rows`.
        """
        weight = self._weight(rows, ds)
        name = "the weights of the samples" if self.column is None else f"`column` {self.column!r}"
        if (weight < 0).any():
            row = int(np.argmax(weight < 0))
            raise UserError(
                f"{name} must be >= 0 to draw rows by: {int((weight < 0).sum())} of {len(rows)} are not, first "
                f"row {rows[row]}: {weight[row]:g}"
            )
        if not weight.any():
            raise UserError(f"{name} must not all be 0 to draw rows by: they are on all {len(rows)} training rows")
        return rows[weighted_draws(weight, len(rows), generator)]

    @property
    def replaces_weight(self) -> bool:
        """True for the weights of the samples."""
        return self.column is None

    def _weight(self, rows: np.ndarray, ds: TimeDataset) -> np.ndarray:
        if self.column is None:
            if ds.weight is None:
                raise UserError(
                    "the sampler `weighted` needs weights, and the samples have none: give the data a `weight`, or "
                    "name a feature that holds it as `column`"
                )
            return ds.weight[rows].double().cpu().numpy()
        if self.column not in ds.feature_names:
            raise UserError(f"`column` must be one of {', '.join(ds.feature_names)}, got {self.column!r}")
        column = ds.features[ds.ends[rows], ds.feature_names.index(self.column)]
        return column.double().cpu().numpy()


@dataclass(frozen=True)
class ClassBalanced(Sampler):
    """Each class of the labels as often as any other: rare rows come several times, frequent ones take turns."""

    kind: ClassVar[str] = "class_balanced"

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """Equal shares in random order.

        Raises:
            UserError: labels that are not classes.
        """
        if ds.y.ndim > 1:
            raise UserError(f"the sampler `class_balanced` needs one label a row, got {ds.y.shape[1]}")
        classes = ds.y[rows].cpu().numpy()
        if (classes != np.round(classes)).any():
            first = classes[np.argmax(classes != np.round(classes))]
            raise UserError(
                f"the sampler `class_balanced` needs labels that are classes, whole numbers, got {first:g}: use a "
                "label of task classification, or another sampler"
            )
        return rows[balanced_draws(classes, generator)]


@dataclass(frozen=True)
class SequentialBootstrap(Sampler):
    """Rows drawn with replacement, less often the more their labels overlap with those drawn before.

    Overlaps are counted on the times and label ends of the training rows.

    References:
        Lopez de Prado (2018), "Advances in Financial Machine Learning", section 4.5.
    """

    kind: ClassVar[str] = "sequential_bootstrap"

    def order(self, rows: np.ndarray, ds: TimeDataset, generator: torch.Generator) -> np.ndarray:
        """Draws in their order.

        Raises:
            DataError: a label that does not end after its time.
        """
        seed = int(torch.randint(2**63 - 1, (1,), generator=generator))
        group = None if ds.group is None else ds.group[rows]
        return rows[sequential_bootstrap(ds.time[rows], ds.label_end[rows], seed=seed, group=group)]


def _permutation(n: int, generator: torch.Generator) -> np.ndarray:
    return torch.randperm(n, generator=generator).numpy()


SAMPLERS: dict[str, type] = {
    cls.kind: cls for cls in (Shuffled, Sequential, Weighted, ClassBalanced, SequentialBootstrap)
}
