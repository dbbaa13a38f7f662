"""Rough Bergomi: the hybrid scheme against its paper and exact integrals, the smile against published values."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from pricers.models.rough_bergomi import (
    BLOCK,
    ForwardVarianceCurve,
    HybridScheme,
    RoughBergomi,
    _conditional_paths,
    turbocharged_price,
    volterra_weights,
)

# McCrickerd and Pakkanen (2018), Turbocharging Monte Carlo pricing for the rough Bergomi model, table 2
PAPER_STRIKES, PAPER_VOLS = [-0.1787, 0.0, 0.1041], [0.2961, 0.2061, 0.1576]
# The same right wing by number of steps, recomputed with standard errors below 0.00014
RIGHT_WING = {78: 0.1616, 312: 0.1574, 1000: 0.1557, 3000: 0.1553}


def double(value):
    return torch.tensor(value, dtype=torch.float64)


PAPER = {"xi": double(0.235**2), "eta": double(1.9), "hurst": double(0.07), "rho": double(-0.9)}
UNIFORM = torch.linspace(0.0, 0.25, 41, dtype=torch.float64)
GRADED = 0.7 * torch.linspace(0.0, 1.0, 31, dtype=torch.float64) ** 1.5
UNEVEN = double([0.0, 0.1, 0.2, 0.25, 0.26, 0.5, 0.9, 1.0])


def implied(log_moneyness, price, expiry):
    """Implied vol of an out-of-the-money price per unit of forward, by scipy alone."""

    def gap(vol):
        deviation = vol * math.sqrt(expiry)
        sign = -1.0 if log_moneyness < 0 else 1.0
        upper = -log_moneyness / deviation + deviation / 2
        return sign * (norm.cdf(sign * upper) - math.exp(log_moneyness) * norm.cdf(sign * (upper - deviation))) - price

    return brentq(gap, 1e-4, 5.0, xtol=1e-12)


def implied_with_error(log_moneyness, price, std_error, expiry):
    high = implied(log_moneyness, price + std_error, expiry)
    low = implied(log_moneyness, price - std_error, expiry)
    return implied(log_moneyness, price, expiry), (high - low) / 2


@pytest.mark.parametrize("hurst", [0.03, 0.07, 0.3, 0.49])
def test_weights_on_a_uniform_grid_are_those_of_the_hybrid_scheme(hurst):
    """Bennedsen, Lunde and Pakkanen (2017), proposition 2.8, with steps of dt = T / n at T other than 1."""
    n, alpha = UNIFORM.shape[0] - 1, hurst - 0.5
    dt = 0.25 / n
    weights, fresh = volterra_weights(double(hurst), UNIFORM)
    for i in range(n):
        for k in range(i):
            j = i - k + 1  # lag, counted from the newest step as 1
            optimal = ((j ** (alpha + 1) - (j - 1) ** (alpha + 1)) / (alpha + 1)) ** (1 / alpha)
            expected = math.sqrt(2 * hurst) * (optimal * dt) ** alpha * math.sqrt(dt)
            assert weights[i, k].item() == pytest.approx(expected, rel=1e-11)
    newest = weights.diagonal().square() + fresh.square()
    torch.testing.assert_close(newest, torch.full_like(newest, dt ** (2 * hurst)), rtol=1e-13, atol=0.0)
    assert bool((weights.triu(1) == 0).all())


@pytest.mark.parametrize("hurst", [0.02, 0.1, 0.4, 0.5])
def test_weights_on_any_grid_are_covariances_with_the_brownian_increments(hurst):
    weights, _ = volterra_weights(double(hurst), UNEVEN)
    times = UNEVEN.tolist()
    for i in range(1, len(times)):
        for k in range(1, i + 1):
            start, end = mpmath.mpf(times[k - 1]), mpmath.mpf(times[k])
            covariance = mpmath.sqrt(2 * hurst) * mpmath.quad(
                lambda s, t=times[i]: (t - s) ** (hurst - 0.5), [start, (start + end) / 2, end]
            )
            if k == i:  # the quadrature cannot see the singularity at the end of the newest step
                covariance = mpmath.sqrt(2 * hurst) * (end - start) ** (hurst + 0.5) / (hurst + 0.5)
            expected = float(covariance / mpmath.sqrt(end - start))
            assert weights[i - 1, k - 1].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("grid", [UNIFORM, GRADED], ids=["uniform", "graded"])
@pytest.mark.parametrize("hurst", [0.01, 0.07, 0.3, 0.5])
def test_variance_of_the_volterra_process_is_the_power_of_time(hurst, grid):
    weights, fresh = volterra_weights(double(hurst), grid)
    ratio = (weights.square().sum(-1) + fresh.square()) / grid[1:] ** (2 * hurst)
    # A projection cannot add variance; what it loses is known to be a tenth of a percent at worst
    assert ratio.max() <= 1.0 + 1e-12
    assert ratio.min() >= 1.0 - 1.5e-3
    assert ratio[0].item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 1.5], ids=["uniform", "graded"])
@pytest.mark.parametrize("hurst", [0.1, 0.3])
def test_variance_converges_at_twice_the_hurst_exponent(hurst, power):
    losses = []
    sizes = [64, 128, 256, 512]
    for n in sizes:
        grid = torch.linspace(0.0, 1.0, n + 1, dtype=torch.float64) ** power
        weights, fresh = volterra_weights(double(hurst), grid)
        losses.append(1.0 - (weights[-1].square().sum() + fresh[-1].square()).item())
    slope = math.log(losses[0] / losses[-1]) / math.log(sizes[-1] / sizes[0])
    assert slope == pytest.approx(2 * hurst, abs=0.05)


@pytest.mark.parametrize("grid", [UNIFORM, GRADED, UNEVEN], ids=["uniform", "graded", "uneven"])
@pytest.mark.parametrize("horizon", [0.25, 1.0, 3.0])
def test_mean_variance_is_the_forward_variance_on_every_date(grid, horizon):
    """log V is linear in the normals: unit vectors give its variance, zero its mean, and E V follows without noise."""
    grid = grid * (horizon / grid[-1])
    model = RoughBergomi(**PAPER)
    n_normals = 2 * (grid.shape[0] - 1)
    vectors = torch.cat([torch.zeros(n_normals, 1, dtype=torch.float64), torch.eye(n_normals, dtype=torch.float64)], 1)
    logs = HybridScheme().variances(model, grid, vectors.reshape(-1, 2, n_normals + 1)).log()
    log_mean = logs[:, 0] + 0.5 * (logs[:, 1:] - logs[:, :1]).square().sum(-1)
    torch.testing.assert_close(log_mean.exp(), torch.full_like(log_mean, 0.235**2), rtol=1e-11, atol=0.0)
    # and the spread is that of the continuous model: eta^2 t^(2H)
    if grid is not UNEVEN and grid.shape[0] > 10:
        spread = (logs[1:, 1:] - logs[1:, :1]).square().sum(-1)
        torch.testing.assert_close(spread, 1.9**2 * grid[1:-1] ** 0.14, rtol=1.5e-3, atol=0.0)


def test_variance_follows_the_forward_variance_curve():
    curve = ForwardVarianceCurve([0.0, 0.1, 0.2], [[0.04, 0.09, 0.01], [0.02, 0.02, 0.02]])
    model = RoughBergomi(curve, eta=1.5, hurst=0.2, rho=-0.5)
    assert model.batch_shape == (2,)
    times = double([0.0, 0.05, 0.1, 0.15, 0.9])
    expected = double([[0.04, 0.065, 0.09, 0.05, 0.01], [0.02] * 5])
    torch.testing.assert_close(model.forward_variance(times), expected)
    normals = torch.randn(4, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    variances = HybridScheme().variances(model, times, normals)
    flat = HybridScheme().variances(RoughBergomi(0.02, 1.5, 0.2, -0.5), times, normals)
    assert variances.shape == (4, 2, 7)
    torch.testing.assert_close(variances[:, 1], flat)
    torch.testing.assert_close(variances[:, 0], flat * (expected[0, :4] / 0.02)[:, None])


def test_batched_parameters_equal_one_at_a_time():
    xi, eta, hurst, rho = double([0.04, 0.09]), double(1.7), double([[0.05], [0.3], [0.5]]), double([-0.9, 0.3])
    normals = torch.randn(5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grid = UNEVEN[:6]
    together = HybridScheme().increments(RoughBergomi(xi, eta, hurst, rho), grid, normals)
    for row in range(3):
        for column in range(2):
            alone = HybridScheme().increments(RoughBergomi(xi[column], eta, hurst[row, 0], rho[column]), grid, normals)
            for many, one in zip(together, alone, strict=True):
                assert many.shape == (5, 3, 2, 4)
                torch.testing.assert_close(many[:, row, column], one)


def test_asset_is_a_martingale_and_splits_its_variance():
    model = RoughBergomi(xi=double([0.04, 0.1]), eta=1.9, hurst=double([0.07, 0.3]), rho=double([-0.9, -0.4]))
    generator = torch.Generator().manual_seed(3)
    n_paths = 40_000
    normals = torch.randn(20, 2, n_paths, dtype=torch.float64, generator=generator)
    grid = torch.cat([UNEVEN[:4], torch.linspace(0.3, 1.0, 17, dtype=torch.float64)])
    drift, residual, variance = HybridScheme().increments(model, grid, normals)
    torch.testing.assert_close(residual, variance * (1 - model.rho.square())[:, None])
    ratio = (drift + 0.5 * residual).sum(0).exp()
    std_error = ratio.std(-1) / n_paths**0.5
    assert bool(((ratio.mean(-1) - 1.0).abs() <= 4 * std_error).all())
    assert bool((std_error < 2e-3).all())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("hurst", [1e-4, 0.2, 0.5])
def test_increments_have_first_and_second_derivatives_in_every_parameter(hurst):
    normals = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    inputs = [double(value).requires_grad_() for value in (0.04, 1.9, hurst, -0.7)]
    grid = UNEVEN[:5].clone().requires_grad_()

    def increments(xi, eta, hurst, rho, grid):
        model = RoughBergomi.__new__(RoughBergomi)  # finite differences step over the edge at 0.5
        for name, value in zip(("xi", "eta", "hurst", "rho"), (xi, eta, hurst, rho), strict=True):
            object.__setattr__(model, name, value)
        return HybridScheme().increments(model, grid, normals)

    arguments = (*inputs, grid)
    eps = 1e-6 if hurst > 1e-3 else 1e-9
    assert torch.autograd.gradcheck(increments, arguments, eps=eps, atol=1e-4, rtol=1e-4, check_forward_ad=True)
    if hurst > 1e-3:
        assert torch.autograd.gradgradcheck(increments, arguments, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("n_paths", "accuracy"), [(2**15, 1.2e-3), pytest.param(2**18, 4.5e-4, marks=pytest.mark.slow)]
)
def test_smile_of_the_paper_at_312_steps(n_paths, accuracy):
    price = turbocharged_price(RoughBergomi(**PAPER), PAPER_STRIKES, [0.25], n_paths=n_paths, n_steps=312, seed=11)
    for index, (strike, expected) in enumerate(zip(PAPER_STRIKES, PAPER_VOLS, strict=True)):
        value, std_error = price.value[0, index].item(), price.std_error[0, index].item()
        vol, error = implied_with_error(strike, value, std_error, 0.25)
        assert error < accuracy
        assert abs(vol - expected) <= 4 * error + 3e-4  # the paper's own sampling error and printed digits


@pytest.mark.slow
@pytest.mark.parametrize(("n_steps", "n_paths"), [(78, 2**19), (312, 2**18), (1000, 2**16), (3000, 2**16)])
def test_right_wing_by_number_of_steps(n_steps, n_paths):
    price = turbocharged_price(RoughBergomi(**PAPER), [0.1041], [0.25], n_paths=n_paths, n_steps=n_steps, seed=5)
    vol, error = implied_with_error(0.1041, price.value.item(), price.std_error.item(), 0.25)
    assert error < 4e-4
    assert abs(vol - RIGHT_WING[n_steps]) <= 4 * math.hypot(error, 1.4e-4) + 5e-5


def test_mixed_estimator_agrees_with_plain_simulation_and_is_more_accurate():
    model = RoughBergomi(0.06, 1.4, 0.12, rho=double([-0.8, 0.0]))
    n_paths, expiries, strikes = 2**14, double([0.1, 0.4]), double([-0.15, 0.0, 0.1])
    mixed = turbocharged_price(model, strikes, expiries, n_paths=n_paths, n_steps=24, seed=6)
    assert mixed.value.shape == (2, 2, 3)
    generator = torch.Generator().manual_seed(7)
    grid = torch.linspace(0.0, 0.4, 25, dtype=torch.float64)
    normals = torch.randn(24, 3, 4 * n_paths, dtype=torch.float64, generator=generator)
    drift, residual, _ = HybridScheme().increments(model, grid, normals[:, :2])
    log_ratio = (drift + residual.sqrt() * normals[:, 2][:, None]).cumsum(0)[[5, 23]].movedim(0, 1).unsqueeze(-2)
    strike = strikes.exp()[:, None]
    sign = torch.where(strike < 1.0, -1.0, 1.0)
    payoff = (sign * (log_ratio.exp() - strike)).clamp_min(0.0)
    plain, plain_error = payoff.mean(-1), payoff.std(-1) / (4 * n_paths) ** 0.5
    assert bool(((mixed.value - plain).abs() <= 4 * (mixed.std_error**2 + plain_error**2).sqrt()).all())
    # the published gain for the same number of paths is larger; four times as many paths on the other side
    assert bool((mixed.std_error < plain_error).all())


def test_price_without_volatility_of_variance_is_black():
    model = RoughBergomi(double(0.09), eta=1e-7, hurst=0.1, rho=-0.6)
    strikes = [-0.3, -0.05, 0.0, 0.2]
    price = turbocharged_price(model, strikes, [0.5, 2.0], n_paths=2**12, n_steps=16, seed=8)
    for row, expiry in enumerate([0.5, 2.0]):
        for column, strike in enumerate(strikes):
            value, std_error = price.value[row, column].item(), price.std_error[row, column].item()
            vol, error = implied_with_error(strike, value, std_error, expiry)
            assert error < 2e-3
            assert abs(vol - 0.3) <= 4 * error


def test_wings_that_no_path_of_the_control_reaches():
    """Little vol of variance times correlation: the control pays on paths too rare to be in the sample."""
    model = RoughBergomi(0.0917, double([0.7705, 0.3]), 0.135, double([-0.248, -0.1]))
    strikes = double([-0.1538, -0.1, 0.0, 0.1, 0.1538])
    price = turbocharged_price(model, strikes, [0.0669], n_paths=2**12, n_steps=20, seed=3)
    # given the variance the asset is lognormal, and scipy prices each path without a control
    grid = torch.linspace(0.0, 0.0669, 21, dtype=torch.float64)
    log_forward, variance = _conditional_paths(model, grid, torch.tensor([19]), 2**14, seed=4)
    free = (1.0 - model.rho.square()[:, None, None]) * variance[0]
    forward, deviation = log_forward[0].exp().flatten(1).numpy(), free.sqrt().flatten(1).numpy()
    for column, strike in enumerate(strikes.exp().tolist()):
        sign = -1.0 if strike < 1.0 else 1.0
        upper = np.log(forward / strike) / deviation + deviation / 2
        paid = sign * (forward * norm.cdf(sign * upper) - strike * norm.cdf(sign * (upper - deviation)))
        error = np.hypot(price.std_error[:, 0, column].numpy(), paid.std(-1) / 2**7)
        assert (np.abs(price.value[:, 0, column].numpy() - paid.mean(-1)) < 4.5 * error).all()


def test_price_repeats_with_its_seed_and_differentiates():
    parameters = [double(value).requires_grad_() for value in (0.05, 1.9, 0.1, -0.7)]
    arguments = {"n_paths": 256, "n_steps": 8, "seed": 9}
    one = turbocharged_price(RoughBergomi(*parameters), [-0.1, 0.1], [0.3], **arguments)
    two = turbocharged_price(RoughBergomi(*parameters), [-0.1, 0.1], [0.3], **arguments)
    other = turbocharged_price(RoughBergomi(*parameters), [-0.1, 0.1], [0.3], **{**arguments, "seed": 10})
    assert torch.equal(one.value, two.value)
    assert not torch.equal(one.value, other.value)
    gradients = torch.autograd.grad(one.value.sum(), parameters)
    assert all(bool(gradient.isfinite()) and gradient != 0 for gradient in gradients)


@pytest.mark.parametrize("n_paths", [256, 2 * BLOCK + 100])
@pytest.mark.parametrize("strikes", [[0.05], [-0.2, 0.0, 0.1]])
def test_price_of_a_model_does_not_depend_on_what_else_is_in_the_batch(n_paths, strikes):
    arguments = {"n_paths": n_paths, "n_steps": 20, "seed": 4}
    near = torch.linspace(0.0, 0.3, 16, dtype=torch.float64)
    xi, eta, hurst, rho = 0.04 + near, 1.9 - near, 0.07 + near, near - 0.9
    for others in ((xi, 1.9, 0.07, -0.9), (xi, eta, hurst, rho)):
        batch = turbocharged_price(RoughBergomi(*others), strikes, [0.2, 0.5], **arguments)
        for row in (0, 15):
            alone = [other if isinstance(other, float) else other[row] for other in others]
            one = turbocharged_price(RoughBergomi(*alone), strikes, [0.2, 0.5], **arguments)
            assert torch.equal(one.value, batch.value[row])
            assert torch.equal(one.std_error, batch.std_error[row])


def test_paths_of_a_short_run_are_the_first_of_a_longer_one():
    model, grid, nodes = RoughBergomi(**PAPER), torch.linspace(0.0, 0.5, 9, dtype=torch.float64), torch.tensor([3, 7])
    long = _conditional_paths(model, grid, nodes, 3 * BLOCK, seed=2)
    for n_paths in (100, BLOCK, 2 * BLOCK + 100):
        short = _conditional_paths(model, grid, nodes, n_paths, seed=2)
        for one, whole in zip(short, long, strict=True):
            torch.testing.assert_close(one, whole[..., : n_paths // 2, :], rtol=1e-12, atol=1e-14)
    first, second = long[1][..., : BLOCK // 2, :], long[1][..., BLOCK // 2 : BLOCK, :]
    assert not torch.isclose(first, second).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xi": 0.0}, "`xi` must be above 0, got 0"),
        ({"xi": math.nan}, "`xi` must be finite"),
        ({"eta": -1.0}, "`eta` must be above 0, got -1"),
        ({"hurst": 0.0}, r"`hurst` must lie in \(0, 0.5\], got 0"),
        ({"hurst": 0.51}, r"`hurst` must lie in \(0, 0.5\], got 0.51"),
        ({"rho": -1.0}, r"`rho` must lie in \(-1, 1\), got -1"),
        ({"xi": [0.1, 0.2, 0.3], "eta": [1.0, 2.0]}, r"`xi` of shape \(3,\) and `eta` of shape \(2,\)"),
    ],
)
def test_parameters_outside_their_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RoughBergomi(**{**PAPER, **change})


@pytest.mark.parametrize(
    ("times", "variances", "message"),
    [
        ([0.0, 1.0], [0.04], "one number for each of the 2 times"),
        ([1.0, 0.5], [0.04, 0.05], "`times` must ascend strictly"),
        ([0.0, 1.0], [0.04, -0.05], "`variances` must be above 0"),
        ([[0.0, 1.0]], [0.04, 0.05], "`times` of a curve must have one axis"),
    ],
)
def test_curve_with_bad_nodes_is_refused(times, variances, message):
    with pytest.raises(ValueError, match=message):
        ForwardVarianceCurve(times, variances)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_paths": 5}, "`n_paths` must be even"),
        ({"expiry": [0.5, 0.25]}, "`expiry` must ascend"),
        ({"log_moneyness": [[0.0], [0.1]]}, "`log_moneyness` must have shape"),
    ],
)
def test_price_with_bad_arguments_is_refused(change, message):
    arguments = {"log_moneyness": [0.0], "expiry": [0.25], "n_paths": 64, "n_steps": 4, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        turbocharged_price(RoughBergomi(**PAPER), **arguments)
