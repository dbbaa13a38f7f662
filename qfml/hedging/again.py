"""Activations that are made again for the gradient, so that a piece of a walk keeps only what it begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["made_again"]

Run = Callable[..., Sequence[Tensor]]


def made_again(run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`run(*tensors)`, of which nothing but the tensors is kept: its gradient runs it once more.

    `torch.utils.checkpoint` keeps a node of the graph for each operation, some kilobytes a date, so that its memory
    grows with the dates after all; it serves where a compiler has to see through, which makes one kernel of them.

    Args:
        run: of tensors to tensors, the same at each call; all that needs a gradient is among its arguments.
        tensors: its arguments.

    Example:
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> (y,) = made_again(lambda x: (x.exp().log() ** 3,), x)
        >>> torch.autograd.grad(y, x)
        (tensor([12.0000]),)
    """
    if torch.compiler.is_compiling():
        return tuple(checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=False))
    return _Again.apply(run, *tensors)  # pyright: ignore[reportReturnType]


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        device = tensors[0].device.type
        ctx.run, ctx.device = run, device
        ctx.casts = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        ctx.save_for_backward(*tensors)
        return tuple(run(*tensors))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        leaves = [each.detach().requires_grad_(own) for each, own in zip(ctx.saved_tensors, wanted, strict=True)]
        enabled, dtype = ctx.casts
        with torch.enable_grad(), torch.autocast(ctx.device, dtype, enabled=enabled):
            found = ctx.run(*leaves)
        pairs = [(out, slope) for out, slope in zip(found, slopes, strict=True) if out.requires_grad]
        outputs, given = zip(*pairs, strict=True)
        chosen = [leaf for leaf, own in zip(leaves, wanted, strict=True) if own]
        gradients = iter(torch.autograd.grad(outputs, chosen, given, allow_unused=True))
        return None, *(next(gradients) if own else None for own in wanted)
