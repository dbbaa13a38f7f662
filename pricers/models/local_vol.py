"""Local volatility: the diffusion that reprices a surface of implied volatilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import AnyScheme, DirectScheme, Model, Scheme, State, Step
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
    """The log price with the local variance at the start of the step in price and in the middle of it in time.

    A martingale at any step; of weak order 1. The local variance is read linearly from a table of each step.
    """

    n_normals: ClassVar[int] = 0
    local: ClassVar[bool] = True

    def start(self, model: LocalVol) -> State:
        return ()

    def coefficients(self, model: LocalVol, market: Market, time: Tensor, dt: Tensor) -> State:
        return _table(model.surface, time, dt)

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        table, first, per_node = coefficients
        variance = lookup(table, (log_ratio - first) * per_node)
        return Step((), -0.5 * variance, variance, variance)


class QuadraticLog(DirectScheme):
    r"""The log price grows by a quadratic of one normal with the right mean, variance and skewness: weak order 2.

    With $v$ the local variance at the middle of the step in time and $'$ its derivative in the log price,
    $\Delta = \beta Z + \gamma Z^2 + c$ where

    $$\gamma = \tfrac14 v' h, \qquad
      \beta^2 + 2\gamma^2 = v h + \tfrac14 h^2 v\,(v'' - 3 v') ,$$

    to second order, and $c$ makes $E\,e^\Delta = 1$: a martingale at any step. The derivatives are differences over one
    standard deviation $s$ of the step, which smooths the kinks of the surface at its quotes, and are limited where
    they would not be small, so that $\beta^2$ stays positive.
    """

    n_normals: ClassVar[int] = 1

    def start(self, model: LocalVol, market: Market, horizon: Tensor) -> State:
        vols = model.surface.vols
        return (vols.new_zeros(*model.batch_shape, 1),)

    def coefficients(self, model: LocalVol, market: Market, time: Tensor, dt: Tensor) -> State:
        return _table(model.surface, time, dt)

    def advance(self, coefficients: State, state: State, normals: Tensor) -> State:
        table, first, per_node = coefficients  # of variance over the step
        (log_ratio,) = state
        position = (log_ratio - first) * per_node
        variance = lookup(table, position)
        std_dev = torch.sqrt(variance)
        up, down = lookup(table, position + std_dev * per_node), lookup(table, position - std_dev * per_node)
        small = std_dev / (1.0 + variance)
        tilt = (up - down) / variance
        tilt = tilt / torch.sqrt(1.0 + 0.25 * tilt**2)  # 2 s v' / v
        gamma = 0.125 * small * tilt
        beta_squared = variance * (0.5 - 0.375 * small * tilt - tilt**2 / 32.0) + 0.25 * (up + down)
        normal = normals[0]
        center = 0.5 * torch.log1p(-2.0 * gamma) - 0.5 * beta_squared / (1.0 - 2.0 * gamma)  # of E exp(...) = 1
        return (log_ratio + torch.sqrt(beta_squared) * normal + gamma * normal**2 + center,)

    def ratio(self, state: State) -> Tensor:
        return torch.exp(state[0])


def _table(surface: VolSurface, time: Tensor, dt: Tensor) -> State:
    """Variance over a step by log-moneyness, its first node, and nodes by unit of log-moneyness.

    The local variance jumps in time at the expiries of the surface: a step across some of them is read in the middle of
    each of its parts.
    """
    nodes, end = surface.nodes(), time + dt
    expiries = surface.expiries[:-1]
    inside = (expiries.detach() > time.detach()) & (expiries.detach() < end.detach())
    bounds = [time, *expiries[inside].unbind(), end]
    parts = [
        surface.local_variance(nodes, 0.5 * (left + right)) * (right - left).unsqueeze(-1)
        for left, right in pairwise(bounds)
    ]
    variance = torch.stack(parts).sum(0)
    return variance, nodes[0], (nodes.shape[0] - 1) / (nodes[-1] - nodes[0])


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
    schemes: ClassVar[Mapping[str, AnyScheme]] = {"euler": LogEuler(), "quadratic": QuadraticLog()}
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
