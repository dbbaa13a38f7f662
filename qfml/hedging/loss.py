"""The objective of a policy as a loss of the training engine: holdings in, the risk of the P&L after costs out.

What the loss must know of a path travels with it as its "labels" (M, B, C): the prices of all dates, the liability, and
four numbers of the member, so that one stack may hold several risk aversions and levels of cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from qfml.hedging.costs import Cost, total_cost
from qfml.hedging.gains import trades
from qfml.hedging.objective_base import CertaintyEquivalent, Objective
from qfml.hedging.paths import PathSet
from qfml.losses import Additive, Panel

__all__ = ["Labels", "Risk", "RiskRows", "labels_of", "loss_of"]


class Labels(NamedTuple):
    """What a loss is told of paths (M, B, ...), and of their members (M, B)."""

    prices: Tensor  # (M, B, L, K)
    liability: Tensor  # (M, B)
    aversion: Tensor
    cost_level: Tensor
    centre: Tensor  # of the level of an additive objective
    scale: Tensor


N_NUMBERS = 4  # of a member


def labels_of(paths: PathSet, numbers: Tensor) -> Tensor:
    """Labels (M, B, C) of paths that members share.

    Args:
        paths: B paths.
        numbers: of the members, shape `(M, 4)`: risk aversion, cost level, centre and scale of the level.
    """
    shared = torch.cat([paths.prices.flatten(1), paths.liability[:, None]], 1)
    own = numbers.to(shared)[:, None].expand(-1, len(paths), -1)
    return torch.cat([shared.expand(len(numbers), -1, -1), own], -1)


def unpacked(y: Tensor, n_instruments: int) -> Labels:
    """Labels (M, B, C) by name."""
    prices = y[..., : -(N_NUMBERS + 1)].unflatten(-1, (-1, n_instruments))
    return Labels(prices, *y[..., -(N_NUMBERS + 1) :].unbind(-1))


@dataclass(frozen=True)
class _Hedged:
    """What both losses share.

    Args:
        objective: one of `OBJECTIVES`.
        costs: one or several of `COSTS`, added up.
        unwind: whether the holdings are sold at the horizon, at a cost.
        n_steps: periods of trading.
        n_instruments: hedging instruments.
        martingale: whether prices are martingales, so that trading earns nothing on average. The gradient is then freed
            of most of its noise, see `centred`.
    """

    differential: ClassVar[bool] = False
    predicts: ClassVar[str] = "position"
    objective: Objective
    costs: tuple[Cost, ...]
    unwind: bool
    n_steps: int
    n_instruments: int
    martingale: bool = False

    @property
    def n_outputs(self) -> int:
        """The holdings of all dates, and the levels."""
        return self.n_holdings + (self.objective.n_levels if isinstance(self.objective, CertaintyEquivalent) else 0)

    @property
    def n_holdings(self) -> int:
        """Holdings of a path."""
        return self.n_steps * self.n_instruments

    def dial(self, labels: Labels) -> Tensor | None:
        """The risk aversion of each member, (M,), or None where the objective has none."""
        return None if self.objective.dial is None else labels.aversion[:, 0]

    def pnl(self, output: Tensor, labels: Labels, smooth: bool = True) -> Tensor:
        """P&L (M, B) after costs, the liability paid; costs without a derivative are `smooth` in training."""
        return self.pnl_and_trading(output, labels, smooth)[0]

    def pnl_and_trading(self, output: Tensor, labels: Labels, smooth: bool = True) -> tuple[Tensor, Tensor]:
        """P&L (M, B), and what trading earned of it before costs."""
        holdings = output[..., : self.n_holdings].unflatten(-1, (-1, self.n_instruments))
        prices = labels.prices
        trading = (holdings * prices.diff(dim=2)).sum((-2, -1))
        at = prices if self.unwind else prices[:, :, :-1]
        cost = total_cost(self.costs, trades(holdings, self.unwind), at, smooth).sum(-1)
        return trading - labels.cost_level * cost - labels.liability, trading

    def prediction(self, output: Tensor) -> Tensor:
        """The holdings."""
        return output[..., : self.n_holdings]

    def check_labels(self, y: Tensor) -> None:
        """Paths have been checked where they were made."""


@dataclass(frozen=True)
class RiskRows(_Hedged, Additive):
    """An objective that is an optimized certainty equivalent: a mean over paths, with a level that is learned too.

    References:
        Ben-Tal and Teboulle (2007), "An old-new concept of convex risk measures: the optimized certainty equivalent".
    """

    kind: ClassVar[str] = "risk_rows"

    def rows(self, output: Tensor, y: Tensor) -> Tensor:
        """What each path contributes, (M, B)."""
        labels = unpacked(y, self.n_instruments)
        assert isinstance(self.objective, CertaintyEquivalent)
        # the level is the same on every path, and so is its share of the mean: the first one carries its slope
        level = labels.centre[:, :1] + labels.scale[:, :1] * output[:, 0, self.n_holdings :]
        pnl, trading = self.pnl_and_trading(output, labels)
        rows = partial(self.objective.rows, level=level, aversion=self.dial(labels))
        return centred(rows, pnl, trading) if self.martingale else rows(pnl)

    def rows_and_slopes(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """`rows` and their slopes in the output, of one graph."""
        with torch.enable_grad():
            leaf = output.detach().requires_grad_()
            values = self.rows(leaf, y)
            (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes


@dataclass(frozen=True)
class Risk(_Hedged):
    """The risk of the paths of a batch as a whole, in its exact form for a sample."""

    kind: ClassVar[str] = "risk"
    additive: ClassVar[bool] = False

    def __call__(self, output: Tensor, y: Tensor, weight: Tensor, panel: Panel | None = None) -> Tensor:
        """The risk of each member, (M,)."""
        labels = unpacked(y, self.n_instruments)
        pnl, trading = self.pnl_and_trading(output, labels)
        value = partial(self.objective.value, dial=self.objective.dials(pnl, self.dial(labels)))
        return (centred(value, pnl, trading) if self.martingale else value(pnl)).to(output.dtype)


def centred(risk: Callable[[Tensor], Tensor], pnl: Tensor, trading: Tensor) -> Tensor:
    r"""The risk of P&L (M, B), with a gradient in the holdings that has less noise; its value is the same.

    A path's share of the gradient is its weight :math:`w_i = -\partial risk / \partial X_i` times its price changes. As
    those are martingale differences, the mean weight :math:`\bar w` times them is 0 on average, and is taken away: what
    is left of n independent paths has the mean :math:`(1 - 1/n)` of the gradient, and the noise of
    :math:`w_i - \bar w` in place of :math:`w_i`.

    Args:
        risk: rows (M, B) or one number (M,) of P&L (M, B), each a function of its own member alone.
        pnl: after costs.
        trading: what trading earned of it before costs, (M, B).
    """
    with torch.enable_grad():
        leaf = pnl.detach().requires_grad_()
        (slope,) = torch.autograd.grad(risk(leaf).sum(), leaf)
    earned = slope.mean(1, keepdim=True) * (trading - trading.detach())
    value = risk(pnl)
    return value - (earned if value.ndim == 2 else earned.sum(1))


def loss_of(
    objective: Objective,
    costs: Sequence[Cost],
    paths: PathSet,
    *,
    unwind: bool = False,
    exact: bool = False,
    martingale: bool = False,
) -> RiskRows | Risk:
    """The loss of policies on paths such as these: additive where the objective is, unless asked to be `exact`."""
    kind = RiskRows if isinstance(objective, CertaintyEquivalent) and not exact else Risk
    return kind(objective, tuple(costs), unwind, paths.n_steps, paths.n_instruments, martingale)
