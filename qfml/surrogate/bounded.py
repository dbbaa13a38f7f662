"""A network whose output passes through an increasing function and so keeps bounds, whatever the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from qfml.config import OneOf
from qfml.errors import UserError
from qfml.networks.base import Dropout, Network, Parameters, WrittenGradient, sigmoid, writes_gradient
from qfml.networks.convex import ConvexMLP
from qfml.networks.dense import Pull
from qfml.networks.mlp import MLP
from qfml.networks.monotone import MonotoneMLP
from qfml.networks.residual_mlp import ResidualMLP

INNER: dict[str, type] = {cls.kind: cls for cls in (MLP, ResidualMLP, MonotoneMLP, ConvexMLP)}


@dataclass(frozen=True)
class Bounded:
    r"""What another network puts out, through a function whose range is the allowed one.

    A loss of the bounded output is one of the label itself, so that a noisy label stays unbiased: bounds that are kept
    by transforming the labels, as in $\log y$, would learn the mean of the logarithm. Both functions rise and are
    convex, so that a monotone network stays monotone and a convex one convex.

    Args:
        inner: the network inside, without dropout.
        output: "softplus" (above 0, linear far from it) or "exp" (above 0).

    Example:
        >>> network = Bounded(MLP(hidden=(8,)), output="softplus")
        >>> drawn = network.init(3, None, torch.Generator().manual_seed(0))
        >>> parameters = {name: 100 * value[None] for name, value in drawn.items()}
        >>> y = network.forward(parameters, torch.linspace(-9, 9, 12).view(1, 4, 3))
        >>> bool((y >= 0).all())
        True
    """

    kind: ClassVar[str] = "bounded"
    inner: Annotated[Network, OneOf(INNER)]
    output: str = "softplus"

    def __post_init__(self) -> None:
        if type(self.inner) not in INNER.values():
            raise UserError(f"`inner` must be one of {', '.join(INNER)}, got {self.inner!r}")
        if self.inner.dropout_units:
            raise UserError(
                f"`dropout` of a bounded network's `inner` must be 0, got {self.inner.dropout}: the mean of what is "  # pyright: ignore[reportAttributeAccessIssue]
                "bounded is not what bounds the mean"
            )
        if self.output not in OUTPUTS:
            raise UserError(f"`output` must be one of {', '.join(OUTPUTS)}, got {self.output!r}")

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of the network inside."""
        return self.inner.init(n_features, window, generator, n_outputs)

    def forward(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Bounded outputs (M, B), or (M, B, K) of several."""
        return OUTPUTS[self.output][0](self.inner.forward(parameters, x, dropout))

    @property
    def writes_gradient(self) -> bool:
        """As the network inside."""
        return writes_gradient(self.inner)

    def pullback(self, parameters: Parameters, x: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Pull]:
        """Outputs, and what turns their slopes into gradients."""
        assert isinstance(self.inner, WrittenGradient)
        raw, pull = self.inner.pullback(parameters, x, dropout)
        function, slope_of = OUTPUTS[self.output]
        return function(raw), lambda slope: pull(slope * slope_of(raw))

    @property
    def activation(self) -> str:
        """That of the network inside."""
        return self.inner.activation  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def dropout_units(self) -> int:
        """None."""
        return 0


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); torch's own softplus rounds the last few elements of a buffer differently."""
    return -torch.nn.functional.logsigmoid(-x)


Function = Callable[[Tensor], Tensor]
OUTPUTS: dict[str, tuple[Function, Function]] = {  # the function and its derivative
    "softplus": (softplus, sigmoid),
    "exp": (torch.exp, torch.exp),
}
