"""The gradient of one batch: in one piece, or micro-batch by micro-batch without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from qfml.engine.feed import Batch
from qfml.losses import Additive, Loss

Forward = Callable[[Tensor, slice], Tensor]  # features (M, b, ...) and their place in the batch to outputs (M, b[, K])
Take = Callable[[Tensor, bool], None]  # a value per member (M,) whose gradient is wanted; whether it is the first


def micro_batches(width: int, size: int | None) -> Iterator[slice]:
    """The rows of a batch in pieces of `size`, a multiple of 16 so that each matrix begins on a cache line."""
    step = width if size is None else min(width, -(-size // 16) * 16)
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def losses_and_gradient(forward: Forward, loss: Loss, batch: Batch, size: int | None, take: Take) -> Tensor:
    """The loss of each member (M,); `take` is handed values (M,) whose gradients add up to those of the losses.

    An additive loss is summed over micro-batches, each row with its share of the whole batch. A loss of the whole
    sample is not a sum: all outputs are computed without a graph, the loss is differentiated in the outputs, and each
    micro-batch then contributes its vector-Jacobian product.
    """
    parts = list(micro_batches(batch.share.shape[1], size))
    if isinstance(loss, Additive):
        losses = torch.zeros((), device=batch.y.device)
        for part in parts:
            own = (loss.rows(forward(batch.x[:, part], part), batch.y[:, part]) * batch.share[:, part]).sum(1)
            take(own, part.start == 0)
            losses = losses + own.detach()
        return losses
    if len(parts) == 1:
        losses = loss(forward(batch.x, parts[0]), batch.y, batch.weight, batch.panel)
        take(losses, True)
        return losses.detach()
    with torch.no_grad():
        outputs = torch.cat([forward(batch.x[:, part], part) for part in parts], dim=1)
    outputs.requires_grad_()
    losses = loss(outputs, batch.y, batch.weight, batch.panel)
    (slopes,) = torch.autograd.grad(losses.sum(), outputs)
    for part in parts:
        take((forward(batch.x[:, part], part) * slopes[:, part]).flatten(1).sum(1), part.start == 0)
    return losses.detach()
