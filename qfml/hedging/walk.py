"""A feed-forward policy's walk along the dates, forth and back, with its gradient written out."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from qfml.networks.base import Parameters

if TYPE_CHECKING:
    from qfml.hedging.policies import FeedForward

__all__ = ["Walk", "joined"]


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


class Walk:
    """One member's walk along the dates, with all that its gradient needs: no graph, few operations.

    Everything lies by date first, (T, B, .), so that each date's matrices lie in one piece. Members of a stack walk one
    after another: a product of one member on thousands of paths is as fast as any, and has its bits alone.
    """

    def __init__(self, policy: FeedForward, parameters: Parameters, x: Tensor) -> None:
        paths, n_dates, n_features = len(x), x.shape[1] - 1, x.shape[2]
        K = policy.n_instruments
        self.policy, self.relu = policy, policy.activation == "relu"
        self.maps = [policy.maps(parameters, date) for date in range(n_dates if policy.per_date else 1)]
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
            self.now.append(policy.rule.of(self.raw[date], before, policy.hedge(self.features[date])))

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
            hedge = policy.hedge(self.features[date])
            back, carried = policy.rule.slopes(back, self.raw[date], before, hedge, self.now[date])
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
