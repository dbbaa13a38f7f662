"""A feed-forward policy's walk along the dates, forth and back, with its gradient written out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
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


PIECE = 512  # paths at most whose products are one sum: pieces are added up in an order that no thread changes


class _Room:
    """Memory of a walk, which the next one of the same shapes takes over: new memory costs as much as the products.

    The paths lie in pieces of equal length, with rows of zeros behind the last one. Each date has its views, made once:
    thousands of them would cost more than the element-wise work.
    """

    MOST = 8  # rooms that are kept
    free: ClassVar[list[_Room]] = []

    def __init__(self, like: Tensor, dates: int, paths: int, widths: tuple[int, ...], n_features: int) -> None:
        self.key = (dates, paths, widths, n_features, like.dtype, like.device)
        n_pieces = -(-paths // PIECE)
        size = -(-paths // (16 * n_pieces)) * 16
        by_date = [like.new_zeros(dates, n_pieces * size, width) for width in widths]
        self.after = [part.unbind(0) for part in by_date[:-1]]  # inputs, then what each hidden layer puts out
        self.features = by_date[0][:, :paths, :n_features]
        self.before = by_date[0][:, :paths, n_features:].unbind(0)
        self.all_raw = by_date[-1].unbind(0)
        self.raw = by_date[-1][:, :paths].unbind(0)
        self.slopes = [like.new_zeros(n_pieces * size, width) for width in widths[1:]]
        self.raw_slope = self.slopes[-1][:paths]
        turned = [outputs < inputs for inputs, outputs in pairwise(widths)]
        pieces = [part.view(dates, n_pieces, size, -1) for part in by_date[:-1]]
        pairs = list(zip(pieces, turned, strict=True))
        self.given = [(given if turn else given.transpose(2, 3)).unbind(0) for given, turn in pairs]
        self.back = [(one.view(n_pieces, size, -1), turn) for one, turn in zip(self.slopes, turned, strict=True)]

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

    Each date's matrices lie in one piece, and all threads work on one product at a time: two walks side by side would
    wait for one another's Python. Members of a stack walk one after another: a product of one member on thousands of
    paths is as fast as any, and has its bits alone.
    """

    def __init__(self, policy: FeedForward, parameters: Parameters, x: Tensor) -> None:
        paths, n_dates, n_features = len(x), x.shape[1] - 1, x.shape[2]
        K = policy.n_instruments
        self.policy, self.rule, self.relu = policy, policy.rule, policy.activation == "relu"
        self.maps = [policy.maps(parameters, date) for date in range(n_dates if policy.per_date else 1)]
        widths = (n_features + K * policy.sees_holdings, *policy.hidden, policy.holding.n_outputs(K))
        self.room = _Room.taken(x, n_dates, paths, widths, n_features)
        self.room.features.copy_(x[:, :-1].transpose(0, 1))
        self.nothing = x.new_zeros(paths, K)
        self.now: list[Tensor] = []
        for date in range(n_dates):
            before = self.now[-1] if date else self.nothing
            self._layers(date, before)
            self.now.append(self.rule.of(self.room.raw[date], before, policy.hedge(self.room.features[date])))

    def _layers(self, date: int, before: Tensor) -> None:
        room, maps = self.room, self.maps[date if self.policy.per_date else 0]
        if self.policy.sees_holdings:
            torch.div(before, self.policy.unit, out=room.before[date])
        for layer, (weight, bias) in enumerate(maps):
            if layer + 1 == len(maps):
                torch.addmm(bias, room.after[layer][date], weight, out=room.all_raw[date])
                return
            out = torch.addmm(bias, room.after[layer][date], weight, out=room.after[layer + 1][date])
            out.relu_() if self.relu else out.tanh_()

    def pull(self, slope: Tensor) -> list[Tensor]:
        """Gradients of the parameters, in their order, from slopes of the outputs (B, (L - 1) K + J); once."""
        policy, K, n_dates = self.policy, self.policy.n_instruments, len(self.now)
        by_date = slope[:, : n_dates * K].reshape(len(slope), n_dates, K).transpose(0, 1).contiguous().unbind(0)
        turned = [[weight.t() for weight, _ in maps] for maps in self.maps]
        found: list[list[tuple[Tensor, Tensor]]] = []
        sums = carried = None
        for date in reversed(range(n_dates)):
            own = date if policy.per_date else 0
            back = by_date[date] if carried is None else by_date[date].add_(carried)
            before = self.now[date - 1] if date else self.nothing
            hedge = policy.hedge(self.room.features[date])
            back, carried = self.rule.slopes(back, self.room.raw[date], before, hedge, self.now[date])
            self.room.raw_slope.copy_(back)
            sums = [_Sums(*pieces) for pieces in self.room.back] if sums is None else sums
            seen = self._back(date, turned[own], sums)
            if policy.per_date or not date:
                found.insert(0, [each.total() for each in sums])
                sums = None
            if policy.truncate and date % policy.truncate == 0:  # what was held before is taken as given
                carried = None
            elif seen is not None:
                carried = seen if carried is None else carried + seen
        self.room.leave()
        gradients = [torch.stack(parts) for maps in zip(*found, strict=True) for parts in zip(*maps, strict=True)]
        return [*gradients, slope[:, n_dates * K :].sum(0)]

    def _back(self, date: int, turned: list[Tensor], sums: list[_Sums]) -> Tensor | None:
        """Add the gradients of one date to `sums`; the slopes of the holdings before, if the network sees them."""
        room, policy = self.room, self.policy
        for layer in reversed(range(len(turned))):
            back = room.slopes[layer]
            if layer + 1 < len(turned):
                torch.mm(room.slopes[layer + 1], turned[layer + 1], out=back)
                after = room.after[layer + 1][date]
                if self.relu:
                    torch.ops.aten.threshold_backward.grad_input(back, after, 0, grad_input=back)
                else:
                    back.mul_(1 - after * after)
            sums[layer].add(room.given[layer][date])
        if not policy.sees_holdings or not date:
            return None
        return torch.mm(room.slopes[0][: len(self.nothing)], turned[0][:, -policy.n_instruments :]).div_(policy.unit)


class _Sums:
    """Gradients of one map, weight (I, O) and bias (O,), summed over dates for each piece of the paths.

    The narrower side of the map makes the rows of the products: the other way round they take up to ten times as long.

    Args:
        slopes: of what the map puts out, (n, b, O), which change from date to date.
        turned: whether O is below I.
    """

    def __init__(self, slopes: Tensor, turned: bool) -> None:
        self.slopes, self.turned = slopes, turned
        self.weights: Tensor | None = None
        self.biases: Tensor | None = None

    def add(self, given: Tensor) -> None:
        """One date: what the map was given, (n, I, b), or (n, b, I) if `turned`."""
        pair = (self.slopes.transpose(1, 2), given) if self.turned else (given, self.slopes)
        if self.weights is None or self.biases is None:
            self.weights, self.biases = torch.bmm(*pair), self.slopes.sum(1)
        else:
            self.weights.baddbmm_(*pair)
            self.biases.add_(self.slopes.sum(1))

    def total(self) -> tuple[Tensor, Tensor]:
        """Of all pieces, in their order."""
        assert self.weights is not None
        assert self.biases is not None
        weight = self.weights.sum(0)
        return weight.t() if self.turned else weight, self.biases.sum(0)
