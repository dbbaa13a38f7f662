"""The COS series."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pricers.fourier.truncation import (
    MAX_TERMS,
    TOLERANCE,
    Law,
    Side,
    cumulant_range,
    moment_range,
    remainder,
    series_lengths,
)
from pricers.parallel import one_thread

__all__ = ["cos_digital", "cos_european"]

BLOCK = 2**15  # cosines at a time: they stay in the cache
WASTE = 2048  # terms that are cheaper to evaluate in vain than another block
DEAR = 768  # terms from which on the other side of the parity is looked at
WIDTHS = (8.0, 12.0, 18.0, 27.0)  # standard deviations, tried in turn where no moment bounds the tails


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
    put = _wanted(Side(law, 1.0, 0.0, digital=False), below, log_strike, n_terms)
    call = _wanted(Side(law, -1.0, 1.0, digital=False), ~below, -log_strike, n_terms)
    level = torch.exp(log_strike.clamp(max=0.0))
    value = torch.where(below, level * put.value, call.value)
    bound = torch.where(below, level.detach() * put.rest + put.mass, call.rest + call.mass)
    # arbitrage allows values from 0 to the level
    return torch.minimum(value.clamp(min=0.0), level), torch.minimum(bound, level.detach())


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
    low = _wanted(Side(law, 1.0, shift, digital=True), below, log_strike, n_terms)
    high = _wanted(Side(law, -1.0, shift, digital=True), ~below, -log_strike, n_terms)
    value, bound = (
        torch.where(below, low.value, high.value),
        torch.where(below, low.rest + low.mass, high.rest + high.mass),
    )
    return value.clamp(0.0, 1.0), bound.clamp(max=1.0)


def _wanted(side: Side, wanted: Tensor, y: Tensor, n_terms: int | None) -> Tail:
    """The tail at `y` where `wanted`; what is not wanted costs little."""
    zeros = torch.zeros_like(y.detach())
    if not bool(wanted.any()):
        return Tail(zeros, zeros, zeros)
    axis = 0 if y.shape[0] > 1 else 1  # rows of several laws, or strikes of the only one
    keep = wanted.any(dim=1 - axis).nonzero().squeeze(-1)
    rows = keep if axis == 0 else keep.new_zeros(1)
    part = torch.where(wanted, y, zeros).index_select(axis, keep)
    several = side.law.scale.numel() > 1  # then the work comes in blocks for the cache of one core
    with one_thread() if several else nullcontext():
        tail = (_tail if side.law.log_moment is not None else _tail_by_trial)(side, rows, part, n_terms)
    return Tail(*(zeros.index_copy(axis, keep, piece.expand_as(part)) for piece in tail))


class Tail(NamedTuple):
    """A tail of some rows at some strikes."""

    value: Tensor
    rest: Tensor  # what the series leaves out, and rounding, at most
    mass: Tensor  # what lies outside its range at most, per unit of forward


def _tail(side: Side, rows: Tensor, y: Tensor, n_terms: int | None) -> Tail:
    """The tail at `y`, from the other measure by parity in those rows where that needs far fewer terms."""
    plan = _planned(side, rows, y)
    dear = (plan.lengths > DEAR).nonzero().squeeze(-1)
    if dear.numel() == 0:
        return _series(side, plan, n_terms)
    other, mirrored = side.other, y[dear] if side.digital else -y[dear]
    turned = _planned(other, rows[dear], mirrored)
    better = (2.0 * turned.lengths <= plan.lengths[dear]) | (turned.mass < plan.mass[dear])
    fewer = better.nonzero().squeeze(-1)
    if fewer.numel() == 0:
        return _series(side, plan, n_terms)
    turn = dear[fewer]
    parity = _digital_parity if side.digital else _parity
    tail = parity(side, rows[turn], y[turn], _series(other, turned.of(fewer), n_terms), n_terms)
    straight = torch.ones_like(rows, dtype=torch.bool).index_fill(0, turn, False).nonzero().squeeze(-1)
    if straight.numel() == 0:
        return tail
    others = _series(side, plan.of(straight), n_terms)
    back = torch.argsort(torch.cat([turn, straight]))
    return Tail(*(torch.cat([one.expand_as(y[turn]), two])[back] for one, two in zip(tail, others, strict=True)))


def _parity(side: Side, rows: Tensor, y: Tensor, tail: Tail, n_terms: int | None) -> Tail:
    """Put from call or call from put, per unit of what `side` pays."""
    level = torch.exp(-y)
    rest = level.detach() * (tail.rest + 4.0 * torch.finfo(y.dtype).eps)
    return Tail(level * tail.value + 1.0 - level, rest, tail.mass)


def _digital_parity(side: Side, rows: Tensor, y: Tensor, tail: Tail, n_terms: int | None) -> Tail:
    """A probability from that in the other measure and an option: put = K P(X < x) - F P'(X < x), and so for calls."""
    own = side.shift == (0.0 if side.sign > 0.0 else 1.0)  # the measure in which `option` is a put
    option = _tail(Side(side.law, side.sign, side.shift if own else 1.0 - side.shift, False), rows, y, n_terms)
    level, mass = torch.exp(-y), option.mass + tail.mass
    if own:
        rest = option.rest + level.detach() * tail.rest
        return Tail(option.value + level * tail.value, rest, level.detach() * mass)
    return Tail((tail.value - option.value) / level, (tail.rest + option.rest) / level.detach(), mass)


def _tail_by_trial(side: Side, rows: Tensor, y: Tensor, n_terms: int | None) -> Tail:
    """The tail at `y` where no moment bounds it: the range grows until that changes nothing."""
    tolerance = _tolerance(y.dtype)
    tail = before = None
    for width in WIDTHS:
        low, high = cumulant_range(side, rows, width)
        low = torch.minimum(low, 1.01 * y.detach().amin(dim=-1))
        plan = Plan(rows, y, low, high, series_lengths(side, rows, high - low, y, tolerance), torch.zeros_like(low))
        tail = _series(side, plan, n_terms)
        if before is not None:
            tail = tail._replace(rest=tail.rest + (tail.value.detach() - before).abs())
            if bool((tail.value.detach() - before).abs().le(10.0 * tolerance).all()):
                break
        before = tail.value.detach()
    return cast("Tail", tail)


class Plan(NamedTuple):
    """Range and length of the series of some rows."""

    rows: Tensor
    y: Tensor
    low: Tensor
    high: Tensor
    lengths: Tensor
    mass: Tensor

    def of(self, index: Tensor) -> Plan:
        """The plan of the rows at `index`."""
        return Plan(*(piece[index] for piece in self))


def _planned(side: Side, rows: Tensor, y: Tensor) -> Plan:
    tolerance = _tolerance(y.dtype)
    low, high, mass = moment_range(side, rows, y, tolerance)
    return Plan(rows, y, low, high, series_lengths(side, rows, high - low, y, tolerance), mass)


def _tolerance(dtype: torch.dtype) -> float:
    return max(TOLERANCE, torch.finfo(dtype).eps)


def _series(side: Side, plan: Plan, n_terms: int | None) -> Tail:
    """The COS series of every row, in blocks of rows that need about as many terms; and a bound of the error."""
    order = torch.argsort(plan.lengths, descending=True)
    wanted = plan.lengths[order].ceil().clamp(8.0, MAX_TERMS)
    if n_terms is not None:
        wanted = torch.full_like(wanted, float(n_terms))
    lengths = cast("list[float]", wanted.tolist())
    groups = _groups(lengths, plan.y.shape[-1])
    tails = [_block(side, plan.of(order[first:last]), length) for first, last, length in groups]
    if len(tails) == 1 and len(order) == 1:
        return tails[0]
    back = torch.argsort(order)
    return Tail(*(torch.cat(pieces)[back] for pieces in zip(*tails, strict=True)))


def _groups(lengths: list[float], n_strikes: int) -> Iterator[tuple[int, int, int]]:
    """First row, end and length of groups of rows, of descending lengths, that fit into a block and waste little."""
    first, wasted = 0, 0.0
    for i, length in enumerate(lengths):
        longest = lengths[first]
        wasted += longest - length
        full = (i + 1 - first) * (longest + 4.0 * math.sqrt(longest) * n_strikes) > BLOCK
        if i > first and (full or wasted > WASTE):
            yield first, i, int(longest)
            first, wasted = i, 0.0
    yield first, len(lengths), int(lengths[first])


def _block(side: Side, plan: Plan, length: int) -> Tail:
    """The series of `length` terms for some rows; the characteristic function is evaluated once for all strikes."""
    low, width = plan.low.unsqueeze(-1), (plan.high - plan.low).unsqueeze(-1)
    y = torch.minimum(torch.maximum(plan.y, low), plan.high.unsqueeze(-1))
    unit = math.pi / width
    w = unit * torch.arange(1, length + 1, dtype=y.dtype, device=y.device)
    log_modulus, angle = side.law.log_characteristic(plan.rows, w, side.shift)
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
    bound = _bound(side, log_modulus.detach(), w).expand_as(value)
    return Tail(value, bound, plan.mass.unsqueeze(-1).expand_as(value))


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


def _bound(side: Side, log_modulus: Tensor, w: Tensor) -> Tensor:
    """Error of the truncated series, from how the characteristic function decays over its last terms; rounding."""
    last = max(2, w.shape[-1] // 8)
    tail = log_modulus[:, -last:].amax(dim=-1, keepdim=True).exp()
    end = w[:, -1:]
    rest = tail * remainder(end, side.digital)
    if side.digital:
        # the sum of |phi| / u converges by the decay alone: as a power of u, at least
        fallen = log_modulus[:, -last:].amax(dim=-1, keepdim=True) - log_modulus[:, -1:]
        decay = fallen / torch.log(end / w[:, -last, None])
        rest = rest / decay.clamp(min=0.01)
    return rest + 64.0 * torch.finfo(w.dtype).eps
