"""The sampler against densities whose moments are known, its diagnostics against processes whose answer is known."""

import math

import numpy as np
import pytest
import torch

from qfml.calibration.chains import effective_sample_size, split_r_hat
from qfml.calibration.hamiltonian import hamiltonian


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(n)]


def test_correlated_normal_densities_have_their_moments() -> None:
    covariance = torch.tensor([[[4.0, 1.8], [1.8, 1.0]], [[0.01, 0.0], [0.0, 9.0]]], dtype=torch.float64)
    mean = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    precision = torch.linalg.inv(covariance)

    def density(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = -(precision[index] @ (x - mean[index])[..., None])[..., 0]
        return 0.5 * ((x - mean[index]) * gradient).sum(-1), gradient

    start = mean[:, None].expand(2, 16, 2).clone()
    unit = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)  # a poor guess: the warm-up has to find the covariance
    chains = hamiltonian(density, start, unit, generators(2), n_draws=200, n_warmup=120)
    pooled = chains.draws.flatten(1, 2)
    ess = effective_sample_size(chains.draws.movedim(-1, 1))
    assert (split_r_hat(chains.draws.movedim(-1, 1)) < 1.02).all()
    assert (ess > 800).all()
    std = torch.diagonal(covariance, dim1=1, dim2=2).sqrt()
    assert ((pooled.mean(1) - mean).abs() < 4 * std / ess.sqrt()).all()
    for own, truth in zip(pooled, covariance):
        scale = torch.outer(truth.diagonal(), truth.diagonal()).sqrt()
        assert ((own.T.cov() - truth).abs() / scale).max() < 4 * math.sqrt(2 / 800)
    assert ((chains.accept > 0.6) & (chains.accept < 0.95)).all()
    assert chains.divergences.tolist() == [0, 0]


def test_banana_has_its_moments() -> None:
    """Haario's banana: (u, v + b u^2) of independent normals u and v, whose moments are polynomials."""
    b, spread = 0.5, 1.5

    def density(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        u, v = x[:, 0] / spread, x[:, 1] - b * x[:, 0].square()
        gradient = torch.stack([-u / spread + 2 * b * x[:, 0] * v, -v], dim=-1)
        return -0.5 * (u * u + v * v), gradient

    start = torch.randn(1, 32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = torch.eye(2, dtype=torch.float64)[None]
    chains = hamiltonian(density, start, unit, generators(1), n_draws=150, n_warmup=100, target_accept=0.9)
    draws = chains.draws[0].flatten(0, 1)
    ess = effective_sample_size(chains.draws.movedim(-1, 1))[0]
    assert (ess > 300).all()
    assert abs(draws[:, 0].mean()) < 4 * spread / ess[0].sqrt()
    std = math.sqrt(1 + 2 * b**2 * spread**4)
    assert abs(draws[:, 1].mean() - b * spread**2) < 4 * std / ess[1].sqrt()
    assert abs(draws[:, 0].std() / spread - 1) < 0.1
    assert abs(draws[:, 1].std() / std - 1) < 0.2


def test_density_draws_the_same_alone_and_beside_others() -> None:
    def density(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = (1.0 + index)[:, None]
        return -0.5 * (x / scale).square().sum(-1), -x / scale**2

    start, unit = torch.ones(3, 2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    three = hamiltonian(density, start, unit, generators(3), n_draws=15, n_warmup=10)
    one = hamiltonian(density, start[:1], unit[:1], generators(1), n_draws=15, n_warmup=10)
    torch.testing.assert_close(three.draws[:1], one.draws, rtol=1e-9, atol=1e-12)


def test_edge_of_the_density_is_never_crossed_and_counts_as_divergent() -> None:
    """A half normal that does not say where it ends: beyond 0 there is NaN."""

    def density(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inside = x[:, 0] > 0
        return torch.where(inside, -0.5 * x[:, 0].square(), math.nan), torch.where(inside[:, None], -x, math.nan)

    start, unit = torch.ones(1, 64, 1, dtype=torch.float64), torch.eye(1, dtype=torch.float64)[None]
    chains = hamiltonian(density, start, unit, generators(1), n_draws=150, n_warmup=50, target_accept=0.5)
    assert chains.draws.isfinite().all()
    assert (chains.draws > 0).all()
    assert chains.divergences[0] > 50
    assert abs(chains.draws.mean() - math.sqrt(2 / math.pi)) < 0.06


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.4])
def test_effective_sample_size_of_an_autoregression(rho: float) -> None:
    """The mean of an AR(1) is as sure as that of n (1 - rho) / (1 + rho) independent draws."""
    noise = np.random.default_rng(5).standard_normal((4, 20_000))
    series = np.empty_like(noise)
    series[:, 0] = noise[:, 0] / math.sqrt(1 - rho**2)
    for i in range(1, noise.shape[1]):
        series[:, i] = rho * series[:, i - 1] + noise[:, i]
    found = float(effective_sample_size(torch.from_numpy(series)))
    assert found == pytest.approx(series.size * (1 - rho) / (1 + rho), rel=0.1)


def test_r_hat_sees_chains_apart_chains_of_other_spread_and_trends() -> None:
    white = torch.randn(4, 1000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    apart, wide = white.clone(), white.clone()
    apart[0] += 1.0
    wide[0] *= 3.0
    trend = white + torch.linspace(-1, 1, 1000, dtype=torch.float64)
    found = split_r_hat(torch.stack([white, apart, wide, trend]))
    assert found[0] < 1.01
    assert (found[1:] > 1.05).all()
    assert split_r_hat(white.exp()) == pytest.approx(float(split_r_hat(white)), abs=2e-3)
    assert split_r_hat(torch.full((2, 10), math.nan)).isnan()
