"""Twin losses in the engine: outputs with their derivatives in the features, the labels of both, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qfml.data.dataset import TimeDataset
from qfml.engine.member import Member
from qfml.errors import UserError
from qfml.losses import Loss, Twin

Forward = Callable[[Tensor, slice], Tensor]  # features (M, b, ...) and their place in the batch to outputs (M, b)


def with_slopes(forward: Forward) -> Forward:
    """Outputs (M, b) and behind them their derivatives in the features, (M, b, 1 + n), differentiable once more.

    A row's output depends on that row alone, so the gradient of the sum of all outputs holds each row's own.
    """

    def both(x: Tensor, part: slice) -> Tensor:
        x = x.detach().requires_grad_()
        output = forward(x, part)
        (slopes,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        # times one: the gradient of the slopes then is a tensor of its own and not a part of that of the joined one,
        # in which a member's matrix may begin anywhere, and would be rounded differently in a stack
        return torch.cat([output[..., None], 1.0 * slopes.flatten(2)], dim=-1)

    return both


def outputs_of(loss: Loss, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What the loss is a function of, without a graph: the outputs, with their derivatives for a twin loss."""
    if not loss.differential:
        return forward(x)
    with torch.enable_grad():
        return with_slopes(lambda x, _: forward(x))(x, slice(None)).detach()


def labels_of(loss: Loss, ds: TimeDataset) -> Tensor:
    """The labels (N,) of a loss; or (N, 1 + n) with their derivatives, (N, 1 + 2 n) with the weights of these."""
    if not loss.differential or ds.label_gradient is None:
        return ds.y
    slopes = (ds.label_gradient, ds.label_gradient_weight)
    return torch.cat([ds.y[:, None], *(part.flatten(1) for part in slopes if part is not None)], dim=1)


def check_differential(loss: Loss, member: Member, place: int, ds: object, precision: str, compiled: bool) -> None:
    """Raise ValueError for what a twin loss cannot learn from."""
    if not isinstance(loss, Twin):
        return
    if not isinstance(ds, TimeDataset) or ds.label_gradient is None:
        raise UserError(
            f"`{loss.kind}` learns from derivatives: give the `TimeDataset` a `label_gradient`, or take mse"
        )
    if len(loss.gradient_scale) != ds.label_gradient[0].numel():
        raise UserError(
            f"`gradient_scale` must hold {ds.label_gradient[0].numel()} numbers, one a feature, got "
            f"{len(loss.gradient_scale)}: take `Twin.of(ds, train)`"
        )
    if member.transforms is not None:
        raise UserError(
            f"member {place} has `transforms`, after which the derivatives in the features are others: scale the "
            "features and, inversely, `label_gradient` before they become a TimeDataset"
        )
    if has_kinks(member, ds.n_features):
        raise UserError(
            f"the network {member.network.kind} of member {place} has kinks (relu), whose derivatives jump: for "
            f"`{loss.kind}` choose a smooth activation, such as silu, gelu, tanh or softplus"
        )
    if precision not in ("fp32", "tf32"):
        raise UserError(f"`precision` must be fp32 or tf32 with the loss {loss.kind}, got {precision!r}")
    if compiled:
        raise UserError(f"`compile` must be None with the loss {loss.kind}: what is compiled has no second derivative")


def has_kinks(member: Member, n_features: int) -> bool:
    """Whether a network has relu units; free features of a convex network act through relu gates."""
    network = member.network
    convex = getattr(network, "convex", None)
    gated = convex is not None and len(convex) < n_features
    return getattr(network, "activation", None) == "relu" or gated
