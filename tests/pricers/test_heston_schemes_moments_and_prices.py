"""Schemes of Heston: moments of a step, martingales, published prices, orders of convergence, gradients."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

import pricers as pr
from pricers.models.heston_exact import Exact, bicubic
from pricers.models.heston_exact_law import distribution, integral_quantiles, variance_quantiles
from pricers.models.heston_schemes import HESTON_SCHEMES, QuadraticExponential, minus_log_survival

CASE_I, CASE_II = (0.04, 0.5, 0.04, 1.0, -0.9), (0.04, 0.3, 0.04, 0.9, -0.5)  # v0, kappa, theta, sigma, rho
FANG_OOSTERLEE = (0.0175, 1.5768, 0.0398, 0.5751, -0.5711)
# parameters, expiry, rate, strike, price
PUBLISHED = {
    "Andersen (2008) I, K=100": (CASE_I, 10.0, 0.0, 100.0, 13.08467014),
    "Andersen (2008) I, K=60": (CASE_I, 10.0, 0.0, 60.0, 44.32997507),
    "Andersen (2008) I, K=140": (CASE_I, 10.0, 0.0, 140.0, 0.29577444),
    "Andersen (2008) II": (CASE_II, 15.0, 0.0, 100.0, 16.64922292),
    "Andersen (2008) III": ((0.09, 1.0, 0.09, 1.0, -0.3), 5.0, 0.05, 100.0, 33.59681806),
    "Broadie and Kaya (2006) 1": ((0.010201, 6.21, 0.019, 0.61, -0.7), 1.0, 0.0319, 100.0, 6.80611331),
    "Broadie and Kaya (2006) 2": ((0.09, 2.0, 0.09, 1.0, -0.3), 5.0, 0.05, 100.0, 34.99975835),
}


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_step(scheme, model: pr.Heston, variance: torch.Tensor, dt: float, normals: torch.Tensor):
    coefficients = scheme.coefficients(model, pr.Market(100.0), double(0.0)[0], double(dt)[0])
    return scheme.advance(coefficients, torch.zeros_like(variance), (variance,), normals)


def grid_of_normals(n: int) -> torch.Tensor:
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def test_minus_log_survival_against_scipy():
    z = torch.linspace(-0.9, 8.3, 2001, dtype=torch.float64)
    expected = torch.from_numpy(-scipy.special.log_ndtr(-z.numpy()))
    torch.testing.assert_close(minus_log_survival(z), expected, rtol=0.0, atol=1.3e-8)  # error of the fit
    rounded = torch.from_numpy(-scipy.special.log_ndtr(-z.float().double().numpy()))
    assert (minus_log_survival(z.float()).double() - rounded).abs().max() < 8e-6  # two units in the last place of 37
    assert minus_log_survival(double(-5.0)).item() < -math.log(0.8)  # what the exponential branch cuts off at 0


@pytest.mark.parametrize("dt", [0.02, 0.5])
@pytest.mark.parametrize("variance", [1e-4, 0.01, 0.04, 0.5])
@pytest.mark.parametrize("parameters", [CASE_I, FANG_OOSTERLEE])
def test_qe_step_has_the_mean_and_variance_of_the_exact_transition(parameters, variance, dt):
    _, kappa, theta, sigma, _ = parameters
    z = grid_of_normals(2**17)
    step = one_step(HESTON_SCHEMES["qe"], pr.Heston(*parameters), torch.full_like(z, variance), dt, z[None])
    decay = math.exp(-kappa * dt)
    scale = sigma**2 * (1 - decay) / (4 * kappa)
    exact = scipy.stats.ncx2(4 * kappa * theta / sigma**2, variance * decay / scale, scale=scale)
    (after,) = step.state
    assert after.min() >= 0.0
    assert abs(after.mean().item() / exact.mean() - 1.0) < 2e-4  # the grid of normals ends at 1 / 2^18
    assert abs(after.var().item() / exact.var() - 1.0) < 5e-3


@pytest.mark.parametrize("scheme", ["qe-m", "euler", "exact"])
@pytest.mark.parametrize("parameters", [CASE_I, CASE_II, FANG_OOSTERLEE, (0.1, 4.0, 0.22, 1.8, 0.4)])
def test_forward_is_a_martingale_after_one_step(parameters, scheme):
    chosen, model = HESTON_SCHEMES[scheme], pr.Heston(*parameters)
    normals = pr_normals(chosen.n_normals, 2**16)
    for variance in (0.0, 0.02, 0.3):
        step = one_step(chosen, model, torch.full_like(normals[0], variance), 0.1, normals)
        ratio = torch.exp(step.drift + 0.5 * step.residual_variance)
        assert abs(ratio.mean().item() - 1.0) < 4 * ratio.std().item() / 2**10 + 1e-9  # points spread evenly: a tenth


def pr_normals(n_rows: int, n: int) -> torch.Tensor:
    points = torch.quasirandom.SobolEngine(n_rows, scramble=True, seed=1).draw(n, dtype=torch.float64)
    return torch.special.ndtri(points.clamp(1e-9, 1 - 1e-9)).T.contiguous()


def test_qe_without_correction_is_no_martingale_and_gets_no_forward_control():
    # "QE-M" without K0* has the bias that the correction takes away
    model, z = pr.Heston(*CASE_I), grid_of_normals(2**16)
    steps = [one_step(HESTON_SCHEMES[name], model, torch.full_like(z, 0.04), 1.0, z[None]) for name in ("qe", "qe-m")]
    plain, corrected = (torch.exp(step.drift + 0.5 * step.residual_variance).mean().item() - 1.0 for step in steps)
    assert abs(plain) > 1e-4
    assert abs(corrected) < 1e-5
    engine = pr.MonteCarlo(1024, n_steps=4, scheme="qe", seed=1)
    assert engine.sampler(pr.European(100.0, 1.0), model, pr.Market(100.0)).control is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_exact_scheme_in_one_step_reaches_the_published_price(name):
    parameters, expiry, rate, strike, price = PUBLISHED[name]
    engine = pr.MonteCarlo(2**16, noise="sobol", scheme="exact", seed=3)
    found = engine.price(pr.European(strike, expiry), pr.Heston(*parameters), pr.Market(100.0, rate=rate))
    assert found.std_error < 2e-4 * max(price, 10.0)
    assert abs(found.value - price) <= 4 * found.std_error + 2e-6 * 100  # look-ups: 2e-6 of spot


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "K=" not in name or "K=100" in name])
def test_qe_m_reaches_the_published_price(name):
    parameters, expiry, rate, strike, price = PUBLISHED[name]
    engine = pr.MonteCarlo(2**15, n_steps=round(16 * expiry), noise="sobol", seed=3)
    found = engine.price(pr.European(strike, expiry), pr.Heston(*parameters), pr.Market(100.0, rate=rate))
    assert found.std_error < 1.5e-3 * price
    assert abs(found.value - price) <= 4 * found.std_error + 1e-3 * price  # bias of 16 steps a year


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "order", "counts"), [("qe-m", 1.5, (2, 4, 8)), ("euler", 0.9, (8, 16, 32))])
def test_weak_order_against_the_exact_price(scheme, order, counts):
    price, errors = 5.785155434376, []
    for n_steps in counts:
        engine = pr.MonteCarlo(2**20, n_steps=n_steps, noise="sobol", seed=5, scheme=scheme, controls=False)
        found = engine.price(pr.European(100.0, 1.0), pr.Heston(*FANG_OOSTERLEE), pr.Market(100.0))
        errors.append(abs(found.value.item() - price))
        assert found.std_error < 0.2 * errors[-1]  # moves the slope by 0.15 at most
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope > order, f"errors {errors}"


@pytest.mark.parametrize("martingale", [True, False])
def test_gradients_are_finite_in_both_branches_and_at_the_switch(martingale):
    # sqrt(2 / psi - 1) on both branches of a where is not a number for psi > 2
    z = torch.linspace(-6.0, 6.0, 101, dtype=torch.float64)
    for variance in (0.0, 1e-12, 1e-4, 0.04, 1.0):
        parameters = [parameter.requires_grad_() for parameter in double(*CASE_I).unbind()]
        model = pr.Heston(*parameters)
        start = torch.full_like(z, variance).requires_grad_()
        step = one_step(QuadraticExponential(martingale), model, start, 0.25, z[None])
        total = (step.drift + step.residual_variance + step.state[0]).sum()
        for gradient in torch.autograd.grad(total, [start, *parameters[1:]]):
            assert gradient.isfinite().all()


def test_qe_gradient_is_that_of_differences():
    z = torch.linspace(-3.0, 3.0, 13, dtype=torch.float64)

    def outcome(*parameters):
        step = one_step(HESTON_SCHEMES["qe-m"], pr.Heston(*parameters), 0.04 * torch.ones_like(z), 0.25, z[None])
        return step.drift + step.residual_variance + step.state[0]

    parameters = tuple(parameter.clone().requires_grad_() for parameter in double(*FANG_OOSTERLEE).unbind())
    assert torch.autograd.gradcheck(outcome, parameters, atol=1e-6)


@pytest.mark.parametrize("dt", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("parameters", [CASE_I, FANG_OOSTERLEE, (0.04, 4.0, 0.25, 1.0, -0.5)])
def test_variance_quantiles_against_the_noncentral_chi_squared(parameters, dt):
    _, kappa, theta, sigma, _ = parameters
    z = torch.linspace(-4.0, 5.5, 39, dtype=torch.float64)
    roots = double(0.0, 0.1, 0.3, 1.0)
    found = variance_quantiles(kappa, theta, sigma, dt, roots, z)
    scale = sigma**2 * -math.expm1(-kappa * dt) / (4 * kappa)
    for root, row in zip(roots.tolist(), found, strict=True):
        shift = max(root**2 * math.exp(-kappa * dt) / scale, 1e-300)
        expected = scipy.stats.ncx2(4 * kappa * theta / sigma**2, shift, scale=scale)
        probability = torch.from_numpy(np.where(z < 0, expected.cdf(row.numpy()), expected.sf(row.numpy())))
        torch.testing.assert_close(probability, torch.special.ndtr(-z.abs()), rtol=1e-5, atol=1e-12)


def test_laplace_inversion_against_a_gamma_law():
    values = torch.logspace(-4, 1.3, 50, dtype=torch.float64)

    def transform(real, imag):
        phi = torch.complex(1.0 + real, imag) ** -0.3
        return phi.real, phi.imag

    below, density = distribution(transform, values)
    torch.testing.assert_close(below, torch.from_numpy(scipy.stats.gamma.cdf(values.numpy(), 0.3)), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        density, torch.from_numpy(scipy.stats.gamma.pdf(values.numpy(), 0.3)), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(("before", "after"), [(0.04, 0.5), (0.04, 1e-6), (0.3, 0.2)])
@pytest.mark.parametrize("dt", [0.5, 5.0])
def test_integrated_variance_has_the_transform_of_broadie_and_kaya(before, after, dt):
    _, kappa, theta, sigma, _ = CASE_I
    z = torch.arange(-6.0, 6.0001, 1.0 / 64.0, dtype=torch.float64)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) / 64.0
    argument = 2 * kappa / (sigma**2 * math.sinh(0.5 * kappa * dt)) * math.sqrt(before * after)
    first, second = integral_quantiles(kappa, theta, sigma, dt, double(0.0, before + after), double(0.0, argument), z)
    order = 2 * kappa * theta / sigma**2 - 1
    for b in (0.5, 3.0):
        gamma = math.sqrt(kappa**2 + 2 * sigma**2 * b)
        # Broadie and Kaya (2006), eq. 13 at the argument i b
        expected = gamma * math.sinh(0.5 * kappa * dt) / (kappa * math.sinh(0.5 * gamma * dt))
        ends = kappa / math.tanh(0.5 * kappa * dt) - gamma / math.tanh(0.5 * gamma * dt)
        expected *= math.exp((before + after) / sigma**2 * ends)
        inner = [2 * g / (sigma**2 * math.sinh(0.5 * g * dt)) * math.sqrt(before * after) for g in (gamma, kappa)]
        expected *= scipy.special.iv(order, inner[0]) / scipy.special.iv(order, inner[1])
        found = (torch.exp(-b * first[1]) * density).sum() * (torch.exp(-b * second[1]) * density).sum()
        assert abs(found.item() / expected - 1.0) < 1e-6  # cubics between the places of a table


def test_bicubic_is_exact_for_cubics():
    rows, columns = torch.arange(-1.0, 7.0, dtype=torch.float64), torch.arange(-1.0, 9.0, dtype=torch.float64)
    table = rows[:, None] ** 3 - 2.0 * rows[:, None] * columns**2 + columns**3
    row, column = double(0.0, 1.3, 4.9), double(6.2, 0.0, 3.5)
    expected = row**3 - 2.0 * row * column**2 + column**3
    torch.testing.assert_close(bicubic(table, row, column), expected, rtol=1e-12, atol=1e-12)


def test_exact_scheme_gives_the_gradient_it_has_and_refuses_the_others():
    market, call = pr.Market(100.0), pr.European(100.0, 1.0)
    engine = pr.MonteCarlo(2**14, noise="sobol", scheme="exact", seed=1)
    model = pr.Heston(*FANG_OOSTERLEE)
    for name in ("spot", "v0"):
        found = pr.greeks(call, model, market, wrt=(name,), engine=engine)[name]
        expected = pr.greeks(call, model, market, wrt=(name,))[name].value
        assert abs(found.value - expected) <= 4 * found.std_error + 1e-4 * expected.abs()
    for name in ("kappa", ("kappa", "spot"), ("spot", "rho")):
        with pytest.raises(ValueError, match="'exact' has no gradient"):
            pr.greeks(call, model, market, wrt=(name,), engine=engine)


def test_exact_scheme_refuses_steps_that_are_too_short():
    with pytest.raises(ValueError, match="too short for the scheme 'exact'"):
        pr.MonteCarlo(1024, n_steps=2_000_000, scheme="exact", seed=1).sampler(
            pr.European(100.0, 1.0), pr.Heston(*FANG_OOSTERLEE), pr.Market(100.0)
        ).plan.scheme.coefficients(pr.Heston(*FANG_OOSTERLEE), pr.Market(100.0), double(0.0)[0], double(5e-7)[0])


def test_exact_scheme_prices_a_batch_of_models_as_each_alone():
    market, call = pr.Market(100.0), pr.European(100.0, 2.0)
    engine = pr.MonteCarlo(2**12, scheme="exact", seed=2)
    both = engine.price(call, pr.Heston([0.04, 0.09], 0.5, 0.04, 1.0, [-0.9, -0.3]), market).value
    alone = [
        engine.price(call, pr.Heston(v0, 0.5, 0.04, 1.0, rho), market).value for v0, rho in ((0.04, -0.9), (0.09, -0.3))
    ]
    torch.testing.assert_close(both, torch.stack(alone), rtol=1e-6, atol=0.0)  # tables of other lengths
    assert isinstance(HESTON_SCHEMES["exact"], Exact)
