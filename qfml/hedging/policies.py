"""Policies: networks from what may be seen at each date to the holdings until the next.

A policy is a network of the training engine: features of whole paths (M, B, L, F) go in, the holdings of all dates come
out. At date l it is handed the features of that date (a recurrent one: up to that date) and its own holdings before,
and nothing else, so that it cannot look ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.config import OneOf
from qfml.errors import ConfigError
from qfml.hedging.holding import HOLDINGS, Direct, Holding
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
        sees_holdings: the holdings before are among its inputs. A rule that starts from them may do without, which lets
            all dates go through the network at once.
        per_date: one network for each date, in place of one for all that is told the time by a feature.
        feature_names: of the columns of the features; filled in by `train_policies`.
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
        maps = self._maps(parameters, date)
        for weight, bias in maps[:-1]:
            inputs = act(torch.baddbmm(bias[:, None], inputs, weight))
        weight, bias = maps[-1]
        raw = torch.baddbmm(bias[:, None], inputs, weight)
        return self.holding.of(raw, before, self._hedge(x))

    def pullback(
        self, parameters: Parameters, x: Features, dropout: Dropout | None = None
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Outputs as of `forward`, and what turns their slopes into gradients of the parameters."""
        each = [{name: value[member] for name, value in parameters.items()} for member in range(len(x))]
        walks = [_Walk(self, own, part) for own, part in zip(each, x, strict=True)]
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

    def _maps(self, parameters: Parameters, date: int) -> list[tuple[Tensor, Tensor]]:
        """Weight (..., I, O) and bias (..., O) of each map at a date."""
        own = date if self.per_date else 0
        names = [*(f"layer{layer}" for layer in range(len(self.hidden))), "head"]
        return [
            (parameters[f"{name}_weight"][..., own, :, :], parameters[f"{name}_bias"][..., own, :]) for name in names
        ]

    def _hedge(self, x: Tensor) -> Tensor | None:
        """The known hedge (..., K) among the features (..., F)."""
        if not self.holding.hedge:
            return None
        return torch.stack([x[..., self.feature_names.index(name)] for name in self.holding.hedge], -1)


def joined(holdings: Sequence[Tensor], level: Tensor) -> Tensor:
    """Holdings of the dates (..., B, K) and levels (..., 1 or nothing, J) as one output (..., B, (L - 1) K + J)."""
    return torch.cat([*holdings, level.expand(*holdings[0].shape[:-1], -1)], -1)


class _Room:
    """Memory of a walk, which the next one of the same shapes takes over: new memory costs as much as the products."""

    MOST = 8  # rooms that are kept
    free: ClassVar[list[_Room]] = []

    def __init__(self, like: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
        self.key = (shapes, like.dtype, like.device)
        self.tensors = [like.new_empty(shape) for shape in shapes]

    @classmethod
    def taken(cls, like: Tensor, shapes: tuple[tuple[int, ...], ...]) -> _Room:
        """A room of these shapes that nobody is in, or a new one."""
        with _door:
            for place, room in enumerate(cls.free):
                if room.key == (shapes, like.dtype, like.device):
                    return cls.free.pop(place)
        return cls(like, shapes)

    def leave(self) -> None:
        """Leave it to the next walk."""
        with _door:
            _Room.free.append(self)
            del _Room.free[: -self.MOST]


_door = Lock()


class _Walk:
    """One member's walk along the dates, with all that its gradient needs: no graph, few operations.

    Everything lies by date first, (T, B, .), so that each date's matrices lie in one piece. Members of a stack walk one
    after another: a product of one member on thousands of paths is as fast as any, and has its bits alone.
    """

    def __init__(self, policy: FeedForward, parameters: Parameters, x: Tensor) -> None:
        paths, n_dates, n_features = len(x), x.shape[1] - 1, x.shape[2]
        K = policy.n_instruments
        self.policy, self.relu = policy, policy.activation == "relu"
        self.maps = [policy._maps(parameters, date) for date in range(n_dates if policy.per_date else 1)]
        widths = (n_features + K * policy.sees_holdings, *policy.hidden, policy.holding.n_outputs(K))
        shapes = [(n_dates, paths, width) for width in widths] + [(paths, width) for width in policy.hidden]
        self.room = _Room.taken(x, tuple(shapes))
        self.after, self.raw = self.room.tensors[: len(policy.hidden) + 1], self.room.tensors[len(policy.hidden) + 1]
        self.slopes = self.room.tensors[len(widths) :]
        inputs = self.after[0]
        inputs[..., :n_features] = x[:, :-1].movedim(1, 0)
        self.features = inputs[..., :n_features]
        self.nothing = x.new_zeros(paths, K)
        self.now: list[Tensor] = []
        for date in range(n_dates):
            before = self.now[-1] if date else self.nothing
            if policy.sees_holdings:
                inputs[date, :, n_features:] = before
            self._layers(date)
            self.now.append(policy.holding.of(self.raw[date], before, policy._hedge(self.features[date])))

    def _layers(self, date: int) -> None:
        maps = self.maps[date if self.policy.per_date else 0]
        for layer, (weight, bias) in enumerate(maps):
            out = self.after[layer + 1][date] if layer + 1 < len(maps) else self.raw[date]
            torch.addmm(bias, self.after[layer][date], weight, out=out)
            if layer + 1 < len(maps):
                out.relu_() if self.relu else out.tanh_()

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Gradients of the parameters, in their order, from slopes of the outputs (B, (L - 1) K + J); once."""
        policy, K = self.policy, self.policy.n_instruments
        found = [[(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in maps] for maps in self.maps]
        carried = None
        for date in reversed(range(len(self.now))):
            own = date if policy.per_date else 0
            back = slope[:, date * K : (date + 1) * K]
            back = back if carried is None else back + carried
            before = self.now[date - 1] if date else self.nothing
            hedge = policy._hedge(self.features[date])
            back, carried = policy.holding.slopes(back, self.raw[date], before, hedge, self.now[date])
            seen = self._back(date, back, self.maps[own], found[own])
            if seen is not None:
                carried = seen if carried is None else carried + seen
        self.room.leave()
        gradients = [torch.stack(parts) for maps in zip(*found, strict=True) for parts in zip(*maps, strict=True)]
        return [*gradients, slope[:, len(self.now) * K :].sum(0)]

    def _back(
        self, date: int, back: Tensor, maps: list[tuple[Tensor, Tensor]], found: list[tuple[Tensor, Tensor]]
    ) -> Tensor | None:
        """Add the gradients of one date to `found`; the slopes of the holdings before, if the network sees them."""
        for layer in reversed(range(len(maps))):
            if layer + 1 < len(maps):
                after = self.after[layer + 1][date]
                if self.relu:
                    torch.ops.aten.threshold_backward.grad_input(back, after, 0, grad_input=back)
                else:
                    back.mul_(1 - after * after)
            weight, bias = found[layer]
            weight.addmm_(self.after[layer][date].t(), back)
            bias.add_(back.sum(0))
            if layer:
                back = torch.mm(back, maps[layer][0].t(), out=self.slopes[layer - 1])
        if not self.policy.sees_holdings or not date:
            return None
        return torch.mm(back, maps[0][0][-self.policy.n_instruments :].t())


POLICIES: dict[str, type] = {cls.kind: cls for cls in (FeedForward,)}
