"""A member of a stack: one network with its own rows, seed and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfml.data.dataset import TimeDataset
from qfml.data.fitted_transforms import FittedTransform
from qfml.engine.fit import Fit
from qfml.errors import UserError
from qfml.losses import Loss
from qfml.networks import Network, as_network


@dataclass(frozen=True, eq=False)
class Member:
    """One network to be trained, alone or in a stack; what it becomes does not depend on the stack.

    Args:
        network: the specification, or a function that builds a `torch.nn.Module` (see `Module`); parameters are drawn
            from `seed`.
        train: row ids to train on.
        val: row ids that decide when to stop and which epoch was best; without any, the last epoch is taken.
        seed: names the member's random streams (initial weights, shuffles, dropout).
        lr, weight_decay, clip_norm, patience: override the trainer's settings for this member.
        transforms: fitted on the training rows, applied to the features.
        start: continue from the parameters of this fit (warm start) instead of drawing them.
    """

    network: Any  # a Network; a bare factory becomes one
    train: np.ndarray
    val: np.ndarray | None = None
    seed: int = 0
    lr: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    patience: int | None = None
    transforms: FittedTransform | None = None
    start: Fit | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", np.asarray(self.train))
        object.__setattr__(self, "val", None if self.val is None else np.asarray(self.val))
        object.__setattr__(self, "network", as_network(self.network))
        if isinstance(self.network, type) or not isinstance(self.network, Network):
            raise UserError(f"`network` must be a specification such as MLP(hidden=(32, 32)), got {self.network!r}")
        if not isinstance(self.transforms, FittedTransform | None):
            raise UserError(f"`transforms` must be fitted, such as Standardise().fit(X), got {self.transforms!r}")
        if not isinstance(self.start, Fit | None):
            raise UserError(f"`start` must be a fit of an earlier training, got {type(self.start).__name__}")
        object.__setattr__(self, "seed", whole("seed", self.seed))
        if self.patience is not None:
            object.__setattr__(self, "patience", whole("patience", self.patience, least=1))
        for name in _RULES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, number(name, getattr(self, name)))

    @property
    def numbers(self) -> list[Any]:
        """What is its own beside network, rows and transforms."""
        return [self.seed, self.lr, self.weight_decay, self.clip_norm, self.patience]

    def check(self, ds: TimeDataset) -> None:
        """Raise ValueError if the rows are not rows of `ds`, or training and validation overlap."""
        for name, rows in (("train", self.train), ("val", self.val)):
            if rows is None:
                continue
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
                raise UserError(f"`{name}` must be a non-empty 1-D array of row ids, got {rows.dtype} {rows.shape}")
            if rows.min() < 0 or rows.max() >= len(ds):
                raise UserError(f"`{name}` must hold row ids from 0 to {len(ds) - 1}, got {rows.min()} to {rows.max()}")
            if len(np.unique(rows)) < len(rows):
                raise UserError(f"`{name}` names a row twice: {len(rows)} ids, {len(np.unique(rows))} of them distinct")
        if self.val is not None and np.intersect1d(self.train, self.val).size:
            raise UserError("`val` shares rows with `train`: a network would be judged on what it was trained on")


_RULES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("positive and finite", lambda value: 0 < value < math.inf),
    "weight_decay": (">= 0 and finite", lambda value: 0 <= value < math.inf),
    "clip_norm": ("positive", lambda value: value > 0),
}


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number as Python's own, which names a random stream by its text; UserError for anything else."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        rule = "a whole number" if least is None else f"a whole number, at least {least}"
        raise UserError(f"`{name}` of a member must be {rule}, got {value!r}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A setting that takes the place of the trainer's; UserError for one that no trainer would take."""
    rule, holds = _RULES[name]
    plain = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    own = float(value) if plain else math.nan  # which no rule lets pass
    if not holds(own):
        raise UserError(f"`{name}` of a member must be {rule}, got {value!r}; leave it out to take the trainer's")
    return own


def check_weights(
    member: Member, place: int, loss: Loss, ds: TimeDataset, names: tuple[str, ...] = ("train", "val")
) -> None:
    """Raise ValueError where the sample weights leave a loss nothing, or too few periods, to be taken of."""
    if ds.weight is None:
        return
    for name in names:
        rows = getattr(member, name)
        if rows is None:
            continue
        counts = rows[ds.weight.cpu().numpy()[rows] > 0]
        if len(counts) == 0:
            raise UserError(
                f"all {len(rows)} rows of `{name}` of member {place} have weight 0: a loss of nothing is no number; "
                "give it rows that count, or leave the weights out"
            )
        least = getattr(loss, "least_periods", 1)
        if not loss.additive and (periods := len(np.unique(ds.time[counts]))) < least:
            raise UserError(
                f"`{loss.kind}` needs at least {least} periods whose weight is not 0, and `{name}` of member {place} "
                f"has {periods}"
            )
