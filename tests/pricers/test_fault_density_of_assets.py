"""The density of several assets is the multivariate normal one, with the term that makes its score average out."""

import torch
from torch.distributions import MultivariateNormal

import pricers as pr
from pricers.monte_carlo.likelihood import _log_density, record_weighted

CORRELATION = [[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 1.0]]
N = 4096


def test_log_density_is_the_multivariate_normal_one():
    generator = torch.Generator().manual_seed(1)
    gaps = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    constant = []
    for deviation, correlation in ((0.2, 0.5), (0.7, 0.5), (0.7, -0.4)):
        deviations = deviation * torch.tensor([1.0, 1.5, 0.3], dtype=torch.float64)
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[0, 1] = matrix[1, 0] = correlation
        root = torch.linalg.cholesky(matrix)
        exact = MultivariateNormal(gaps.new_zeros(3), scale_tril=deviations.unsqueeze(-1) * root).log_prob(gaps.T)
        constant.append(exact - _log_density(gaps, deviations.unsqueeze(-1), root))
    # one constant, whatever the gap, the deviations and the correlation
    constant = torch.stack(constant)
    torch.testing.assert_close(constant, constant[:1, :1].expand_as(constant), rtol=1e-12, atol=1e-12)


def test_one_asset_has_the_normal_density():
    gaps = torch.tensor([-0.4, 0.0, 1.3], dtype=torch.float64)
    constant = []
    for deviation in (0.2, 0.7):
        exact = torch.distributions.Normal(gaps.new_zeros(()), gaps.new_tensor(deviation)).log_prob(gaps)
        constant.append(exact - _log_density(gaps, torch.tensor([deviation], dtype=torch.float64), None))
    constant = torch.cat(constant)
    torch.testing.assert_close(constant, constant[:1].expand_as(constant), rtol=1e-12, atol=1e-12)


def test_scores_of_volatility_and_correlation_average_to_zero():
    vols = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    correlation = torch.tensor(CORRELATION, dtype=torch.float64, requires_grad=True)
    model = pr.BlackScholes(vols, correlation=correlation)
    market = pr.Market([100.0, 100.0, 100.0], 0.05)
    contract = pr.Basket(100.0, 1.0, weights=[1.0, 1.0, 1.0])
    sampler = pr.MonteCarlo(N, seed=1).sampler(contract, model, market)
    _, density = record_weighted(sampler.plan, sampler.normals(0, 0, N, weighted=True), N)
    by_vol, by_correlation = torch.autograd.grad(density.mean(), (vols, correlation))
    # one score has a deviation of some 3 / vol, and of some 2 for a correlation
    assert (by_vol.abs() < 5.0 * 3.0 / vols.detach() / N**0.5).all()
    assert (by_correlation.abs() < 5.0 * 2.0 / N**0.5).all()
