"""Averages of the weights along the way: validated, kept and predicted with in place of the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.engine.optimizers.base import Flat
from qfml.errors import UserError


@dataclass(frozen=True)
class EMA:
    r"""Exponential moving average $a \leftarrow \lambda a + (1 - \lambda) w$ after each step.

    Args:
        decay: $\lambda$; 0.999 looks back about 1,000 steps.

    References:
        Polyak, Juditsky (1992), "Acceleration of Stochastic Approximation by Averaging".
    """

    kind: ClassVar[str] = "ema"
    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise UserError(f"`decay` must lie in (0, 1), got {self.decay}")

    def after_step(self, average: Flat, parameters: Flat, count: np.ndarray) -> None:
        """Take in the weights of a step; `count` (M,) numbers it from 1, and the first is copied."""
        share = torch.from_numpy(np.where(count == 1, 1.0, 1.0 - self.decay)[:, None]).to(average)
        average.lerp_(parameters, share)

    def after_epoch(self, average: Tensor, parameters: Tensor, epoch: int) -> None:
        """Nothing more."""

    def ready(self, epoch: int) -> bool:
        """Whether the average stands for the weights after so many epochs."""
        return True


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Args:
        start: epoch, counted from 1, whose weights are the first of the mean; until then the weights themselves count.

    References:
        Izmailov et al. (2018), "Averaging Weights Leads to Wider Optima and Better Generalization", algorithm 1.
    """

    kind: ClassVar[str] = "swa"
    start: int

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 1:
            raise UserError(f"`start` must be a whole number, at least 1, got {self.start!r}")

    def after_step(self, average: Flat, parameters: Flat, count: np.ndarray) -> None:
        """Nothing: only the ends of epochs count."""

    def after_epoch(self, average: Tensor, parameters: Tensor, epoch: int) -> None:
        """Take in the weights (P,) of one member at the end of its epoch."""
        if epoch >= self.start:
            average.lerp_(parameters, 1.0 / (epoch - self.start + 1))

    def ready(self, epoch: int) -> bool:
        """Whether the average stands for the weights after so many epochs."""
        return epoch >= self.start


Averaging = EMA | SWA
AVERAGES: dict[str, type] = {cls.kind: cls for cls in (EMA, SWA)}
