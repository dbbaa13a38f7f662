"""Exact lognormal paths, made without the library's engine, for tests of payoffs."""

import math

import torch

from pricers.paths import Paths


def lognormal_paths(
    times: list[float] | torch.Tensor,
    n_paths: int,
    *,
    spot: float = 100.0,
    rate: float = 0.0,
    dividend_yield: float = 0.0,
    vol: float = 0.2,
    seed: int = 0,
) -> Paths:
    """Antithetic paths at 0 and the given times."""
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), torch.as_tensor(times, dtype=torch.float64)])
    dt = grid.diff()
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(n_paths // 2, dt.shape[0], generator=generator, dtype=torch.float64)
    normals = torch.cat([normals, -normals])
    steps = (rate - dividend_yield - 0.5 * vol**2) * dt + vol * dt.sqrt() * normals
    logs = torch.cat([torch.zeros(n_paths, 1, dtype=torch.float64), steps.cumsum(-1)], dim=-1)
    return Paths(grid, spot * logs.exp(), (vol**2 * dt).expand(n_paths, -1))


def flat_discount(rate: float):
    return lambda time: torch.exp(-rate * time)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean of antithetic values, and its standard error."""
    pairs = 0.5 * (values[: values.shape[0] // 2] + values[values.shape[0] // 2 :])
    return pairs.mean().item(), (pairs.std() / math.sqrt(pairs.shape[0])).item()


def controlled_mean(values: torch.Tensor, control: torch.Tensor, known: float) -> tuple[float, float]:
    """Mean of values by regression on a control of known mean, and its standard error."""
    centred = control - control.mean()
    slope = (centred * values).sum() / (centred * centred).sum()
    return mean_and_error(values - slope * (control - known))
