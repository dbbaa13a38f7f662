"""Clipping of gradients, member by member."""

from __future__ import annotations

import torch
from torch import Tensor

from qfml.engine.optimizers.base import Flat


def norms(gradient: Flat) -> Tensor:
    """Euclidean norm of each member's gradient, (M, 1)."""
    return torch.linalg.vector_norm(gradient, dim=1, keepdim=True)


def clip_norm_(gradient: Flat, norm: Tensor, most: Tensor) -> None:
    """Scale down, in place, the gradients whose `norm` exceeds `most` (M, 1), as `torch.nn.utils.clip_grad_norm_`."""
    if norm.device.type == "cpu" and bool((norm + 1e-6 <= most).all()):
        return
    # a norm that is nan is that of a member that skips the step: its gradient has been set to 0, and stays so
    gradient.mul_((most / (norm + 1e-6)).clamp_max(1).nan_to_num(1.0))


def clip_value_(gradient: Flat, most: float) -> None:
    """Limit, in place, each element to plus and minus `most`."""
    gradient.clamp_(-most, most)
