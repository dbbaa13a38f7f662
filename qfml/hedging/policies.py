"""Policies: networks from what may be seen at each date to the holdings until the next.

A policy is a network of the training engine: features of whole paths (M, B, L, F) go in, the holdings of all dates come
out. At date l it is handed the features of that date and its own holdings before, and nothing else, so that it cannot
look ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.config import OneOf
from qfml.errors import ConfigError
from qfml.hedging.holding import HOLDINGS, Direct, Holding
from qfml.hedging.walk import Walk, joined
from qfml.networks.base import ACTIVATIONS, Dropout, Parameters, affine, check_hidden

__all__ = ["POLICIES", "FeedForward"]

Features = Float[Tensor, "member path time feature"]
_WRITTEN = ("relu", "tanh")  # their slopes are known from what they put out


@dataclass(frozen=True)
class FeedForward:
    """A perceptron of the features of a date and of the holdings before it, for each date anew.

    Args:
        hidden: widths of the hidden layers.
        activation: after each of them.
        holding: how its outputs become holdings.
        sees_holdings: the holdings before are among its inputs. A rule that starts from them may do without.
        per_date: one network for each date, in place of one for all that is told the time by a feature.
        feature_names: of the columns of the features; filled in by `deep_hedge`.
        n_instruments: hedging instruments K; likewise.

    References:
        Buehler, Gonon, Teichmann and Wood (2019), "Deep Hedging", section 4.

    Example:
        >>> policy = FeedForward(hidden=(4,), feature_names=("log_moneyness", "time_left"))
        >>> drawn = policy.init(2, 3, torch.Generator().manual_seed(0), n_outputs=3)
        >>> policy.forward({name: value[None] for name, value in drawn.items()}, torch.zeros(1, 5, 3, 2)).shape
        torch.Size([1, 5, 3])
    """

    kind: ClassVar[str] = "feed_forward"
    hidden: tuple[int, ...] = (32, 32, 32, 32)
    activation: str = "relu"
    holding: Annotated[Holding, OneOf(HOLDINGS)] = Direct()  # noqa: RUF009  (frozen)
    sees_holdings: bool = True
    per_date: bool = False
    feature_names: tuple[str, ...] = ()
    n_instruments: int = 1

    def __post_init__(self) -> None:
        check_hidden("hidden", self.hidden, self.activation, 0.0)
        if unknown := [name for name in self.holding.hedge if self.feature_names and name not in self.feature_names]:
            raise ConfigError(
                f"`hedge` of the holding names `{unknown[0]}`, and the features are {', '.join(self.feature_names)}: "
                "add it to what the policy may see"
            )
        if self.holding.hedge and len(self.holding.hedge) != self.n_instruments:
            raise ConfigError(
                f"`hedge` must name a feature for each of {self.n_instruments} instrument(s), got "
                f"{', '.join(self.holding.hedge)}"
            )

    @property
    def rule(self) -> Holding:
        """What makes holdings of its outputs."""
        return self.holding

    @property
    def dropout_units(self) -> int:
        """None."""
        return 0

    @property
    def writes_gradient(self) -> bool:
        """Whether the gradient is written out."""
        return self.activation in _WRITTEN

    def init(
        self, n_features: int, window: int | None, generator: torch.Generator, n_outputs: int = 1
    ) -> dict[str, Tensor]:
        """Parameters of one member: each map's with a leading axis of networks, one, or one for each date."""
        assert window is not None
        copies = window - 1 if self.per_date else 1
        n_levels = n_outputs - (window - 1) * self.n_instruments
        widths = [n_features + self.n_instruments * self.sees_holdings, *self.hidden]
        widths.append(self.holding.n_outputs(self.n_instruments))
        drawn: dict[str, Tensor] = {}
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            name = f"layer{layer}" if layer < len(self.hidden) else "head"
            maps = [affine(name, inputs, outputs, generator) for _ in range(copies)]
            drawn |= {key: torch.stack([one[key] for one in maps]) for key in maps[0]}
        return drawn | {"level": torch.zeros(n_levels)}

    def forward(self, parameters: Parameters, x: Features, dropout: Dropout | None = None) -> Tensor:
        """Holdings of all dates and J levels of the objective, (M, B, (L - 1) K + J); differentiable."""
        return joined(self._walk(parameters, x), parameters["level"][:, None])

    def holdings(self, parameters: Parameters, x: Features) -> Tensor:
        """The same holdings, (M, B, L - 1, K)."""
        return torch.stack(self._walk(parameters, x), 2)

    def step(self, parameters: Parameters, x: Tensor, before: Tensor, date: int) -> Tensor:
        """Holdings (M, B, K) from date number `date` on, of the features (M, B, F) of that date."""
        inputs = torch.cat([x, before], -1) if self.sees_holdings else x
        act = ACTIVATIONS[self.activation]
        maps = self.maps(parameters, date)
        for weight, bias in maps[:-1]:
            inputs = act(torch.baddbmm(bias[:, None], inputs, weight))
        weight, bias = maps[-1]
        raw = torch.baddbmm(bias[:, None], inputs, weight)
        return self.rule.of(raw, before, self.hedge(x))

    def pullback(
        self, parameters: Parameters, x: Features, dropout: Dropout | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Outputs as of `forward`, and what turns their slopes into gradients of the parameters."""
        each = [{name: value[member] for name, value in parameters.items()} for member in range(len(x))]
        walks = [Walk(self, own, part) for own, part in zip(each, x, strict=True)]
        outputs = [joined(walk.now, own["level"]) for walk, own in zip(walks, each, strict=True)]

        def pull(slope: Tensor) -> list[Tensor]:
            gradients = [walk.pull(part) for walk, part in zip(walks, slope, strict=True)]
            return [torch.stack(parts) for parts in zip(*gradients, strict=True)]

        return torch.stack(outputs), pull

    def _walk(self, parameters: Parameters, x: Features) -> list[Tensor]:
        before = x.new_zeros(*x.shape[:2], self.n_instruments)
        found = []
        for date in range(x.shape[2] - 1):
            before = self.step(parameters, x[:, :, date], before, date)
            found.append(before)
        return found

    def maps(self, parameters: Parameters, date: int) -> list[tuple[Tensor, Tensor]]:
        """Weight (..., I, O) and bias (..., O) of each map at a date."""
        own = date if self.per_date else 0
        names = [*(f"layer{layer}" for layer in range(len(self.hidden))), "head"]
        return [
            (parameters[f"{name}_weight"][..., own, :, :], parameters[f"{name}_bias"][..., own, :]) for name in names
        ]

    def hedge(self, x: Tensor) -> Tensor | None:
        """The known hedge (..., K) among the features (..., F)."""
        if not self.holding.hedge:
            return None
        return torch.stack([x[..., self.feature_names.index(name)] for name in self.holding.hedge], -1)


POLICIES: dict[str, type] = {cls.kind: cls for cls in (FeedForward,)}
