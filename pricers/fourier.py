r"""Prices from a characteristic function: the COS series, and Lewis' integral to check it independently.

Everything is per unit of forward: with $X = \log(S_T / F_T)$ and $x = \log(K / F_T)$ the functions return what is out
of the money, $E(e^x - e^X)^+$ for $x \le 0$ and $E(e^X - e^x)^+$ for $x > 0$; parity gives the other side. A call is a
put on $Y = -X$ in the measure whose numeraire is the asset, so that one payoff, bounded by 1, serves both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

__all__ = ["TOLERANCE", "Law", "cos_digital", "cos_european", "lewis_european"]

TOLERANCE = 1e-11  # of each source of error, per unit of forward: far below 1e-8, so that Greeks keep eight digits too
MAX_TERMS = 2**16
BLOCK = 2**15  # cosines at a time: they stay in the cache
WIDTHS = (8.0, 12.0, 18.0, 27.0)  # standard deviations, tried in turn where no moment bounds the tails

Characteristic = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Law:
    r"""What COS must know of `n_rows` distributions of $X = \log(S_T / F_T)$.

    Args:
        log_characteristic: takes row numbers `(rows,)`, arguments `(rows, n_u)` and a shift; returns the real and the
            imaginary part of $\log E\,e^{i (u - i\,\mathrm{shift}) X}$, each `(rows, n_u)`.
        cumulants: first, second and fourth cumulant, each `(n_rows,)`; only where no `log_moment` is known
        log_moment: takes row numbers `(rows,)` and orders `(rows, n)`; returns $\log E\,e^{q X}$, infinite where the
            moment is.
        scale: typical size of X, `(n_rows,)`.
    """

    log_characteristic: Characteristic
    scale: Tensor
    cumulants: tuple[Tensor, Tensor, Tensor] | None = None
    log_moment: Callable[[Tensor, Tensor], Tensor] | None = None


def cos_european(law: Law, log_strike: Tensor, n_terms: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Calls and puts, those that are out of the money, per unit of forward.

    Beyond the range of the series the value is below the error bound, and 0.

    Args:
        law: the distributions.
        log_strike: $x = \log(K / F_T)$, shape `(n_rows, n_strikes)`.
        n_terms: length of the series; None: what each row needs for `TOLERANCE`.

    Returns:
        The values, and a bound of their error: the mass of the tails, the rest of the series, rounding.

    References:
        Fang and Oosterlee (2008), A novel pricing method for European options based on Fourier-cosine series
        expansions, eqs. 19, 22, 23; Junike and Pankrashkin (2022), Precise option pricing by the COS method: how to
        choose the truncation range (moments in place of cumulants).
    """
    below = log_strike.detach() <= 0.0
    put, put_bound = _side(law, below, log_strike, 1.0, 0.0, False, n_terms)
    call, call_bound = _side(law, ~below, -log_strike, -1.0, 1.0, False, n_terms)
    level = torch.exp(log_strike.clamp(max=0.0))
    value = torch.where(below, level * put, call).clamp(min=0.0)
    return value, torch.where(below, level.detach() * put_bound, call_bound)


def cos_digital(law: Law, log_strike: Tensor, shift: float = 0.0, n_terms: int | None = None) -> tuple[Tensor, Tensor]:
    r"""Probability to end below the strike where $x \le 0$ and above it where $x > 0$.

    Args:
        law: the distributions.
        log_strike: $x = \log(K / F_T)$, shape `(n_rows, n_strikes)`.
        shift: 0 for the pricing measure (digitals that pay cash), 1 for the asset as numeraire (that pay the asset).
        n_terms: length of the series; None: what each row needs for `TOLERANCE`.

    Returns:
        The probabilities, and a bound of their error.

    References:
        Fang and Oosterlee (2008), eqs. 19 and 23.
    """
    below = log_strike.detach() <= 0.0
    low, low_bound = _side(law, below, log_strike, 1.0, shift, True, n_terms)
    high, high_bound = _side(law, ~below, -log_strike, -1.0, shift, True, n_terms)
    return torch.where(below, low, high).clamp(0.0, 1.0), torch.where(below, low_bound, high_bound)


def _side(
    law: Law, wanted: Tensor, y: Tensor, sign: float, shift: float, digital: bool, n_terms: int | None
) -> tuple[Tensor, Tensor]:
    """The lower tail of Y = sign X at `y` where `wanted`; what is not wanted costs little."""
    zeros = torch.zeros_like(y.detach())
    if not bool(wanted.any()):
        return zeros, zeros
    axis = 0 if y.shape[0] > 1 else 1  # rows of several laws, or strikes of the only one
    keep = wanted.any(dim=1 - axis).nonzero().squeeze(-1)
    rows = keep if axis == 0 else keep.new_zeros(1)
    part = torch.where(wanted, y, zeros).index_select(axis, keep)
    value, bound = _lower_tail(law, rows, part, sign, shift, digital, n_terms)
    return zeros.index_copy(axis, keep, value), zeros.index_copy(axis, keep, bound)


def _lower_tail(
    law: Law, rows: Tensor, y: Tensor, sign: float, shift: float, digital: bool, n_terms: int | None
) -> tuple[Tensor, Tensor]:
    r"""$E(1 - e^{Y - y})^+$, or $P(Y < y)$ when `digital`, for $y \le 0$, with a bound of the error."""
    side = _Side(law, sign, shift, digital)
    lowest = y.detach().amin(dim=-1)
    tolerance = max(TOLERANCE, torch.finfo(y.dtype).eps)
    if law.log_moment is not None:
        low, high = _moment_range(law.log_moment, side, rows, lowest, tolerance)
        value, bound = _series(side, rows, low, high, y, n_terms, tolerance)
        return value, bound + 2.0 * tolerance
    value, bound = _series(side, rows, *_cumulant_range(side, rows, lowest, WIDTHS[0]), y, n_terms, tolerance)
    for width in WIDTHS[1:]:  # no bound is known: the range grows until that changes nothing
        before = value.detach()
        value, bound = _series(side, rows, *_cumulant_range(side, rows, lowest, width), y, n_terms, tolerance)
        moved = (value.detach() - before).abs()
        bound = bound + moved
        if bool((moved <= 10.0 * tolerance).all()):
            break
    return value, bound


@dataclass(frozen=True, eq=False)
class _Side:
    """Which tail of which measure: Y = `sign` X under the measure of `shift`."""

    law: Law
    sign: float
    shift: float
    digital: bool


def _moment_range(
    log_moment: Callable[[Tensor, Tensor], Tensor], side: _Side, rows: Tensor, lowest: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    r"""Ends of a range of Y outside which lies, weighted with the payoff, less than `tolerance` on each side.

    The coefficients come from the characteristic function, that is from the whole density folded into the range. A
    point $Y$ below the lower end $a$ is folded to $2a - Y$, where the payoff differs from the right one by at most
    $\min(1, e^{2a - Y - y})$; a point above the upper end $b$ matters only beyond $2b$. Markov's inequality bounds
    both by $E\,e^{\mp sY}$, and the best of several $s$ is taken.
    """
    orders = _ORDERS.to(rows.device, lowest.dtype) / side.law.scale[rows].detach().unsqueeze(-1)
    with torch.no_grad():
        both = log_moment(rows, side.shift - side.sign * torch.cat([orders, -orders], dim=-1)).detach()
    left, right = both.chunk(2, dim=-1)
    enough = math.log(tolerance)
    reach = enough - left
    plain = (reach / orders).amax(dim=-1)  # P(Y < plain) <= tolerance
    # a put is e^y times the tail, which pays for the strike
    nearest = torch.zeros_like(lowest) if side.sign > 0.0 and not side.digital else torch.maximum(lowest, plain)
    nearest = nearest.unsqueeze(-1)
    twice = (reach + orders * nearest) / (2.0 * orders)
    low = twice if side.digital else torch.where(orders < 1.0, twice, (reach + nearest) / (1.0 + orders))
    low = low.amax(dim=-1)
    high = ((right - enough) / (2.0 * orders)).amin(dim=-1)
    least = 1e-3 * side.law.scale[rows].detach()
    return torch.minimum(low, -least), torch.maximum(high, least)


_ORDERS = torch.logspace(-2.0, 1.2, 28, dtype=torch.float64)


def _cumulant_range(side: _Side, rows: Tensor, lowest: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """`width` standard deviations to both sides of the mean: Fang and Oosterlee, eq. 49."""
    if side.law.cumulants is None:
        raise ValueError("a `Law` without `log_moment` needs `cumulants`, got neither")
    first, second, fourth = (cumulant.detach()[rows] for cumulant in side.law.cumulants)
    centre = side.sign * (first + side.shift * second)
    half = width * torch.sqrt(second + torch.sqrt(fourth.clamp(min=0.0)))
    return torch.minimum(centre - half, -0.5 * half), torch.maximum(centre + half, 0.5 * half)


def _series(
    side: _Side, rows: Tensor, low: Tensor, high: Tensor, y: Tensor, n_terms: int | None, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The COS series of every row, in blocks of rows that need about as many terms."""
    lengths = _lengths(side, rows, high - low, tolerance) if n_terms is None else torch.full_like(rows, n_terms)
    order = torch.argsort(lengths)
    y = torch.minimum(torch.maximum(y, low.unsqueeze(-1)), torch.zeros_like(y))
    sizes, counts = _runs(lengths[order])
    values: list[Tensor] = []
    bounds: list[Tensor] = []
    start = 0
    for length, count in zip(sizes, counts, strict=True):
        step = max(1, BLOCK // (length + 4 * math.isqrt(length) * y.shape[-1]))
        for first in range(start, start + count, step):
            block = order[first : min(first + step, start + count)]
            value, bound = _block(side, rows[block], low[block, None], high[block, None], y[block], length)
            values.append(value)
            bounds.append(bound)
        start += count
    if len(values) == 1 and rows.numel() == 1:
        return values[0], bounds[0]
    inverse = torch.argsort(order)
    return torch.cat(values)[inverse], torch.cat(bounds)[inverse]


def _runs(ordered: Tensor) -> tuple[list[int], list[int]]:
    """The different numbers of an ascending row, and how often each occurs."""
    runs = Counter(cast("list[int]", ordered.tolist()))  # pyright: ignore[reportUnknownMemberType]
    return list(runs.keys()), list(runs.values())


def _lengths(side: _Side, rows: Tensor, width: Tensor, tolerance: float) -> Tensor:
    """Terms after which the characteristic function leaves less than `tolerance`; few different numbers."""
    u = _GRID.to(rows.device, width.dtype) / side.law.scale[rows].detach().unsqueeze(-1)
    with torch.no_grad():
        logs = side.law.log_characteristic(rows, u, side.shift)[0].detach()
    excess = logs + torch.log(_rest(u, side.digital)) - math.log(tolerance)
    # the last point that is too large, and the chord to its successor in u^2 (convex from there on, or nearly)
    index = torch.arange(1, u.shape[-1] + 1, device=u.device) * (excess > 0.0)
    above = index.amax(dim=-1, keepdim=True).clamp(1, u.shape[-1] - 1)
    u0, u1 = u.gather(-1, above - 1), u.gather(-1, above)
    f0, f1 = excess.gather(-1, above - 1).clamp(min=0.0), excess.gather(-1, above).clamp(max=0.0)
    share = (f0 / (f0 - f1).clamp(min=1e-30)).clamp(max=1.0)
    last = torch.sqrt(torch.lerp(u0 * u0, u1 * u1, share)).squeeze(-1)
    needed = (last * width / math.pi).clamp(8.0, MAX_TERMS - 1.0)
    # up to the next of 16, 24, 32, 48, 64, ...
    power = torch.exp2(torch.floor(torch.log2(needed)))
    return torch.where(needed <= 1.5 * power, 1.5 * power, 2.0 * power).to(torch.int64)


_GRID = 0.25 * 1.6 ** torch.arange(30, dtype=torch.float64)


def _rest(u: Tensor, digital: bool) -> Tensor:
    """What the terms beyond `u` add at most, per unit of the characteristic function there."""
    if digital:
        return torch.full_like(u, 2.0 / math.pi)
    return (2.0 / math.pi) * (2.0 + 1.0 / u) * torch.atan(1.0 / u)


def _block(side: _Side, rows: Tensor, low: Tensor, high: Tensor, y: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The series of `length` terms for some rows; the characteristic function is evaluated once for all strikes."""
    width = high - low
    unit = math.pi / width
    w = unit * torch.arange(1, length + 1, dtype=y.dtype, device=y.device)
    log_modulus, angle = side.law.log_characteristic(rows, w, side.shift)
    density = torch.exp(log_modulus) * torch.cos(side.sign * angle - w * low)  # eq. 19, without the factor 2 / width
    distance = y - low
    if side.digital:
        sines, cosines = density / w, torch.zeros_like(density)
        total = 0.5 * distance
    else:
        # e^-y (chi - psi) of eqs. 22 and 23 between the lower end and the strike
        cosines = density / (1.0 + w * w)
        sines = cosines / w
        edge = torch.exp(-distance)
        total = 0.5 * (distance - 1.0 + edge) + edge * cosines.sum(dim=-1, keepdim=True)
    value = (2.0 / width) * (total + _trigonometric_sum(unit * distance, sines, cosines))
    return value, _bound(side, log_modulus.detach(), w).expand_as(value)


def _trigonometric_sum(theta: Tensor, sines: Tensor, cosines: Tensor) -> Tensor:
    r"""$\sum_k s_k \sin k\theta - c_k \cos k\theta$, $k = 1, 2, \ldots$

    With $k = j + J m$ the sum is a product of matrices between $e^{ij\theta}$ and $e^{iJm\theta}$: of the order of the
    square root of the number of terms is spent on sines and cosines.

    Args:
        theta: shape `(rows, n_strikes)`.
        sines: $s_k$, shape `(rows, n_terms)`.
        cosines: $c_k$, shape `(rows, n_terms)`.
    """
    n_terms = sines.shape[-1]
    inner = 2 ** (n_terms.bit_length() // 2)
    outer = -(-n_terms // inner)
    if inner * outer > n_terms:
        missing = (0, inner * outer - n_terms)
        sines, cosines = torch.nn.functional.pad(sines, missing), torch.nn.functional.pad(cosines, missing)
    s, c = sines.reshape(-1, outer, inner), -cosines.reshape(-1, outer, inner)
    weights = torch.cat([torch.cat([c, s], dim=-1), torch.cat([-s, c], dim=-1)], dim=-2)
    theta = theta.unsqueeze(-1)
    near = theta * torch.arange(1, inner + 1, dtype=theta.dtype, device=theta.device)
    far = theta * (inner * torch.arange(outer, dtype=theta.dtype, device=theta.device))
    parts = torch.cat([torch.cos(near), torch.sin(near)], dim=-1) @ weights.mT
    return (parts * torch.cat([torch.cos(far), -torch.sin(far)], dim=-1)).sum(dim=-1)


def _bound(side: _Side, log_modulus: Tensor, w: Tensor) -> Tensor:
    """Error of the truncated series, from how the characteristic function decays over its last terms; rounding."""
    last = max(2, w.shape[-1] // 8)
    tail = log_modulus[:, -last:].amax(dim=-1, keepdim=True).exp()
    end = w[:, -1:]
    rest = tail * _rest(end, side.digital)
    if side.digital:
        # the sum of |phi| / u converges by the decay alone: as a power of u, at least
        fallen = log_modulus[:, -last:].amax(dim=-1, keepdim=True) - log_modulus[:, -1:]
        decay = fallen / torch.log(end / w[:, -last, None])
        rest = rest / decay.clamp(min=0.01)
    return rest + 64.0 * torch.finfo(w.dtype).eps


def lewis_european(
    log_characteristic: Callable[[Tensor, float], tuple[Tensor, Tensor]], log_strike: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    r"""Calls and puts, those that are out of the money, per unit of forward, by Lewis' integral: slow and independent.

    $$\frac{C}{F} = 1 - \frac{e^{x/2}}{\pi} \int_0^\infty \mathrm{Re}\bigl[e^{-iux}\,E\,e^{(1/2 + iu) X}\bigr]
      \frac{du}{u^2 + 1/4}$$

    on panels of Gauss and Legendre, halved until nothing changes.

    Args:
        log_characteristic: takes `u`, shape `(n_u,)`, and the shift 1/2; returns the real and the imaginary part.
        log_strike: $x = \log(K / F_T)$, shape `(n_strikes,)`.
        scale: typical size of X.

    Returns:
        The values, and how much the last halving moved them.

    Raises:
        ValueError: the characteristic function does not decay.

    References:
        Lewis (2001), A simple option formula for general jump-diffusion and other exponential Levy processes, eq. 3.11.
    """
    end = 1.0 / scale
    while log_characteristic(torch.tensor([end], dtype=log_strike.dtype), 0.5)[0].item() - math.log(end) > -36.0:
        end *= 1.25
        if end > 1e9 / scale:
            raise ValueError("the characteristic function must decay, its modulus is above 1e-16 at 1e9 / scale")
    start = min(0.5, 0.5 * end)  # the integrand has the width 1/2 near 0
    n_panels, before = 8, None
    while True:
        ratio = (end / start) ** (1.0 / n_panels)
        edges = [0.0, *(start * ratio**i for i in range(n_panels + 1))]
        value = _lewis(log_characteristic, log_strike, edges)
        if before is not None:
            moved = (value - before).abs().detach()
            if bool((moved < 1e-14).all()) or n_panels >= 2**13:
                return value, moved + 64.0 * torch.finfo(value.dtype).eps
        before = value
        n_panels *= 2


def _lewis(
    log_characteristic: Callable[[Tensor, float], tuple[Tensor, Tensor]], log_strike: Tensor, edges: list[float]
) -> Tensor:
    """One quadrature with 16 nodes on each panel."""
    nodes, weights = _legendre(16, log_strike)
    low = torch.tensor(edges[:-1], dtype=log_strike.dtype, device=log_strike.device)[:, None]
    half = 0.5 * (torch.tensor(edges[1:], dtype=log_strike.dtype, device=log_strike.device)[:, None] - low)
    u = (low + half * (1.0 + nodes)).flatten()
    mass = (half * weights).flatten()
    log_modulus, angle = log_characteristic(u, 0.5)
    factor = mass * torch.exp(log_modulus) / (u * u + 0.25) / math.pi
    integral = (factor * torch.cos(angle - u * log_strike.unsqueeze(-1))).sum(dim=-1)
    out_of_money = torch.exp(log_strike.clamp(max=0.0))  # the lesser of 1 and K / F
    return out_of_money - torch.exp(0.5 * log_strike) * integral


def _legendre(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [-1, 1]: eigenvalues of the Jacobi matrix (Golub and Welsch, 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4.0 * k * k - 1.0)
    eigen = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)  # pyright: ignore[reportUnknownMemberType]
    nodes, vectors = eigen(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes.to(like), (2.0 * vectors[0] ** 2).to(like)
