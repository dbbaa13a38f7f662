"""Local volatility: the diffusion that reprices a surface of implied volatilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import AnyScheme, Model, Scheme, State, Step
from pricers.models.vol_surface import VolSurface
from pricers.parameters import broadcast_shape

__all__ = ["LocalVol", "lookup"]


def lookup(table: Tensor, position: Tensor) -> Tensor:
    """A table read linearly between its entries, and constantly beyond its ends.

    Args:
        table: entries, shape `*batch n`.
        position: in entries from the first, shape `*batch m`; batch axes broadcast.

    Returns:
        Shape `*batch m`.

    >>> lookup(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-3.0, 0.5, 1.5, 9.0]))
    tensor([1.0000, 1.5000, 3.0000, 4.0000])
    """
    last = table.shape[-1] - 1
    position = position.clamp(0.0, last)
    left = position.detach().long().clamp(max=last - 1)
    share = position - left
    if table.ndim == 1:
        low, high = table[left], table[left + 1]
    else:
        batch = broadcast_shape(table=table.shape[:-1], position=position.shape[:-1])
        rows, left = table.expand(*batch, -1), left.expand(*batch, -1)
        low, high = rows.gather(-1, left), rows.gather(-1, left + 1)
    return low + share * (high - low)


class LogEuler(Scheme):
    """The log price with the local variance at the start of the step in price and at its middle in time.

    A martingale at any step; of weak order 1. The local variance is read linearly from a table of each step.
    """

    n_normals: ClassVar[int] = 0

    def start(self, model: LocalVol) -> State:
        return ()

    def coefficients(self, model: LocalVol, market: Market, time: Tensor, dt: Tensor) -> State:
        nodes = model.surface.nodes()
        table = model.surface.local_variance(nodes, time + 0.5 * dt) * dt.unsqueeze(-1)
        per_node = (nodes.shape[0] - 1) / (nodes[-1] - nodes[0])
        return table, nodes[0], per_node

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        table, first, per_node = coefficients
        variance = lookup(table, (log_ratio - first) * per_node)
        return Step((), -0.5 * variance, variance, variance)


@dataclass(frozen=True, eq=False, init=False)
class LocalVol(Model):
    r"""Dupire's model of a surface: $dS = (r - q) S\,dt + \sqrt{v(\log(S / F(0, t)), t)}\,S\,dW$.

    The local variance $v$ is the one that gives back the surface. Beyond its outermost quotes and after its last expiry
    it keeps its value at the edge.

    Args:
        surface: implied volatilities.

    References:
        Dupire (1994), Pricing with a smile; Gatheral (2006), The Volatility Surface, eq. 1.10.

    >>> surface = VolSurface(log_moneyness=[-0.5, 0.5], expiries=[1.0], vols=[[0.2, 0.2]])
    >>> number = lambda x: torch.tensor(x, dtype=torch.float64)
    >>> LocalVol(surface).local_variance(number([0.0, 3.0]), number(0.5))
    tensor([0.0400, 0.0400], dtype=torch.float64)
    """

    kind: ClassVar[str] = "local_vol"
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"euler": LogEuler()}
    surface: VolSurface

    def __init__(self, surface: Any) -> None:
        if not isinstance(surface, VolSurface):
            raise ValueError(
                f"`surface` must be VolSurface(log_moneyness, expiries, vols), got {type(surface).__name__}"
            )
        object.__setattr__(self, "surface", surface)

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of surfaces."""
        return self.surface.batch_shape

    def parameters(self) -> dict[str, Tensor]:
        """The quoted volatilities."""
        return {"surface.vols": self.surface.vols}

    def local_variance(self, log_moneyness: Tensor, time: Tensor) -> Tensor:
        """Squared local volatility at log(spot / forward) of shape `*batch n` and times of shape `*batch`."""
        return self.surface.local_variance(log_moneyness, time)
