r"""Implied vols of many surfaces, with their derivatives by the parameters, from a characteristic function: fast.

A call, less Black's call of a control variance $w$, is Lewis' integral of the difference of two characteristic
functions on the line $z = \tfrac12 + iu$ (Andersen and Lake 2018),

$$\frac{C}{F} = \frac{C_w}{F} - \frac{e^{k/2}}{\pi} \int_0^\infty
  \mathrm{Re}\bigl[e^{-iuk}(\phi(u) - e^{-\frac w2 (u^2 + \frac14)})\bigr] \frac{du}{u^2 + \frac14},$$

whose integrand is smooth, so that Gauss and Legendre need few nodes on a range that the decay of $\phi$ gives. Quotes
of one expiry share the evaluation of $\phi$ and of its gradient; all strikes are one product of matrices with
$\cos uk$ and $\sin uk$, which stay the same while the parameters move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pricers.black import black_total_vol
from pricers.normal import normal_cdf
from pricers.quadrature import gauss_legendre
from qfml.calibration.model import Quotes

__all__ = [
    "LEAST_PRICE",
    "Characteristic",
    "Grid",
    "Slices",
    "black_out_of_the_money",
    "planned_vols",
    "planned_vols_and_jacobian",
]

Complex = tuple[Tensor, Tensor]

NODES = (16, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
MOST_STRIKES = 24  # of a row; an expiry with more quotes has several
TAIL = 16.5  # minus the logarithm of what the range of integration may leave out, per unit of total vol
FAINT_TAIL = 5.5  # more of it for strikes far out, whose prices are small, and for each unit of `finer`
MOST_TAIL = 28.0  # further out is nothing that 16 digits could tell
_NEAR = 2.5  # half the square of the standard deviations up to which a strike is not far out
PROBES = 1.45 ** torch.arange(26, dtype=torch.float64)  # where the decay is looked at, over the total vol
_FIRST_NODES, _FIRST_RANGE, _FIRST_VARIANCE = 32, 16.0, 0.04  # nodes and range over the total vol of a first look
_LEAST_REACH = 2.0  # strikes at the money need as many nodes as those so many standard deviations away
LEAST_PRICE = 1e-11  # out of the money, per unit of forward: below, no quadrature of 16 digits knows the vol


@dataclass(frozen=True)
class Characteristic:
    """The law of a model's log price, for the kernel; parameters come as one tensor (R, P).

    Args:
        value: of u (R, J), expiry (R, 1) and parameters; the log characteristic function on the line, (R, J) twice.
        gradient: the same, and its P derivatives.
        variance: of the log price up to the expiry, roughly: (R,).
        more_nodes: of the end of the range (R,) and parameters: nodes that the law needs besides those for its decay
            and its turns over the whole range, (R,); None: none.
    """

    value: Callable[[Tensor, Tensor, Tensor], Complex]
    gradient: Callable[[Tensor, Tensor, Tensor], tuple[Complex, tuple[Complex, ...]]]
    variance: Callable[[Tensor, Tensor], Tensor]
    more_nodes: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Slices:
    """Quotes grouped by surface and expiry into R rows of at most K strikes.

    Args:
        surface: which surface a row belongs to, (R,).
        expiry: (R,).
        log_strike: (R, K); a short row repeats its first.
        slot: for each quote its place in the flattened rows, (S, N).
        present: which quotes have a place, (S, N).
    """

    surface: Tensor
    expiry: Tensor
    log_strike: Tensor
    slot: Tensor
    present: Tensor

    @classmethod
    def of(cls, quotes: Quotes) -> Slices:
        """The rows of these quotes; quotes without a strike or an expiry have none."""
        present = (quotes.log_moneyness.isfinite() & quotes.expiry.isfinite() & (quotes.expiry > 0.0)).numpy()
        surface, quote = np.nonzero(present)
        expiry = quotes.expiry.numpy()[surface, quote]
        order = np.lexsort((expiry, surface))
        surface, quote, expiry = surface[order], quote[order], expiry[order]
        n = len(surface)
        new = np.ones(n, dtype=bool)
        new[1:] = (surface[1:] != surface[:-1]) | (expiry[1:] != expiry[:-1])
        begin = np.maximum.accumulate(np.where(new, np.arange(n), 0))
        place = np.arange(n) - begin  # within its expiry
        longest = min(MOST_STRIKES, int(place.max(initial=0)) + 1)
        new |= place % longest == 0
        column, row = place % longest, np.cumsum(new) - 1
        first = np.nonzero(new)[0]
        moneyness = quotes.log_moneyness.numpy()[surface, quote]
        log_strike = np.repeat(moneyness[first, None], longest, axis=1)
        log_strike[row, column] = moneyness
        slot = np.zeros(present.shape, dtype=np.int64)
        slot[surface, quote] = row * longest + column
        return cls(
            torch.from_numpy(surface[first]),
            torch.from_numpy(expiry[first]),
            torch.from_numpy(log_strike),
            torch.from_numpy(slot),
            torch.from_numpy(present),
        )

    def to_quotes(self, rows: Tensor) -> Tensor:
        """What the rows hold, (R, K, ...), at the quotes: (S, N, ...)."""
        return rows.flatten(0, 1)[self.slot]


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows with the same number of nodes J."""

    rows: Tensor
    surface: Tensor
    expiry: Tensor  # (R, 1)
    u: Tensor  # (R, J)
    factor: Tensor  # weight / (pi (u^2 + 1/4)), (R, J)
    control: Tensor  # the control's characteristic function times `factor`, (R, J)
    waves: Tensor  # exp(k / 2) (cos uk, sin uk), (R, K, 2 J)

    def of(self, keep: Tensor, rows: Tensor, surface: Tensor) -> _Part:
        pieces = (tensor[keep] for tensor in (self.expiry, self.u, self.factor, self.control, self.waves))
        return _Part(rows, surface, *pieces)


@dataclass(frozen=True, eq=False)
class Grid:
    """The quadrature for some surfaces: nodes for every expiry, chosen at parameters near which it will be used."""

    law: Characteristic
    slices: Slices
    parts: tuple[_Part, ...]
    base: Tensor  # out-of-the-money price of the control, (R, K)
    low: Tensor  # the lesser of forward and strike over the forward, at the quotes (S, N)
    high: Tensor
    log_moneyness: Tensor
    root: Tensor  # root of the expiry at the quotes

    @classmethod
    def planned(
        cls,
        law: Characteristic,
        x: Tensor,
        slices: Slices,
        quotes: Quotes,
        finer: float = 1.0,
        most: int = NODES[-1],
    ) -> Grid:
        """Nodes for the parameters `x` (S, P), `finer` times as many as these seem to need, `most` at most.

        More than 1 makes the range longer too: a price that is small beside what the end cuts off needs that.
        """
        rows_x = x[slices.surface]
        variance = law.variance(slices.expiry, rows_x)
        end, nodes = _range_and_nodes(law, rows_x, slices, variance, finer)
        return cls._of(law, slices, quotes, variance, end, nodes.clamp(max=most))

    @classmethod
    def of_quotes(cls, law: Characteristic, slices: Slices, quotes: Quotes) -> Grid:
        """A few nodes for laws that are about as wide as the quotes say: for a first look at many parameters."""
        rows = torch.zeros(slices.log_strike.shape, dtype=torch.float64).flatten()
        n_quotes, variance = rows.clone(), rows.clone()
        used = quotes.used & slices.present
        n_quotes[slices.slot[used]] = 1.0
        variance[slices.slot[used]] = quotes.vol[used].square()
        per_row = n_quotes.reshape(slices.log_strike.shape).sum(-1)
        mean = variance.reshape(slices.log_strike.shape).sum(-1) / per_row.clamp(min=1.0)
        total = torch.where(per_row > 0.0, mean, _FIRST_VARIANCE) * slices.expiry
        end = _FIRST_RANGE / total.sqrt()
        return cls._of(law, slices, quotes, total, end, torch.full(end.shape, _FIRST_NODES))

    @classmethod
    def _of(
        cls, law: Characteristic, slices: Slices, quotes: Quotes, variance: Tensor, end: Tensor, nodes: Tensor
    ) -> Grid:
        parts = []
        for n_nodes in sorted(set(nodes.tolist())):
            rows = (nodes == n_nodes).nonzero().squeeze(-1)
            parts.append(_part(slices, rows, end[rows], variance[rows], int(n_nodes)))
        present = slices.present
        moneyness = torch.where(present, quotes.log_moneyness, 0.0)
        return cls(
            law,
            slices,
            tuple(parts),
            black_out_of_the_money(slices.log_strike, variance.sqrt().unsqueeze(-1)),
            torch.exp(moneyness.clamp(max=0.0)),
            torch.exp(moneyness.clamp(min=0.0)),
            moneyness,
            torch.where(present, quotes.expiry, 1.0).sqrt(),
        )

    def at(self, index: Tensor) -> Grid:
        """The grid of the surfaces at `index`, ascending."""
        slices = self.slices
        number = torch.full((slices.slot.shape[0],), -1)
        number[index] = torch.arange(len(index))
        keep = (number[slices.surface] >= 0).nonzero().squeeze(-1)
        row_number = torch.full((len(slices.surface),), -1)
        row_number[keep] = torch.arange(len(keep))
        n_strikes = slices.log_strike.shape[1]
        slot = slices.slot[index]
        slot = row_number[slot // n_strikes].clamp(min=0) * n_strikes + slot % n_strikes
        smaller = Slices(
            number[slices.surface[keep]], slices.expiry[keep], slices.log_strike[keep], slot, slices.present[index]
        )
        parts = []
        for part in self.parts:
            inside = (row_number[part.rows] >= 0).nonzero().squeeze(-1)
            if len(inside):
                parts.append(part.of(inside, row_number[part.rows[inside]], number[part.surface[inside]]))
        quotes = (tensor[index] for tensor in (self.low, self.high, self.log_moneyness, self.root))
        return Grid(self.law, smaller, tuple(parts), self.base[keep], *quotes)

    def prices(self, x: Tensor) -> Tensor:
        """Prices out of the money per unit of forward, (S, N)."""
        result = self.base.clone()
        for part in self.parts:
            real, imaginary = self.law.value(part.u, part.expiry, x[part.surface])
            size = torch.exp(real) * part.factor
            column = torch.cat([size * torch.cos(imaginary) - part.control, size * torch.sin(imaginary)], dim=-1)
            result[part.rows] -= torch.bmm(part.waves, column.unsqueeze(-1)).squeeze(-1)
        return self.slices.to_quotes(result)

    def prices_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prices out of the money per unit of forward (S, N), and their derivatives (S, N, P)."""
        n_parameters = x.shape[-1]
        result = self.base.new_empty((*self.base.shape, 1 + n_parameters))
        for part in self.parts:
            result[part.rows] = _part_prices(self.law, part, x)
        result[..., 0] += self.base
        found = self.slices.to_quotes(result)
        return found[..., 0], found[..., 1:]

    def black(self, vol: Tensor) -> Tensor:
        """Black's prices out of the money per unit of forward at vols (S, N)."""
        return black_out_of_the_money(self.log_moneyness, vol * self.root)

    def vega(self, vol: Tensor) -> Tensor:
        """Their derivatives by the vol."""
        total = vol * self.root
        return torch.exp(-0.5 * (0.5 * total - self.log_moneyness / total).square()) * (self.root / _SQRT_2PI)

    def vols(self, x: Tensor) -> Tensor:
        """Implied vols (S, N); NaN where there is no quote or the price is too small to know one."""
        price = self.prices(x)
        known = self.slices.present & (price > LEAST_PRICE)
        total = black_total_vol(torch.where(known, price, math.nan), self.low, self.high, True)
        return total / self.root

    def vols_and_jacobian(self, x: Tensor, floor: bool = False) -> tuple[Tensor, Tensor]:
        """Implied vols (S, N) and derivatives (S, N, P).

        Args:
            x: parameters (S, P).
            floor: where a price is too small to know a vol give that of the least price, which does not move, in place
                of NaN: a search goes on from there.
        """
        price, slope = self.prices_and_jacobian(x)
        known = self.slices.present & (price > LEAST_PRICE)
        price = torch.where(known, price, torch.where(price.isnan(), price, LEAST_PRICE if floor else math.nan))
        total = black_total_vol(price, self.low, self.high, True)
        vol = total / self.root
        per_vega = torch.where(known, 1.0, 0.0 if floor else math.nan) / self.vega(vol)
        return vol, slope * per_vega.unsqueeze(-1)


_SQRT_2PI = math.sqrt(2.0 * math.pi)


def _part_prices(law: Characteristic, part: _Part, x: Tensor) -> Tensor:
    """What the integral adds to the control's price, and its derivatives: (R, K, 1 + P)."""
    (real, imaginary), gradient = law.gradient(part.u, part.expiry, x[part.surface])
    n_rows, n_nodes = part.u.shape
    size = torch.exp(real).mul_(part.factor).neg_()
    cosine, sine = size * torch.cos(imaginary), size * torch.sin(imaginary)
    columns = size.new_empty((n_rows, 1 + len(gradient), 2 * n_nodes))
    torch.add(cosine, part.control, out=columns[:, 0, :n_nodes])
    columns[:, 0, n_nodes:] = sine
    for i, (a, b) in enumerate(gradient, start=1):
        torch.mul(cosine, a, out=columns[:, i, :n_nodes]).addcmul_(sine, b, value=-1.0)
        torch.mul(cosine, b, out=columns[:, i, n_nodes:]).addcmul_(sine, a)
    return torch.bmm(part.waves, columns.mT)


def _part(slices: Slices, rows: Tensor, end: Tensor, variance: Tensor, n_nodes: int) -> _Part:
    nodes, weights = _gauss(n_nodes)
    half = 0.5 * end.unsqueeze(-1)
    u = half * (1.0 + nodes)
    square = torch.addcmul(torch.full_like(u, 0.25), u, u)
    factor = half * weights / (math.pi * square)
    strike = slices.log_strike[rows].unsqueeze(-1)
    angle = u.unsqueeze(-2) * strike
    waves = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1).mul_(torch.exp(0.5 * strike))
    control = torch.exp(-0.5 * variance.unsqueeze(-1) * square) * factor
    return _Part(rows, slices.surface[rows], slices.expiry[rows].unsqueeze(-1), u, factor, control, waves)


def _range_and_nodes(
    law: Characteristic, rows_x: Tensor, slices: Slices, variance: Tensor, finer: float
) -> tuple[Tensor, Tensor]:
    """Where the integral may end, and how many nodes it needs, for each row."""
    deviation = variance.sqrt().unsqueeze(-1)
    probes = PROBES / deviation
    real, _ = law.value(probes, slices.expiry.unsqueeze(-1), rows_x)
    # the control decays too
    slower = torch.maximum(real, -0.5 * (variance.unsqueeze(-1) * probes * probes))
    # the integral is multiplied by exp(k / 2)
    amplified = 0.5 * slices.log_strike.amax(dim=-1, keepdim=True).clamp(min=0.0)
    # prices far out are small, and what is left out must be smaller
    distance = slices.log_strike.abs().amax(dim=-1, keepdim=True) / deviation
    faint = (0.5 * distance.square() - _NEAR).clamp(min=0.0, max=FAINT_TAIL)
    tail = (TAIL + faint + FAINT_TAIL * (finer - 1.0)).clamp(max=MOST_TAIL)
    excess = slower - torch.log(PROBES) + (tail + amplified)
    index = torch.arange(1, len(PROBES) + 1) * (excess > 0.0)
    above = index.amax(dim=-1, keepdim=True).clamp(1, len(PROBES) - 1)
    u0, u1 = probes.gather(-1, above - 1), probes.gather(-1, above)
    f0, f1 = excess.gather(-1, above - 1).clamp(min=0.0), excess.gather(-1, above).clamp(max=0.0)
    share = (f0 / (f0 - f1).clamp(min=1e-30)).clamp(max=1.0)
    end = torch.lerp(u0, u1, share)  # the exponent is concave or nearly linear: the chord ends a little late
    _, angle = law.value(end, slices.expiry.unsqueeze(-1), rows_x)
    # turns of the integrand over the range, at the strike where it turns most
    reach = torch.maximum(slices.log_strike.abs().amax(dim=-1), _LEAST_REACH * deviation.squeeze(-1))
    turned = angle.abs().squeeze(-1) + end.squeeze(-1) * reach
    # measured: over a wide box, at the money and at deltas of 0.02 to 0.98, this leaves less than 0.02 bp of vol
    needed = 9.0 + 0.36 * turned
    if law.more_nodes is not None:
        needed = needed + law.more_nodes(end.squeeze(-1), rows_x)
    # as far as there are nodes for: over a longer range they would miss turns, which is worse than a tail cut off
    end = end * (NODES[-1] / needed).clamp(max=1.0).unsqueeze(-1)
    needed = finer * needed
    sizes = torch.tensor(NODES)
    return end.squeeze(-1), sizes[torch.bucketize(needed, sizes.to(needed)).clamp(max=len(NODES) - 1)]


@lru_cache(maxsize=32)
def _gauss(n: int) -> tuple[Tensor, Tensor]:
    return gauss_legendre(n, torch.zeros((), dtype=torch.float64))


def black_out_of_the_money(log_strike: Tensor, total_vol: Tensor) -> Tensor:
    """Black's price per unit of forward, of a put at or below the forward and a call above."""
    sign = torch.where(log_strike <= 0.0, -1.0, 1.0)
    d1 = -log_strike / total_vol + 0.5 * total_vol
    return sign * (normal_cdf(sign * d1) - torch.exp(log_strike) * normal_cdf(sign * (d1 - total_vol)))


def planned_vols(law: Characteristic, x: Tensor, quotes: Quotes) -> Tensor:
    """Vols (S, N) at the parameters (S, P), with nodes for each."""
    return Grid.planned(law, x, Slices.of(quotes), quotes).vols(x)


def planned_vols_and_jacobian(law: Characteristic, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
    """Vols (S, N) and derivatives (S, N, P), with nodes for each."""
    return Grid.planned(law, x, Slices.of(quotes), quotes).vols_and_jacobian(x)
