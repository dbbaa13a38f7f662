"""Profit and loss of a hedge: what holding the instruments earns, less the costs of trading and what is owed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qfml.errors import DataError
from qfml.hedging.costs import Cost, check_costs, check_kinds, total_cost
from qfml.hedging.paths import PathSet
from qfml.hedging.sight import as_numbers

__all__ = ["Gains", "cost_levels", "gains", "trades"]

Holdings = Float[Tensor, "member path period instrument"]
PerPath = Float[Tensor, "member path"]


@dataclass(frozen=True, eq=False)
class Gains:
    """What a hedge earns and pays on each path, in discounted cash, each (M, B).

    Args:
        pnl: `trading` less `cost` less the liability; positive is a gain. No premium is in it.
        trading: holdings times changes of prices.
        cost: cost of all trades.
        turnover: value of all trades, bought and sold.
    """

    pnl: Tensor
    trading: Tensor
    cost: Tensor
    turnover: Tensor


def gains(
    holdings: Holdings,
    paths: PathSet,
    costs: Sequence[Cost] = (),
    cost_level: Any = 1.0,
    unwind: bool = False,
    smooth: bool = False,
) -> Gains:
    r"""Profit and loss of holdings along paths, differentiable in the holdings.

    .. math:: \sum_{l=0}^{L-2} \delta_l \cdot (P_{l+1} - P_l) - s \sum_{l=0}^{L-2} c(\delta_l - \delta_{l-1}, P_l)
        - s\,c(-\delta_{L-2}, P_{L-1}) - Z

    with discounted prices P, :math:`\delta_{-1} = 0`: the first trade is charged. The last cost is that of unwinding,
    if asked for.

    Args:
        holdings: :math:`\delta_l`, units of each instrument held from `times[l]` to `times[l + 1]`; (M, B, L - 1, K).
        paths: prices P and liability Z of B paths.
        costs: c, whose sum is charged.
        cost_level: s, a number or one for each member, (M,): a stack of cost levels is judged at once.
        unwind: whether the last holding is sold, at its cost, at the horizon.
        smooth: whether costs without a derivative are smoothed, for training; never where a hedge is judged.

    Returns:
        P&L and its parts, each (M, B).

    Raises:
        DataError: holdings that are not of the paths' shape, or not finite; what is no PathSet.
        ConfigError: costs that do not fit the instruments, or reach 100 % of what is traded.

    Example:
        >>> prices = torch.tensor([[[10.0], [11.0], [13.0]]])
        >>> times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        >>> paths = PathSet(times, prices, torch.tensor([3.0]), prices, ("spot",), ("spot",))
        >>> from qfml.hedging.costs import Proportional
        >>> found = gains(torch.tensor([[[[0.5], [1.0]]]]), paths, [Proportional(0.01)])
        >>> found.trading, found.cost, found.pnl
        (tensor([[2.5000]]), tensor([[0.1050]]), tensor([[-0.6050]]))
    """
    if not isinstance(paths, PathSet):
        raise DataError(f"`paths` must be a PathSet, such as a market's `paths` makes, got {paths!r}")
    check_kinds(costs)
    if not isinstance(holdings, Tensor):
        raise DataError(f"`holdings` must be a tensor, got {type(holdings).__name__}")
    holdings = holdings if holdings.is_floating_point() else holdings.to(paths.prices.dtype)
    shape = (len(paths), paths.n_steps, paths.n_instruments)
    if tuple(holdings.shape[1:]) != shape:
        raise DataError(
            f"`holdings` must have shape (members, {shape[0]} paths, {shape[1]} periods, {shape[2]} instruments), got "
            f"{tuple(holdings.shape)}: one holding for each period between trading dates"
        )
    if not bool(holdings.isfinite().all()):
        member, path, date, _ = (~holdings.isfinite()).nonzero()[0].tolist()
        raise DataError(f"`holdings` must be finite: member {member} has none on path {path} from date {date} on")
    level = cost_levels(cost_level, holdings)
    check_costs(costs, paths.n_instruments, level.tolist())
    prices = paths.prices
    trading = (holdings * prices.diff(dim=1)).sum((-2, -1))
    trade = trades(holdings, unwind)
    at = prices if unwind else prices[:, :-1]
    cost = level[:, None] * total_cost(costs, trade, at, smooth).sum(-1)
    turnover = (trade.abs() * at.abs()).sum((-2, -1))
    return Gains(trading - cost - paths.liability, trading, cost, turnover)


def trades(holdings: Holdings, unwind: bool) -> Tensor:
    """Units bought at each date: (M, B, L - 1, K), with the sale of everything at the horizon (M, B, L, K)."""
    nothing = torch.zeros_like(holdings[:, :, :1])
    ends = (nothing, holdings, nothing) if unwind else (nothing, holdings)
    return torch.cat(ends, dim=2).diff(dim=2)


def cost_levels(cost_level: Any, holdings: Tensor) -> Tensor:
    """`cost_level` as one number a member, (M,).

    Raises:
        DataError: neither a number nor one for each member.
    """
    level = as_numbers("cost_level", cost_level).to(holdings.device, holdings.dtype)
    if level.ndim > 1 or (level.ndim == 1 and len(level) != len(holdings)):
        raise DataError(
            f"`cost_level` must be a number or one for each of the {len(holdings)} members, got shape "
            f"{tuple(level.shape)}"
        )
    return level.expand(len(holdings))
