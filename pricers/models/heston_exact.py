r"""Exact simulation of Heston: the variance after a step and its integral from tables of their quantiles."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pricers.market import Market
from pricers.models.base import Scheme, State, Step
from pricers.models.heston_exact_law import MOST_COUNTS, integral_quantiles, too_short, variance_quantiles

__all__ = ["Exact", "bicubic", "tables"]

NORMAL_REACH = 8.0  # quantiles of the variance are tabulated for normals up to here
NORMAL_STEP = 1.0 / 64.0
INTEGRAL_REACH = 6.0  # the same for its integral
INTEGRAL_STEP = 1.0 / 64.0
STATE_STEP = 0.03  # between the states of a table near 0, in roots of natural units
STATE_GROWTH = 0.8  # of the distance further up
VARIANCE_REACH = 7.0  # standard deviations of the root of the variance that the table covers
LONGEST = 50.0  # years over which the variance may spread
NO_GRADIENT = "the scheme 'exact' has no gradient in dates, nor in the model beyond `v0`; use scheme='qe-m' for those"


class Tables(NamedTuple):
    """Quantiles in three tables, rows even in the root of what they depend on, and the units of those roots."""

    variance: Tensor
    by_sum: Tensor
    by_argument: Tensor
    variance_unit: float
    sum_unit: float
    argument_unit: float


@lru_cache(maxsize=64)
def tables(kappa: float, theta: float, sigma: float, dt: float, highest: float) -> Tables:
    """Tables for a step, for variances up to `highest`."""
    double = -(sigma**2) * math.expm1(-kappa * dt) / (2.0 * kappa)
    variance_unit = double * math.exp(kappa * dt)
    sum_unit = 0.25 * sigma**2 * dt
    argument_unit = 0.5 * sigma**2 * math.sinh(0.5 * kappa * dt) / kappa
    if highest / variance_unit > MOST_COUNTS:
        raise ValueError(too_short(dt, sigma))
    roots = _nodes(highest / variance_unit) * math.sqrt(variance_unit)
    sums, arguments = _nodes(2.0 * highest / sum_unit) ** 2 * sum_unit, _nodes(highest / argument_unit) ** 2
    normals = _normals(INTEGRAL_REACH, INTEGRAL_STEP)
    # the second node is 0, the first mirrors the third
    first, second = integral_quantiles(kappa, theta, sigma, dt, sums[1:], arguments[1:], normals)
    variance = variance_quantiles(kappa, theta, sigma, dt, roots[1:], _normals(NORMAL_REACH, NORMAL_STEP))
    variance, first, second = (torch.cat([table[1:2], table]) for table in (variance, first, second))
    return Tables(variance, first, second, variance_unit, sum_unit, argument_unit)


def _tables_on_one_core(kappa: float, theta: float, sigma: float, dt: float, highest: float) -> Tables:
    """`tables` without the threads of a single operation, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tables(kappa, theta, sigma, dt, highest)
    finally:
        torch.set_num_threads(before)


def _nodes(highest: float) -> Tensor:
    """Roots of states around 0 to beyond `highest`, in natural units: the second is 0, the first mirrors the third."""
    count = math.ceil(math.asinh(STATE_GROWTH * math.sqrt(highest)) / (STATE_GROWTH * STATE_STEP)) + 4
    place = (torch.arange(count, dtype=torch.float64) - 1.0).abs()
    return torch.sinh(place * (STATE_GROWTH * STATE_STEP)) / STATE_GROWTH


def _place(root: Tensor) -> Tensor:
    """Where a root in natural units lies among `_nodes`."""
    return torch.asinh(STATE_GROWTH * root) / (STATE_GROWTH * STATE_STEP)


def _normals(reach: float, step: float) -> Tensor:
    return (torch.arange(round(2.0 * reach / step) + 3, dtype=torch.float64) - 1.0) * step - reach


def bicubic(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A table at fractional places, in units of its spacing and counted from its second row and column.

    Args:
        table: shape `*batch n_rows n_columns`.
        row: 0 or more, shape `*batch paths`; beyond the table its last cubic goes on.
        column: the same.

    >>> squares = torch.arange(-1.0, 5.0)[:, None] ** 2 * torch.ones(6)
    >>> bicubic(squares, torch.tensor([1.5]), torch.tensor([0.3]))
    tensor([2.2500])
    """
    n_rows, n_columns = table.shape[-2:]
    whole_row = row.detach().floor().clamp(max=n_rows - 4)
    whole_column = column.detach().floor().clamp(max=n_columns - 4)
    start = (whole_row * n_columns + whole_column).to(torch.int64)
    flat = table.flatten(-2).expand(*start.shape[:-1], -1)
    across = _weights(column - whole_column)
    total = torch.zeros_like(row)
    for down, weight in enumerate(_weights(row - whole_row)):
        inner = torch.zeros_like(row)
        for right, share in enumerate(across):
            inner = inner + share * flat.gather(-1, start + (down * n_columns + right))
        total = total + weight * inner
    return total


def _weights(share: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cubic Lagrange weights of four neighbours at `share` between the two in the middle."""
    up, down, rest = 1.0 + share, 1.0 - share, 2.0 - share
    return -share * down * rest / 6.0, 0.5 * up * down * rest, 0.5 * up * share * rest, -up * share * down / 6.0


class Exact(Scheme):
    r"""The next variance and its integral from their exact laws, by tables of quantiles: no bias at any step.

    With $v$ and $w$ the variance at both ends of a step, $\int v\,dt$ is the sum of two independent numbers, the law
    of one given by $v + w$ and of the other by $v w$. So a step needs three bicubic look-ups. The tables are built from
    numbers: of the model's parameters only `v0` has a gradient.

    References:
        Broadie and Kaya (2006), Exact simulation of stochastic volatility and other affine jump diffusion processes.
        Glasserman and Kim (2011), Gamma expansion of the Heston stochastic volatility model.
    """

    n_normals: ClassVar[int] = 3
    exact: ClassVar[bool] = True

    def start(self, model: Any) -> State:
        """Today's variance."""
        return (model.v0.unsqueeze(-1),)

    def coefficients(self, model: Any, market: Market, time: Tensor, dt: Tensor) -> State:
        """The tables for the length of the step, and the numbers that belong to them."""
        names = ("kappa", "theta", "sigma", "rho", "v0")
        parameters = [getattr(model, name) for name in names]
        batch = model.batch_shape
        rows = torch.stack([parameter.expand(batch).reshape(-1) for parameter in parameters], dim=-1).double().tolist()
        length = round(dt.item(), 12)
        found = [_coefficients(kappa, theta, sigma, rho, v0, length) for kappa, theta, sigma, rho, v0 in rows]
        *tables_, last = (_stacked(column, batch).to(model.v0) for column in zip(*found, strict=True))
        for tensor in (dt, *parameters[:4]):  # adds 0, but refuses to be differentiated
            last = last + 0.0 * _Constant.apply(tensor).unsqueeze(-1).to(model.v0)
        return *tables_, last

    def advance(self, coefficients: State, log_ratio: Tensor, state: State, normals: Tensor) -> Step:
        """The variance and the two parts of its integral by their quantiles."""
        quantiles, first, second, variance_unit, sum_unit, argument_unit, k0, leverage, weight, left = coefficients
        (before,) = state
        before = before.expand(*log_ratio.shape[:-1], normals.shape[-1])
        across = (normals[0].clamp(-NORMAL_REACH, NORMAL_REACH) + NORMAL_REACH) / NORMAL_STEP
        after = bicubic(quantiles, _place(torch.sqrt(before * variance_unit)), across.expand_as(before)).clamp(min=0.0)
        across = (normals[1:].clamp(-INTEGRAL_REACH, INTEGRAL_REACH) + INTEGRAL_REACH) / INTEGRAL_STEP
        integral = bicubic(first, _place(torch.sqrt((before + after) * sum_unit)), across[0].expand_as(before))
        argument = _place(torch.sqrt(torch.sqrt(before * after) * argument_unit))
        integral = integral + bicubic(second, argument, across[1].expand_as(before))
        integral = integral.clamp(min=0.0)
        drift = k0 + leverage * (after - before) + weight * integral
        return Step((after,), drift, left * integral, integral)


class _Constant(torch.autograd.Function):
    """The same number, of which no derivative may be taken."""

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise ValueError(NO_GRADIENT)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise ValueError(NO_GRADIENT)


def _coefficients(kappa: float, theta: float, sigma: float, rho: float, v0: float, dt: float) -> tuple[Tensor, ...]:
    spread = 0.5 * sigma * math.sqrt(-math.expm1(-kappa * LONGEST) / kappa)
    highest = (math.sqrt(max(v0, theta)) + VARIANCE_REACH * spread) ** 2
    # A thread of its own has no derivative in progress, which would get into the cached tables.
    with ThreadPoolExecutor(1) as alone:
        table = alone.submit(_tables_on_one_core, kappa, theta, sigma, dt, highest).result()
    leverage = rho / sigma
    numbers = (
        1.0 / table.variance_unit, 1.0 / table.sum_unit, 1.0 / table.argument_unit,
        -leverage * kappa * theta * dt, leverage, kappa * leverage - 0.5, 1.0 - rho**2,
    )  # fmt: skip
    scalars = (torch.tensor([number], dtype=torch.float64) for number in numbers)
    return table.variance, table.by_sum, table.by_argument, *scalars


def _stacked(column: tuple[Tensor, ...], batch: torch.Size) -> Tensor:
    """Tensors of one kind for each element of a batch; tables with fewer rows repeat their last one."""
    n_rows = max(tensor.shape[0] for tensor in column)
    padded = [torch.cat([tensor, tensor[-1:].expand(n_rows - tensor.shape[0], *tensor.shape[1:])]) for tensor in column]
    return torch.stack(padded).reshape(*batch, *padded[0].shape)
