"""How wide the range of a COS series must be, and how many terms it needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "Law", "Side", "cumulant_range", "moment_range", "remainder", "series_lengths"]

TOLERANCE = 3e-12  # of each source of error, per unit of forward: far below 1e-8, so that Greeks keep their digits too
MAX_TERMS = 2**18
LONGEST = 1e4  # range, times the size of X, where no moment says how long it must be
ORDERS = torch.logspace(-2.8, 1.15, 20, dtype=torch.float64)  # of the moments that bound the tails, times the size of X
ARGUMENTS = 2.0 * 1.6 ** torch.arange(25, dtype=torch.float64)  # where the decay is looked at, the same

Characteristic = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Law:
    r"""What COS must know of `n_rows` distributions of $X = \log(S_T / F_T)$.

    Args:
        log_characteristic: takes row numbers `(rows,)`, arguments `(rows, n_u)` and a shift; returns the real and the
            imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, each `(rows, n_u)`.
        scale: typical size of X, `(n_rows,)`.
        cumulants: first, second and fourth cumulant, each `(n_rows,)`; only where no `log_moment` is known.
        log_moment: takes row numbers `(rows,)` and orders `(rows, n)`; returns $\log E\,e^{q X}$, infinite where the
            moment is.
    """

    log_characteristic: Characteristic
    scale: Tensor
    cumulants: tuple[Tensor, Tensor, Tensor] | None = None
    log_moment: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """A tail to be valued: of Y = `sign` X, under the measure of `shift` (1: the asset is the numeraire).

    `digital`: $P(Y < y)$; else $E(1 - e^{Y - y})^+$, a put over its strike, or a call over the forward.
    """

    law: Law
    sign: float
    shift: float
    digital: bool

    @property
    def other(self) -> Side:
        """What parity gives this tail from: the opposite option, or the same probability in the other measure."""
        return Side(self.law, self.sign if self.digital else -self.sign, 1.0 - self.shift, self.digital)

    @property
    def pays_strike(self) -> bool:
        """Whether the price is $e^y$ times the tail, in units of the forward."""
        return self.sign > 0.0 and not self.digital


def moment_range(side: Side, rows: Tensor, y: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    r"""Ends of a range of Y outside which lies, weighted with the payoff, less than `tolerance` on each side.

    The coefficients come from the characteristic function, that is from the whole density folded into the range. A
    point $Y$ below the lower end $a$ is folded to $2a - Y$, where the payoff differs from the right one by at most
    $\min(1, e^{2a - Y - y})$; a point above the upper end $b$ matters only beyond $2b - y$. Markov's inequality bounds
    both by $E\,e^{\mp sY}$, and the best of several $s$ is taken.

    Returns:
        The ends, and the bound of what lies outside per unit of forward: 1 where no moment bounds it.
    """
    log_moment = side.law.log_moment
    if log_moment is None:
        raise ValueError("`moment_range` needs a `Law` with `log_moment`, got one without")
    orders = ORDERS.to(y) / side.law.scale[rows].detach().unsqueeze(-1)
    with torch.no_grad():
        both = log_moment(rows, side.shift - side.sign * torch.cat([orders, -orders], dim=-1)).detach()
    left, right = both.chunk(2, dim=-1)
    lowest, highest = y.detach().amin(dim=-1, keepdim=True), y.detach().amax(dim=-1, keepdim=True).clamp(min=0.0)
    reach = math.log(tolerance) - left
    if side.pays_strike:
        nearest, paid = torch.zeros_like(lowest), highest
    else:
        # further out than this the whole tail is below the tolerance
        nearest, paid = torch.maximum(lowest, (reach / orders).amax(dim=-1, keepdim=True)), torch.zeros_like(highest)
        nearest = nearest.clamp(max=0.0)
    low = (reach + orders * nearest - (1.0 - orders) * paid) / (2.0 * orders)
    if not side.digital:
        low = torch.where(orders < 1.0, low, (reach + nearest) / (1.0 + orders))
    high = (right - math.log(tolerance) + paid) / (2.0 * orders)
    scale = side.law.scale[rows].detach()
    highest = highest.squeeze(-1)
    low, high = low.amax(dim=-1), high.amin(dim=-1) + 0.5 * highest
    bounded = torch.isfinite(low) & torch.isfinite(high)
    low = torch.maximum(torch.minimum(low, -1e-3 * scale), -LONGEST * scale)
    high = torch.minimum(torch.maximum(high, highest + 1e-3 * scale), highest + LONGEST * scale)
    return low, high, torch.where(bounded, torch.full_like(scale, 2.0 * tolerance), torch.ones_like(scale))


def cumulant_range(side: Side, rows: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """`width` standard deviations to both sides of the mean: Fang and Oosterlee (2008), eq. 49."""
    if side.law.cumulants is None:
        raise ValueError("a `Law` without `log_moment` needs `cumulants`, got neither")
    first, second, fourth = (cumulant.detach()[rows] for cumulant in side.law.cumulants)
    centre = side.sign * (first + side.shift * second)
    half = width * torch.sqrt(second + torch.sqrt(fourth.clamp(min=0.0)))
    return torch.minimum(centre - half, -0.5 * half), torch.maximum(centre + half, 0.5 * half)


def series_lengths(side: Side, rows: Tensor, width: Tensor, y: Tensor, tolerance: float) -> Tensor:
    """Terms after which the characteristic function leaves less than `tolerance`, not limited."""
    u = ARGUMENTS.to(width) / side.law.scale[rows].detach().unsqueeze(-1)
    with torch.no_grad():
        logs = side.law.log_characteristic(rows, u, side.shift)[0].detach()
    excess = logs + torch.log(remainder(u, side.digital)) - math.log(tolerance)
    if side.pays_strike:
        excess = excess + y.detach().amax(dim=-1, keepdim=True)
    # the last point that is too large, and the chord to its successor in u^2 (convex from there on, or nearly)
    index = torch.arange(1, u.shape[-1] + 1, device=u.device) * (excess > 0.0)
    above = index.amax(dim=-1, keepdim=True).clamp(1, u.shape[-1] - 1)
    u0, u1 = u.gather(-1, above - 1), u.gather(-1, above)
    f0, f1 = excess.gather(-1, above - 1).clamp(min=0.0), excess.gather(-1, above).clamp(max=0.0)
    share = (f0 / (f0 - f1).clamp(min=1e-30)).clamp(max=1.0)
    lengths = torch.sqrt(torch.lerp(u0 * u0, u1 * u1, share)).squeeze(-1) * width / math.pi
    if not bool((lengths.isfinite() & y.detach().isfinite().all(-1)).all()):
        raise ValueError(
            "`expiry` and the parameters of the model must give the log price a law that can be told in floating "
            f"point, got a spread of {side.law.scale[rows].detach().min().item():g} to "
            f"{side.law.scale[rows].detach().max().item():g} and log(strike / forward) of {y.detach().min().item():g} "
            f"to {y.detach().max().item():g}; look for a variance or an expiry in the wrong units"
        )
    return lengths


def remainder(u: Tensor, digital: bool) -> Tensor:
    """What the terms beyond `u` add at most, per unit of the characteristic function there."""
    if digital:
        return torch.full_like(u, 2.0 / math.pi)
    return (2.0 / math.pi) * (2.0 + 1.0 / u) * torch.atan(1.0 / u)
