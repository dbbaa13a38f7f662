"""Precisions: in which number format the network's products are computed. Weights and updates are always float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from qfml.engine.optimizers.base import Flat, State
from qfml.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
FIRST_SCALE, LARGEST_SCALE = 2.0**16, 2.0**24
GROWTH_INTERVAL = 2000  # steps without an overflow after which a member's scale doubles, as in torch.amp.GradScaler


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ValueError for an unknown precision, or one that the device does not have."""
    if precision not in PRECISIONS:
        raise UserError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"`precision` tf32 needs a CUDA device: only its tensor cores have the format, got {device.type}; take "
            "fp32, or bf16"
        )


def casting(precision: str, device: torch.device) -> AbstractContextManager:
    """What a forward pass runs under."""
    if precision == "fp32":
        return nullcontext()
    if precision == "tf32":
        return _tf32()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def start_scale(precision: str, parameters: Flat) -> State:
    """The scale of each member's loss, which keeps small fp16 gradients from vanishing; nothing for the others."""
    if precision != "fp16":
        return {}
    column = parameters.new_ones(len(parameters), 1)
    return {"scale": column * FIRST_SCALE, "good_steps": column * 0}


def rescale(state: State, finite: Tensor) -> None:
    """Halve the scale of members whose gradient overflowed, double it after a long time without.

    Each member has its own: one that overflows skips its step, the others do not. Scales are powers of two, so that
    they change no digit of a gradient.

    Args:
        state: of `start_scale`.
        finite: (M, 1), whether the member's gradient is.
    """
    scale, good_steps = state["scale"], state["good_steps"]
    good_steps.add_(1).mul_(finite)
    grown = good_steps >= GROWTH_INTERVAL
    scale.mul_(torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)).clamp_(max=LARGEST_SCALE)
    good_steps.mul_(~grown)
