r"""Implied vols under rough Bergomi by simulation: one set of paths for each law serves all its expiries and strikes.

Given the Brownian motion of the variance the asset is lognormal, so that each path gives a Black price, and a second
one of known mean is its control variate (McCrickerd and Pakkanen, 2018). The vol is read off the mean price; its
standard error is that of the price over vega. Laws have noise of their own; strikes and expiries of one law share it.

**Steps.** The hybrid scheme converges slowly in the wings: at $H = 0.07$, $\eta = 1.9$ and three months the vol at
log-moneyness 0.10, where it is 15.5 %, is too high by 0.55 points with 100 steps and still by 0.2 with 312. Most of it
is the variance that is held over a step. So each path is summed a second time over every other node, and the price is
extrapolated to no step with the known weak order: 0.04 points are left with 100 steps, 0.2 with 50. It doubles the
standard error, as a quarter of the paths would; but noise averages out over the laws of a training set, bias does not.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import pricers as pr
from pricers.models.rough_bergomi import HybridScheme, mixed_samples
from pricers.noise import address
from pricers.normal import normal_density
from pricers.parameters import copied

__all__ = ["laws_of", "refusal", "rough_bergomi_labels", "smile_labels"]

CHUNK = 4096  # paths simulated at once
SAME_EXPIRY = 1e-9  # years


def refusal(instrument: pr.Instrument, model: pr.Model) -> str | None:
    """Why there are no implied vols of this pair by simulation; None if there are."""
    if not isinstance(model, pr.RoughBergomi):
        return f"implied vols are simulated under RoughBergomi, not under {type(model).__name__}"
    if not isinstance(instrument, pr.European):
        return f"an implied vol is that of a European option, not of {type(instrument).__name__}"
    return None


def laws_of(model: pr.RoughBergomi, n_rows: int, law: Tensor | None = None) -> list[tuple[int, int]]:
    """First row of each law and the one after its last: neighbouring rows with one set of parameters.

    Args:
        model: a batch of parameters.
        n_rows: number of rows.
        law: number of each row's law, shape `(n_rows,)`: laws of one set of parameters are told apart by it alone.

    >>> laws_of(pr.RoughBergomi(xi=[0.04, 0.04, 0.05], eta=1.9, hurst=0.1, rho=-0.7), 3)
    [(0, 2), (2, 3)]
    """
    varied = [value.expand(n_rows) for value in model.parameters().values() if value.ndim]
    numbers = torch.zeros(n_rows, dtype=torch.float64) if law is None else law.double()
    table = torch.stack([numbers, *(value.to(numbers) for value in varied)], dim=-1)
    starts = (table[1:] != table[:-1]).any(-1).nonzero().flatten() + 1
    return list(pairwise([0, *starts.tolist(), n_rows])) if n_rows else []


def smile_labels(
    model: pr.RoughBergomi, log_moneyness: Tensor, expiry: Tensor, n_paths: int, n_steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Implied vols of one law and their standard errors.

    Args:
        model: one set of parameters.
        log_moneyness: log(strike / forward), shape `(n,)`.
        expiry: years, shape `(n,)`; options of one expiry share its paths.
        n_paths: half of them mirror images of the other half.
        n_steps: time steps to the first expiry, and from each to the next; even.
        seed: any integer.

    Returns:
        Vols and standard errors, shape `(n,)`; both are NaN where the simulated price has no implied vol, as far in
        the wings it may.

    References:
        McCrickerd and Pakkanen (2018), Turbocharging Monte Carlo pricing for the rough Bergomi model, section 3.

    >>> model = pr.RoughBergomi(xi=0.235**2, eta=1.9, hurst=0.07, rho=-0.9)
    >>> rows = torch.tensor([-0.1787, 0.0], dtype=torch.float64), torch.tensor([0.25, 0.25], dtype=torch.float64)
    >>> vol, std_error = smile_labels(model, *rows, n_paths=4096, n_steps=78, seed=1)
    >>> bool(((vol - torch.tensor([0.2961, 0.2061])).abs() < 4 * std_error).all())  # table 2 of the paper
    True
    """
    expiries, column = _distinct(expiry)
    fine, coarse = _paths(model, expiries, n_paths, n_steps, seed)
    weight = 1.0 / (2.0 ** weak_order(model.hurst) - 1.0)
    price, error = torch.empty_like(log_moneyness), torch.empty_like(log_moneyness)
    for index in range(len(expiries)):
        rows = column == index
        samples, others = (
            mixed_samples(model.rho, paths[0, index], paths[1, index], log_moneyness[rows]) for paths in (fine, coarse)
        )
        samples = samples + weight * (samples - others)
        price[rows], error[rows] = samples.mean(-1), samples.std(-1) / samples.shape[-1] ** 0.5
    strike, root = log_moneyness.exp(), expiry.sqrt()
    calls, puts = (
        pr.implied_vol(price, 1.0, strike, expiry, option=option, errors="nan") for option in ("call", "put")
    )
    vol = torch.where(log_moneyness < 0, puts, calls)  # the price is that of the option out of the money
    vega = normal_density(0.5 * vol * root - log_moneyness / (vol * root)) * root
    return vol, error / vega


def weak_order(hurst: Tensor) -> Tensor:
    r"""Order in the step of the error of prices: $\min(3H + \tfrac12, 1)$.

    References:
        Gassiat (2023), Weak error rates of numerical schemes for rough volatility; Friz, Salkeld and Wagenhofer (2025),
        Weak error estimates for rough volatility models.
    """
    return (3.0 * hurst + 0.5).clamp(max=1.0)


def _distinct(expiry: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct expiries, ascending, and for each row which of them is its own."""
    ordered, order = expiry.sort()
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered.diff() > SAME_EXPIRY
    column = torch.empty_like(order)
    column[order] = first.cumsum(0) - 1
    return ordered[first], column


def _paths(model: pr.RoughBergomi, expiries: Tensor, n_paths: int, n_steps: int, seed: int) -> tuple[Tensor, Tensor]:
    r"""$\log m^1$ and $\int V dt$ to each expiry, mirror images side by side: shape `2 n_expiries n_paths/2 2`.

    Twice: on the grid, and on every other of its nodes.
    """
    zero = expiries.new_zeros(1)
    starts = torch.cat([zero, expiries[:-1]])
    share = torch.arange(1, n_steps + 1, dtype=expiries.dtype, device=expiries.device) / n_steps
    inner = starts.unsqueeze(-1) + (expiries - starts).unsqueeze(-1) * share
    grid, scheme = torch.cat([zero, inner.flatten()]), HybridScheme()
    rho, dt = model.rho.float(), grid.diff().float().unsqueeze(-1)
    found: list[list[Tensor]] = [[], []]
    for number, start in enumerate(range(0, n_paths, CHUNK)):
        width = min(CHUNK, n_paths - start)
        generator = torch.Generator(device=expiries.device).manual_seed(address("rough labels", seed, number))
        # single precision rounds a thousand times below the noise of any label, at half the time
        shape = (len(grid) - 1, scheme.n_normals, width // 2)
        half = torch.randn(shape, generator=generator, dtype=torch.float32, device=expiries.device)
        normals = torch.cat([half, -half], dim=-1)
        variance, brownian = scheme.variances(model, grid, normals), normals[:, 0] * dt.sqrt()
        held = variance[::2].repeat_interleave(2, dim=0)  # the variance of every other node, over two steps
        for parts, level in zip(found, (variance, held), strict=True):
            total = level * dt
            steps = torch.stack([rho * level.sqrt() * brownian - 0.5 * rho**2 * total, total])
            sums = steps.reshape(2, len(expiries), n_steps, width).sum(2).double().cumsum(1)
            parts.append(torch.stack(sums.chunk(2, dim=-1), dim=-1))
    fine, coarse = (torch.cat(parts, dim=-2) for parts in found)
    return fine, coarse


def rough_bergomi_labels(
    instrument: pr.Instrument,
    model: pr.Model,
    market: pr.Market,
    rows: tuple[int, int],
    n_paths: int,
    n_steps: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Implied vols and standard errors of the rows `start` to `end` of a batch, which are of one law."""
    assert isinstance(instrument, pr.European)
    start, end = rows
    parameters = {name: value[start] for name, value in model.parameters().items() if value.ndim}
    moneyness = torch.log(instrument.strike / market.forward(instrument.expiry))
    log_moneyness, expiry = (
        column.expand(end) if column.ndim == 0 else column for column in (moneyness, instrument.expiry)
    )
    return smile_labels(
        copied(model, **parameters),  # pyright: ignore[reportArgumentType]
        log_moneyness[start:end],
        expiry[start:end],
        n_paths,
        n_steps,
        seed,
    )
