"""`POLICIES`: feed-forward, recurrent, and a transformer over the history; the feed-forward one is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from qfml.hedging.attention import Attention
from qfml.hedging.policy_base import Features, Policy, State
from qfml.hedging.recurrent import Recurrent
from qfml.hedging.walk import Walk, joined
from qfml.networks.base import ACTIVATIONS, Dropout, Parameters, affine, check_hidden, linear

__all__ = ["POLICIES", "FeedForward"]

_WRITTEN = ("relu", "tanh")  # their slopes are known from what they put out


@dataclass(frozen=True, kw_only=True)
class FeedForward(Policy):
    """A perceptron of the features of a date and of the holdings before it, for each date anew.

    Args:
        hidden: widths of the hidden layers.
        activation: after each of them.
        per_date: one network for each date, in place of one for all that is told the time by a feature.
        holding, sees_holdings, truncate, checkpoint, rules, feature_names, n_instruments: as of `Policy`.

    References:
        Buehler, Gonon, Teichmann and Wood (2019), "Deep Hedging", section 4.

    Example:
        >>> policy = FeedForward(hidden=(4,), feature_names=("log_moneyness", "time_left"))
        >>> drawn = policy.init(2, 3, torch.Generator().manual_seed(0), n_outputs=3)
        >>> policy.forward({name: value[None] for name, value in drawn.items()}, torch.zeros(1, 5, 3, 2)).shape
        torch.Size([1, 5, 3])
    """

    kind: ClassVar[str] = "feed_forward"
    any_threads: ClassVar[bool] = True
    hidden: tuple[int, ...] = (32, 32, 32, 32)
    activation: str = "relu"
    per_date: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_hidden("hidden", self.hidden, self.activation, 0.0)

    @property
    def writes_gradient(self) -> bool:
        """Whether the gradient is written out."""
        return self.activation in _WRITTEN and not self.checkpoint

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: each map's with a leading axis of networks, one, or one for each date."""
        assert window is not None
        copies = window - 1 if self.per_date else 1
        widths = [self.n_inputs(n_features), *self.hidden, self.holding.n_outputs(self.n_instruments)]
        drawn: dict[str, Tensor] = {}
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            name = f"layer{layer}" if layer < len(self.hidden) else "head"
            maps = [affine(name, inputs, outputs, generator) for _ in range(copies)]
            drawn |= {key: torch.stack([one[key] for one in maps]) for key in maps[0]}
        return drawn | {"level": torch.zeros(self.n_levels(window, n_outputs))}

    def forward(self, parameters: Parameters, x: Features, dropout: Dropout | None = None) -> Tensor:
        """See `Policy.forward`; the engine takes `pullback` for the gradient of a class's own `forward` alone."""
        return super().forward(parameters, x, dropout)

    def step(
        self, parameters: Parameters, x: Tensor, before: Tensor, date: int, state: State = ()
    ) -> tuple[Tensor, State]:
        """See `Policy.step`; it remembers nothing."""
        hidden = self.inputs(x, before)
        act = ACTIVATIONS[self.activation]
        *maps, last = self.maps(parameters, date)
        for weight, bias in maps:
            hidden = act(linear(hidden, weight, bias))
        return self.rule.of(self.raw(hidden, *last), before, self.hedge(x)), ()

    def pullback(
        self, parameters: Parameters, x: Features, dropout: Dropout | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Outputs as of `forward`, and what turns their slopes into gradients of the parameters."""
        assert self.writes_gradient
        each = [{name: value[member] for name, value in parameters.items()} for member in range(len(x))]
        walks = [Walk(self, own, part) for own, part in zip(each, x, strict=True)]
        outputs = [joined(walk.now, own["level"]) for walk, own in zip(walks, each, strict=True)]

        def pull(slope: Tensor) -> list[Tensor]:
            gradients = [walk.pull(part) for walk, part in zip(walks, slope, strict=True)]
            return [torch.stack(parts) for parts in zip(*gradients, strict=True)]

        return torch.stack(outputs), pull

    def maps(self, parameters: Parameters, date: int) -> list[tuple[Tensor, Tensor]]:
        """Weight (..., I, O) and bias (..., O) of each map at a date."""
        own = date if self.per_date else 0
        names = [*(f"layer{layer}" for layer in range(len(self.hidden))), "head"]
        return [
            (parameters[f"{name}_weight"][..., own, :, :], parameters[f"{name}_bias"][..., own, :]) for name in names
        ]


POLICIES: dict[str, type[Policy]] = {cls.kind: cls for cls in (FeedForward, Recurrent, Attention)}
