"""The gap between validation and training loss along the epochs, and when it opened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfml.errors import UserError


@dataclass(frozen=True, eq=False)
class Gap:
    """Validation minus training loss of each epoch.

    Attributes:
        epochs: (E,) epoch numbers, from 1; epochs with a loss that is not finite are left out.
        train_loss: (E,) mean loss of the epoch's batches, as they were trained on.
        val_loss: (E,) loss on the validation rows after the epoch.
        best_epoch: the epoch of the lowest validation loss.
        opened_at: the epoch at which the gap opened for good; None if it did not.
    """

    epochs: np.ndarray
    train_loss: np.ndarray
    val_loss: np.ndarray
    best_epoch: int
    opened_at: int | None

    @property
    def gap(self) -> np.ndarray:
        """Validation minus training loss (E,)."""
        return self.val_loss - self.train_loss

    @property
    def final(self) -> float:
        """The gap of the last epoch."""
        return float(self.gap[-1])


def train_validation_gap(history: Sequence[Mapping[str, Any]], margin: float = 0.05) -> Gap:
    r"""The gap :math:`g_t = L^{val}_t - L^{train}_t` of a fit, and the epoch from which on the fit was overfitted.

    With b the epoch of the lowest validation loss, the gap opened at the first epoch after b from which on, to the
    end, :math:`g_t > g_b + m\,|L^{val}_b|`: training went on to learn what the validation rows do not share. A gap that
    was there from the start and stays as it is has not opened.

    A training loss is a mean over the epoch, with weights that still move and units that dropout has switched off; the
    validation loss belongs to the epoch's end, without dropout. The gap may therefore be negative.

    Args:
        history: of a fit with validation rows, such as `fit.history`.
        margin: m, how much more gap counts, as a share of the lowest validation loss.

    Raises:
        ValueError: a history without finite validation losses, or a negative margin.

    Example:
        >>> train, val = (3.0, 2.0, 1.0, 0.5), (3.1, 2.1, 2.0, 2.4)
        >>> history = [{"epoch": i + 1, "train_loss": t, "val_loss": v} for i, (t, v) in enumerate(zip(train, val))]
        >>> gap = train_validation_gap(history)
        >>> gap.best_epoch, gap.opened_at, gap.final
        (3, 4, 1.9)
    """
    if not 0 <= margin < math.inf:
        raise UserError(f"`margin` must be a share >= 0 of the validation loss, got {margin}")
    rows = [(record["epoch"], record["train_loss"], record["val_loss"]) for record in history]
    rows = [row for row in rows if row[2] is not None and math.isfinite(row[1]) and math.isfinite(row[2])]
    if not rows:
        raise UserError("`history` has no epoch with a finite training and validation loss: train with `val` rows")
    epochs, train, val = (np.array(column) for column in zip(*rows, strict=True))
    best = int(np.argmin(val))
    wide = val - train > val[best] - train[best] + margin * abs(val[best])
    wide[: best + 1] = False
    closed = np.flatnonzero(~wide)[-1]  # the last epoch without a gap; there is one, the best
    opened = int(epochs[closed + 1]) if closed + 1 < len(epochs) else None
    return Gap(epochs, train.astype(np.float64), val.astype(np.float64), int(epochs[best]), opened)
