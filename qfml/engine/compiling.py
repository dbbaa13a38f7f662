"""`torch.compile` of a network's forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qfml.errors import UserError
from qfml.networks import Network

MODES = {"default": "default", "cuda_graphs": "reduce-overhead"}  # to torch's names


def check_compile(mode: str | None, device: torch.device) -> None:
    """Raise ValueError for an unknown way to compile, or one that the device does not have."""
    if mode is not None and mode not in MODES:
        raise UserError(f"`compile` must be one of {', '.join(MODES)}, or None, got {mode!r}")
    if mode == "cuda_graphs" and device.type != "cuda":
        raise UserError(
            f"`compile` cuda_graphs needs a CUDA device: a graph of kernels is recorded there, got {device.type}; take "
            "default, or leave it out"
        )


def forward_of(network: Network, mode: str | None) -> Callable[..., Tensor]:
    """The network's `forward`, compiled for the shapes that it meets if a mode is named."""
    return network.forward if mode is None else torch.compile(network.forward, mode=MODES[mode])
