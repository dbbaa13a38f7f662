"""Smiles of any surface read at fixed places: what a network that looks at surfaces is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from qfml.calibration.model import Quotes
from qfml.errors import ConfigError, DataError

__all__ = ["UNITS", "Layout", "natural_spline", "vols_at"]

UNITS = ("log_moneyness", "std")
BEYOND = 0.1  # share of an expiry, or of a row's width, by which quotes and places may lie apart from one another
SURFACES_AT_A_TIME = 1024  # their intermediate results stay near the cache


@dataclass(frozen=True)
class Layout:
    """The places, expiries by log-moneynesses, at which surfaces are read.

    A smile is a natural cubic spline of total variance in log-moneyness, and linear where the spline is not positive;
    beyond its first and last quote the vol stays. Between two expiries total variance is linear at equal
    log-moneyness; before the first and after the last one the vol stays. Quotes of one strike and expiry are averaged
    by their weights.

    Args:
        expiry: years, rising.
        moneyness: log(strike / forward), rising; one row for all expiries, or one for each.
        unit: "log_moneyness", or "std": `moneyness` counts standard deviations, the surface's own at-the-money vol
            times the root of the expiry. Fixed strikes fit surfaces of one underlying, "std" those of any vol.
        widest: places further than this many standard deviations from the forward are read at that distance: a vol
            far out in the tail is the quotient of two numbers that are almost 0.

    Example:
        >>> Layout(expiry=(0.25, 1.0), moneyness=((-0.1, 0.0, 0.1),)).n_places
        6
    """

    expiry: tuple[float, ...]
    moneyness: tuple[tuple[float, ...], ...]
    unit: str = "log_moneyness"
    widest: float = 3.5

    def __post_init__(self) -> None:
        if not self.expiry or not all(0 < time < math.inf for time in self.expiry) or not _rising(self.expiry):
            raise ConfigError(f"`expiry` must hold rising numbers above 0, in years, got {self.expiry}")
        if len(self.moneyness) not in (1, len(self.expiry)):
            raise ConfigError(
                f"`moneyness` must have one row for all {len(self.expiry)} expiries, or one for each, got "
                f"{len(self.moneyness)} rows"
            )
        widths = {len(row) for row in self.moneyness}
        finite = all(math.isfinite(place) for row in self.moneyness for place in row)
        if len(widths) != 1 or 0 in widths or not finite or not all(map(_rising, self.moneyness)):
            raise ConfigError(f"`moneyness` must hold rows of one length, each of rising numbers, got {self.moneyness}")
        if self.unit not in UNITS:
            raise ConfigError(f"`unit` must be one of {', '.join(UNITS)}, got {self.unit!r}")
        if not 0 < self.widest < math.inf:
            raise ConfigError(f"`widest` must be above 0, in standard deviations, got {self.widest}")

    @classmethod
    def standard(cls, shortest: float, longest: float, n_expiries: int = 8, widest: float = 2.5) -> Layout:
        """Expiries spaced evenly in their logarithm, eleven strikes each by standard deviations: for any surface.

        >>> [round(time, 2) for time in Layout.standard(0.1, 1.6, n_expiries=3).expiry]
        [0.1, 0.4, 1.6]
        """
        if not 0 < shortest < longest < math.inf or n_expiries < 2:
            raise ConfigError(
                f"a layout needs two expiries or more, from `shortest` to a later `longest`, got {n_expiries} from "
                f"{shortest} to {longest}"
            )
        step = (longest / shortest) ** (1 / (n_expiries - 1))
        expiry = (*(shortest * step**i for i in range(n_expiries - 1)), longest)
        row = tuple(widest * (i / 5 - 1) for i in range(11))
        return cls(tuple(map(float, expiry)), (row,), "std", widest)

    @classmethod
    def of(cls, quotes: Quotes, widest: float = 3.5) -> Layout:
        """The places of the quotes of one surface with equally many strikes at all expiries.

        Raises:
            DataError: several surfaces, or expiries with different numbers of strikes.
        """
        if quotes.vol.shape[0] != 1:
            raise DataError(f"a layout is taken from the quotes of one surface, got those of {quotes.vol.shape[0]}")
        kept = quotes.weight[0] > 0
        places: dict[float, list[float]] = {}
        for time, place in sorted(zip(quotes.expiry[0, kept].tolist(), quotes.log_moneyness[0, kept].tolist())):
            places.setdefault(time, []).append(place)
        if len({len(row) for row in places.values()}) != 1:
            counts = ", ".join(f"{len(row)} at {time:.4g}" for time, row in places.items())
            raise DataError(
                f"a layout needs equally many strikes at all expiries, got {counts}: write its `moneyness` by hand, or "
                "take `Layout.standard`"
            )
        return cls(tuple(places), tuple(tuple(row) for row in places.values()), widest=widest)

    @property
    def n_places(self) -> int:
        """Places, expiries times log-moneynesses."""
        return len(self.expiry) * len(self.moneyness[0])

    def log_moneyness(self, at_the_money: Float64[Tensor, "S E"]) -> Float64[Tensor, "S E K"]:
        """Where surfaces with these at-the-money vols at the expiries of the layout are read."""
        expiry = torch.tensor(self.expiry, dtype=torch.float64)
        places = torch.tensor(self.moneyness, dtype=torch.float64).expand(len(expiry), -1)
        deviation = (at_the_money * expiry.sqrt())[..., None]
        if self.unit == "std":
            return places.clamp(-self.widest, self.widest) * deviation
        return torch.minimum(torch.maximum(places[None], -self.widest * deviation), self.widest * deviation)

    def apart(self, quotes: Quotes) -> tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]:
        """How many places of the layout lie beyond the quotes, and how many quotes beyond the places, of each surface.

        At the former the vol of the nearest quotes stands in; the latter are not looked at. Both count from a tenth of
        an expiry, or of the width of the strikes, on.

        Raises:
            DataError: a surface without quotes.
        """
        parts = [
            _apart(self, *(column[first : first + SURFACES_AT_A_TIME] for column in _columns(quotes)))
            for first in range(0, len(quotes.vol), SURFACES_AT_A_TIME)
        ]
        beyond_quotes, beyond_places = zip(*parts)
        return torch.cat(beyond_quotes), torch.cat(beyond_places)

    def vols(self, quotes: Quotes) -> Float64[Tensor, "S E K"]:
        """The vols of each surface at the places of the layout.

        Raises:
            DataError: a surface without quotes.
        """
        parts = [
            _read(self, *(column[first : first + SURFACES_AT_A_TIME] for column in _columns(quotes)))
            for first in range(0, len(quotes.vol), SURFACES_AT_A_TIME)
        ]
        return torch.cat(parts)


def _rising(row: tuple[float, ...]) -> bool:
    return all(a < b for a, b in pairwise(row))


def _columns(quotes: Quotes) -> tuple[Tensor, ...]:
    empty = (~quotes.used.any(1)).nonzero()
    if len(empty):
        raise DataError(f"surface {int(empty[0, 0])} has no quote with a weight above 0: leave it out")
    return quotes.log_moneyness, quotes.expiry, quotes.vol, quotes.weight


@dataclass(frozen=True, eq=False)
class _Smiles:
    """All smiles of a batch of surfaces, padded: nodes (M, n) of log-moneyness and total variance, and slopes.

    `first` and `count` (S,) say which smiles are a surface's own, by rising expiry.
    """

    k: Tensor
    variance: Tensor
    second: Tensor
    n_nodes: Tensor
    expiry: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, k: Tensor, expiry: Tensor, vol: Tensor, weight: Tensor) -> _Smiles:
        surface, column = (weight > 0).nonzero(as_tuple=True)
        k, expiry, vol, weight = (values[surface, column] for values in (k, expiry, vol, weight))
        order = torch.from_numpy(np.lexsort((k.numpy(), expiry.numpy(), surface.numpy())))
        k, expiry, vol, weight, surface = (part[order] for part in (k, expiry, vol, weight, surface))
        new_smile = _changes(surface, expiry)
        k, variance, kept = _averaged(k, vol.square() * expiry, weight, new_smile)
        smile = new_smile[kept].long().cumsum(0) - 1
        starts = new_smile[kept].nonzero().squeeze(-1)
        n_nodes = torch.bincount(smile)
        position = torch.arange(len(smile)) - starts[smile]
        shape = (len(starts), int(n_nodes.max()))
        nodes, values = k.new_full(shape, math.inf), k.new_zeros(shape)
        nodes[smile, position], values[smile, position] = k, variance
        owner = surface[kept][starts]
        count = torch.bincount(owner)
        second = natural_spline(nodes, values, n_nodes)
        return cls(nodes, values, second, n_nodes, expiry[kept][starts], count.cumsum(0) - count, count)

    def total_variance(self, smile: Int64[Tensor, " R"], k: Float64[Tensor, "R Q"]) -> Float64[Tensor, "R Q"]:
        """Total variance of the smile of each row at log-moneynesses, flat beyond its nodes."""
        nodes, last = self.k[smile], (self.n_nodes[smile] - 1)[:, None]
        place = torch.minimum(torch.maximum(k, nodes[:, :1]), nodes.gather(1, last))
        left = torch.searchsorted(nodes, place.contiguous(), right=True).sub_(1)
        left = torch.minimum(left.clamp(min=0), (last - 1).clamp(min=0))
        right = torch.minimum(left + 1, last)
        a, b = nodes.gather(1, left), nodes.gather(1, right)
        width = torch.where(b > a, b - a, 1.0)
        share = (place - a) / width
        rest = 1 - share
        values, second = self.variance[smile], self.second[smile]
        line = rest * values.gather(1, left) + share * values.gather(1, right)
        bend = (rest**3 - rest) * second.gather(1, left) + (share**3 - share) * second.gather(1, right)
        curve = line + bend * width.square() / 6
        return torch.where(curve > 0, curve, line)


def _changes(*columns: Tensor) -> Tensor:
    """Where a sorted table differs from the row before it."""
    new = torch.zeros(len(columns[0]), dtype=torch.bool)
    new[0] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _averaged(k: Tensor, variance: Tensor, weight: Tensor, new_smile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct nodes with their mean total variance, and the rows at which they begin."""
    new = new_smile | _changes(k)
    kept = new.nonzero().squeeze(-1)
    if len(kept) == len(k):
        return k, variance, kept
    node = new.long().cumsum(0) - 1
    total = torch.zeros(len(kept), dtype=k.dtype).index_add_(0, node, weight)
    mean = torch.zeros(len(kept), dtype=k.dtype).index_add_(0, node, weight * variance) / total
    return k[kept], mean, kept


def natural_spline(
    nodes: Float64[Tensor, "M n"], values: Float64[Tensor, "M n"], n_nodes: Int64[Tensor, " M"]
) -> Float64[Tensor, "M n"]:
    """Second derivatives at the nodes of M cubic splines whose second derivative is 0 at both ends.

    Args:
        nodes: rising, infinite beyond the last one.
        values: at the nodes.
        n_nodes: nodes of each spline, 1 or more; with one or two the spline is a line.

    References:
        Press, Teukolsky, Vetterling and Flannery (2007), "Numerical Recipes", section 3.3.

    >>> nodes = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    >>> natural_spline(nodes, nodes**2, torch.tensor([3]))
    tensor([[0., 3., 0.]], dtype=torch.float64)
    """
    second = torch.zeros_like(values)
    n = nodes.shape[1]
    if n < 3:
        return second
    inside = torch.arange(1, n - 1) < (n_nodes - 1)[:, None]
    step = torch.where(nodes[:, 1:].isfinite(), nodes.diff(dim=1), 1.0)
    slope = values.diff(dim=1) / step
    diagonal = torch.where(inside, 2 * (step[:, :-1] + step[:, 1:]), 1.0)
    below = torch.where(inside, step[:, :-1], 0.0)
    above = torch.where(inside, step[:, 1:], 0.0)
    right = torch.where(inside, 6 * slope.diff(dim=1), 0.0)
    # Gauss without pivots (Thomas); the matrix is diagonally dominant. Columns of all splines at once.
    diagonals, rights = [diagonal[:, 0]], [right[:, 0]]
    for i in range(1, n - 2):
        ratio = below[:, i] / diagonals[-1]
        diagonals.append(diagonal[:, i] - ratio * above[:, i - 1])
        rights.append(right[:, i] - ratio * rights[-1])
    found = rights[-1] / diagonals[-1]
    second[:, n - 2] = found
    for i in range(n - 4, -1, -1):
        found = (rights[i] - above[:, i] * found) / diagonals[i]
        second[:, i + 1] = found
    return second


def vols_at(
    quotes: Quotes, log_moneyness: Float64[Tensor, "S N"], expiry: Float64[Tensor, "S N"]
) -> Float64[Tensor, "S N"]:
    """The vols of each surface at places of its own, read as by a `Layout`.

    Raises:
        DataError: a surface without quotes.
    """
    smiles = _Smiles.of(*_columns(quotes))
    near, far, share = _neighbours(smiles, expiry)
    return _between(smiles, near, far, share, expiry, log_moneyness[..., None])[..., 0]


def _read(layout: Layout, *columns: Tensor) -> Tensor:
    """The vols (S, E, K) of some surfaces."""
    smiles = _Smiles.of(*columns)
    expiry = torch.tensor(layout.expiry, dtype=torch.float64).expand(len(smiles.count), -1)
    near, far, share = _neighbours(smiles, expiry)
    at_the_money = _between(smiles, near, far, share, expiry, torch.zeros(*near.shape, 1, dtype=torch.float64))
    return _between(smiles, near, far, share, expiry, layout.log_moneyness(at_the_money[..., 0]))


def _apart(layout: Layout, k: Tensor, time: Tensor, vol: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    smiles, used = _Smiles.of(k, time, vol, weight), weight > 0
    expiry = torch.tensor(layout.expiry, dtype=torch.float64)
    wanted = expiry.expand(len(smiles.count), -1)
    near, far, share = _neighbours(smiles, wanted)
    at_the_money = _between(smiles, near, far, share, wanted, torch.zeros(*near.shape, 1, dtype=torch.float64))
    places = layout.log_moneyness(at_the_money[..., 0]).expand(len(near), -1, -1)  # (S, E, K)
    first, last = smiles.k[:, 0], smiles.k.gather(1, (smiles.n_nodes - 1)[:, None])[:, 0]
    low, high = (torch.minimum(first[near], first[far]), torch.maximum(last[near], last[far]))
    shortest = torch.where(used, time, math.inf).amin(1, keepdim=True)
    longest = torch.where(used, time, 0.0).amax(1, keepdim=True)
    far_off = (wanted < (1 - BEYOND) * shortest) | (wanted * (1 - BEYOND) > longest)
    room = (BEYOND * (high - low))[..., None]
    beside = (places < low[..., None] - room) | (places > high[..., None] + room)
    # quotes, beside the places of the expiry that is nearest to theirs
    row = torch.bucketize(time.contiguous(), (expiry[1:] * expiry[:-1]).sqrt())
    least, most = (places[..., end].gather(1, row) for end in (0, -1))
    room = BEYOND * (most - least)
    unseen = (k < least - room) | (k > most + room)
    unseen |= (time < (1 - BEYOND) * expiry[0]) | (time * (1 - BEYOND) > expiry[-1])
    return (beside | far_off[..., None]).sum((1, 2)), (unseen & used).sum(1)


def _neighbours(smiles: _Smiles, expiry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The smiles (S, E) before and after each expiry (S, E), and the share of the later one; beyond both are one."""
    column = torch.arange(int(smiles.count.max()))
    real = column < smiles.count[:, None]
    own = torch.where(real, smiles.first[:, None] + column, 0)
    times = torch.where(real, smiles.expiry[own], math.inf)
    wanted = expiry.contiguous()
    after = torch.searchsorted(times, wanted, right=False)
    last = (smiles.count - 1)[:, None]
    far = torch.minimum(after, last)
    near = torch.where(after > last, last, (after - 1).clamp(min=0))
    near, far = smiles.first[:, None] + near, smiles.first[:, None] + far
    start, stop = smiles.expiry[near], smiles.expiry[far]
    share = torch.where(stop > start, (wanted - start) / torch.where(stop > start, stop - start, 1.0), 0.0)
    return near, far, share


def _between(smiles: _Smiles, near: Tensor, far: Tensor, share: Tensor, expiry: Tensor, k: Tensor) -> Tensor:
    """Vols (S, E, K) at log-moneynesses `k`, between the smiles `near` and `far`."""
    flat = k.flatten(0, 1)
    before, after = (
        smiles.total_variance(smile.flatten(), flat).view(k.shape) / smiles.expiry[smile][..., None]
        for smile in (near, far)
    )  # squared vols
    start, stop, share = smiles.expiry[near][..., None], smiles.expiry[far][..., None], share[..., None]
    inside = stop > start
    variance = ((1 - share) * before * start + share * after * stop) / expiry[..., None]
    return torch.where(inside, variance, before).sqrt()
