"""Parameter groups: other learning rates, weight decays or none at all, for parameters chosen by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from qfml.engine.stack import Layout
from qfml.errors import UserError


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose name matches a pattern.

    Args:
        pattern: a shell pattern of parameter names, such as `bias*` or `head_*`.
        lr_factor: times the member's learning rate; 0 freezes the parameters: they get no gradient and count in no
            norm.
        weight_decay_factor: times the member's weight decay.

    Example:
        >>> ParameterGroup("bias*", weight_decay_factor=0.0).frozen
        False
    """

    pattern: str
    lr_factor: float = 1.0
    weight_decay_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr_factor", "weight_decay_factor"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"`{name}` must be >= 0 and finite, got {getattr(self, name)}")

    @property
    def frozen(self) -> bool:
        """Whether the parameters stay as they are."""
        return self.lr_factor == 0


@dataclass(frozen=True)
class GroupFactors:
    """Factors of each parameter, shape (1, P); None where all are 1."""

    lr: Tensor | None = None
    weight_decay: Tensor | None = None
    trained: Tensor | None = None


def group_factors(groups: Sequence[ParameterGroup], layout: Layout, like: Tensor) -> GroupFactors:
    """The factors of every parameter of a row.

    Raises:
        UserError: a pattern matches no parameter, or two match the same one.
    """
    if not groups:
        return GroupFactors()
    names = [name for name, _ in layout.shapes]
    for group in groups:
        if not any(fnmatchcase(name, group.pattern) for name in names):
            raise UserError(f"no parameter matches the pattern {group.pattern!r}; the network has {', '.join(names)}")
    ones = torch.ones(1, layout.width, dtype=like.dtype, device=like.device)
    lr, decay = ones, ones.clone()
    parts = [layout.views(row) for row in (lr, decay)]
    for name in names:
        own = [group for group in groups if fnmatchcase(name, group.pattern)]
        if len(own) > 1:
            patterns = " and ".join(repr(group.pattern) for group in own)
            raise UserError(f"the patterns {patterns} both match the parameter {name!r}: let them exclude each other")
        for group in own:
            parts[0][name].fill_(group.lr_factor)
            parts[1][name].fill_(group.weight_decay_factor)
    trained = (lr != 0).to(like.dtype) if any(group.frozen for group in groups) else None
    return GroupFactors(lr, decay, trained)
