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
    """Memory of a walk, which the next one of the same shapes takes over: new memory costs as much as the products.

    Each date has its views of it, made once: thousands of them would cost more than the element-wise work.
    """

    MOST = 8  # rooms that are kept
    free: ClassVar[list[_Room]] = []

    def __init__(self, like: Tensor, dates: int, paths: int, widths: tuple[int, ...], n_features: int) -> None:
        self.key = (dates, paths, widths, n_features, like.dtype, like.device)
        by_date = [like.new_empty(dates, paths, width) for width in widths]
        self.after = [part.unbind(0) for part in by_date[:-1]]  # inputs, then what each hidden layer puts out
        self.transposed = [[one.t() for one in part] for part in self.after]
        self.features = by_date[0][..., :n_features].unbind(0)
        self.before = by_date[0][..., n_features:].unbind(0)
        self.raw = by_date[-1].unbind(0)
        self.slopes = [like.new_empty(paths, width) for width in widths[1:-1]]
        self.ones = like.new_ones(paths)

    @classmethod
    def taken(cls, like: Tensor, dates: int, paths: int, widths: tuple[int, ...], n_features: int) -> _Room:
        """A room of these shapes that nobody is in, or a new one."""
        key = (dates, paths, widths, n_features, like.dtype, like.device)
        with _door:
            for place, room in enumerate(cls.free):
                if room.key == key:
                    return cls.free.pop(place)
        return cls(like, dates, paths, widths, n_features)

    def leave(self) -> None:
        """Leave it to the next walk."""
        with _door:
            _Room.free.append(self)
            del _Room.free[: -self.MOST]


_door = Lock()


class Walk:
    """One member's walk along the dates, with all that its gradient needs: no graph, few operations.

    Each date's matrices lie in one piece. Members of a stack walk one after another: a product of one member on
    thousands of paths is as fast as any, and has its bits alone.
    """

    def __init__(self, policy: FeedForward, parameters: Parameters, x: Tensor) -> None:
        paths, n_dates, n_features = len(x), x.shape[1] - 1, x.shape[2]
        K = policy.n_instruments
        self.policy, self.relu = policy, policy.activation == "relu"
        self.maps = [policy.maps(parameters, date) for date in range(n_dates if policy.per_date else 1)]
        widths = (n_features + K * policy.sees_holdings, *policy.hidden, policy.holding.n_outputs(K))
        self.room = _Room.taken(x, n_dates, paths, widths, n_features)
        self.x = x[:, :-1].unbind(1)
        self.nothing = x.new_zeros(paths, K)
        self.now: list[Tensor] = []
        for date in range(n_dates):
            before = self.now[-1] if date else self.nothing
            self._layers(date, before)
            self.now.append(policy.rule.of(self.room.raw[date], before, policy.hedge(self.room.features[date])))

    def _layers(self, date: int, before: Tensor) -> None:
        room, maps = self.room, self.maps[date if self.policy.per_date else 0]
        room.features[date].copy_(self.x[date])
        if self.policy.sees_holdings:
            room.before[date].copy_(before)
        for layer, (weight, bias) in enumerate(maps):
            if layer + 1 == len(maps):
                torch.addmm(bias, room.after[layer][date], weight, out=room.raw[date])
                return
            out = torch.addmm(bias, room.after[layer][date], weight, out=room.after[layer + 1][date])
            out.relu_() if self.relu else out.tanh_()

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Gradients of the parameters, in their order, from slopes of the outputs (B, (L - 1) K + J); once."""
        policy, K, n_dates = self.policy, self.policy.n_instruments, len(self.now)
        found = [[(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in maps] for maps in self.maps]
        by_date = slope[:, : n_dates * K].reshape(len(slope), n_dates, K).transpose(0, 1).contiguous().unbind(0)
        carried = None
        turned = [[weight.t() for weight, _ in maps] for maps in self.maps]
        for date in reversed(range(n_dates)):
            own = date if policy.per_date else 0
            back = by_date[date] if carried is None else by_date[date].add_(carried)
            before = self.now[date - 1] if date else self.nothing
            hedge = policy.hedge(self.room.features[date])
            back, carried = policy.rule.slopes(back, self.room.raw[date], before, hedge, self.now[date])
            seen = self._back(date, back, turned[own], found[own])
            if policy.truncate and date % policy.truncate == 0:  # what was held before is taken as given
                carried = None
            elif seen is not None:
                carried = seen if carried is None else carried + seen
        self.room.leave()
        gradients = [torch.stack(parts) for maps in zip(*found, strict=True) for parts in zip(*maps, strict=True)]
        return [*gradients, slope[:, n_dates * K :].sum(0)]

    def _back(self, date: int, back: Tensor, turned: list[Tensor], found: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Add the gradients of one date to `found`; the slopes of the holdings before, if the network sees them."""
        room = self.room
        for layer in reversed(range(len(turned))):
            if layer + 1 < len(turned):
                after = room.after[layer + 1][date]
                if self.relu:
                    torch.ops.aten.threshold_backward.grad_input(back, after, 0, grad_input=back)
                else:
                    back.mul_(1 - after * after)
            weight, bias = found[layer]
            weight.addmm_(room.transposed[layer][date], back)
            bias.addmv_(back.t(), room.ones)
            if layer:
                back = torch.mm(back, turned[layer], out=room.slopes[layer - 1])
        if not self.policy.sees_holdings or not date:
            return None
        return torch.mm(back, turned[0][:, -self.policy.n_instruments :])
