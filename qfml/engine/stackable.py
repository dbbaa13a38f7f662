"""Which members cannot be trained as a stack, and so train one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset, gather_windows
from qfml.engine.feed import BatchData
from qfml.engine.member import Member
from qfml.engine.optimizers import TorchOptimizer
from qfml.engine.streams import stream
from qfml.engine.trainer import Trainer
from qfml.networks import Module

_ROWS = 16


def stackable(trainer: Trainer, members: Sequence[Member], n_outputs: int, ds: TimeDataset | BatchData) -> bool:
    """Whether members of one kind may share a block; what prevents it is said in a warning."""
    network = members[0].network
    if isinstance(network, Module) and not network.stacks(example(members[0], ds), n_outputs):
        return False  # the network has said why
    if not isinstance(trainer.optimizer, TorchOptimizer):
        return True
    if len(members) > 1:
        warnings.warn(
            f"{len(members)} members are trained one at a time, not as a stack: {trainer.optimizer.optimizer} knows no "
            "members",
            UserWarning,
            stacklevel=2,
        )
    return False


def example(member: Member, ds: TimeDataset | BatchData) -> Tensor:
    """Features of a few rows as the member's network sees them, (B, F) or (B, L, F)."""
    if isinstance(ds, BatchData):  # its rows come when they come
        return torch.randn(_ROWS, *ds.shape, generator=stream(0, "example"))
    ends = ds.ends[torch.as_tensor(member.train[:_ROWS])]
    x = gather_windows(ds.features, ends, ds.window)
    if member.transforms is None:
        return x
    rows = member.transforms.apply(x.flatten(0, -2))
    return rows.unflatten(0, x.shape[:-1])
