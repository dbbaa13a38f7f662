"""The gradient of one batch: in one piece, or micro-batch by micro-batch without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pricers.parallel import all_threads, side_by_side
from qfml.engine.differential import with_slopes
from qfml.engine.feed import Batch
from qfml.losses import Additive, Loss

Forward = Callable[[Tensor, slice], Tensor]  # features (M, b, ...) and their place in the batch to outputs (M, b[, K])
# values whose gradient is wanted; the weights of these values in what is differentiated (None: 1); whether they are the
# first of the batch
Take = Callable[[Tensor, Tensor | None, bool], None]


def micro_batches(width: int, size: int | None) -> Iterator[slice]:
    """The rows of a batch in pieces of `size`, a multiple of 16 so that each matrix begins on a cache line."""
    step = width if size is None else min(width, -(-size // 16) * 16)
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def losses_and_gradient(forward: Forward, loss: Loss, batch: Batch, size: int | None, take: Take) -> Tensor:
    """The loss of each member (M,); `take` is handed values whose weighted gradients add up to those of the losses.

    An additive loss is summed over micro-batches, each row with its share of the whole batch. A loss of the whole
    sample is not a sum: all outputs are computed without a graph, the loss is differentiated in the outputs, and each
    micro-batch then contributes its vector-Jacobian product.
    """
    width = batch.share.shape[1]
    if loss.differential:
        forward = with_slopes(forward)
    if size is None or size >= width:
        output = forward(batch.x, slice(0, width))
        if isinstance(loss, Additive):
            losses = (loss.rows(output, batch.y) * batch.share).sum(1)
        else:
            losses = loss(output, batch.y, batch.weight, batch.panel)
        take(losses, None, True)
        return losses.detach()
    parts = list(micro_batches(width, size))
    if isinstance(loss, Additive):
        losses = batch.share.new_zeros(len(batch.share))
        for part in parts:
            own = (loss.rows(forward(batch.x[:, part], part), batch.y[:, part]) * batch.share[:, part]).sum(1)
            take(own, None, part.start == 0)
            losses = losses + own.detach()
        return losses
    with torch.no_grad():
        outputs = torch.cat([forward(batch.x[:, part], part) for part in parts], dim=1)
    outputs.requires_grad_()
    losses = loss(outputs, batch.y, batch.weight, batch.panel)
    (slopes,) = torch.autograd.grad(losses.sum(), outputs)
    for part in parts:
        take(forward(batch.x[:, part], part), slopes[:, part], part.start == 0)
    return losses.detach()


Pull = Callable[[Tensor], list[Tensor]]  # slopes of the outputs to gradients of all parameters
# features, their members and their place in the batch to outputs, and their `pull`
Pullback = Callable[[Tensor, slice, slice], tuple[Tensor, Pull]]
Put = Callable[[list[Tensor]], None]  # gradients of all parameters


@torch.no_grad()
def losses_and_written_gradient(
    pullback: Pullback,
    loss: Loss,
    batch: Batch,
    size: int | None,
    put: Put,
    threads: int = 1,
    any_threads: bool = False,
) -> Tensor:
    """`losses_and_gradient` of a network that knows its own gradient: without torch's graph.

    Micro-batches of an additive loss are worked on side by side on so many `threads`, and added up in their order. A
    network whose bits allow `any_threads` works on one micro-batch of one member after another, on all of them: no more
    than that is remembered at a time.
    """
    width = len(batch.share)
    if any_threads:
        pullback, threads = _spread(pullback, threads), 1
    groups = [slice(member, member + 1) for member in range(width)] if any_threads else [slice(0, width)]
    found = [_of_members(pullback, loss, batch, size, members, threads) for members in groups]
    put(
        found[0][1] if len(found) == 1 else [torch.cat(parts) for parts in zip(*(own for _, own in found), strict=True)]
    )
    return torch.cat([losses for losses, _ in found])


def _of_members(
    pullback: Pullback, loss: Loss, batch: Batch, size: int | None, members: slice, threads: int
) -> tuple[Tensor, list[Tensor]]:
    """Losses and gradients of some members."""
    x, y, share, weight = (part[members] for part in (batch.x, batch.y, batch.share, batch.weight))
    parts = list(micro_batches(share.shape[1], size))
    total: list[Tensor] = []

    def add(gradients: list[Tensor]) -> None:
        total[:] = [before + own for before, own in zip(total, gradients, strict=True)] if total else gradients

    if isinstance(loss, Additive):
        losses = torch.zeros_like(share[:, 0])

        def one(part: slice) -> tuple[Tensor, list[Tensor]]:
            with torch.no_grad():  # another thread does not know that of its caller
                own = share[:, part]
                output, pull = pullback(x[:, part], members, part)
                values, slopes = loss.rows_and_slopes(output, y[:, part])
                return (values * own).sum(1), pull(slopes * own.view(*own.shape, *(1,) * (slopes.ndim - 2)))

        with side_by_side(share.device, len(parts), threads) as run:
            for own, gradients in run(one, parts):  # in their order on any cores
                losses = losses + own
                add(gradients)
        return losses, total
    if len(parts) == 1:
        output, pull = pullback(x, members, parts[0])
    else:
        output, pull = torch.cat([pullback(x[:, part], members, part)[0] for part in parts], dim=1), None
    with torch.enable_grad():
        leaf = output.requires_grad_()
        losses = loss(leaf, y, weight, batch.panel)
        (slopes,) = torch.autograd.grad(losses.sum(), leaf)
    for part in parts:  # what a micro-batch remembers is not kept: run once more
        again = pull or pullback(x[:, part], members, part)[1]
        add(again(slopes[:, part]))
    return losses.detach(), total


def _spread(pullback: Pullback, threads: int) -> Pullback:
    """The same on so many threads."""

    def spread(x: Tensor, members: slice, part: slice) -> tuple[Tensor, Pull]:
        with all_threads(threads):
            output, pull = pullback(x, members, part)

        def pulled(slopes: Tensor) -> list[Tensor]:
            with all_threads(threads):
                return pull(slopes)

        return output, pulled

    return spread
