"""Variance swaps under rough models and forward starts under jumps: quadrature, special functions, simulation."""

import math

import mpmath
import numpy
import pytest
import torch
from scipy.integrate import quad

import pricers as pr
from pricers.analytic.variance import mean_of_curve
from pricers.models.rough_bergomi import ForwardVarianceCurve

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

MARKET = pr.Market(100.0, rate=0.03, dividend_yield=0.01)
TIMES, VARIANCES = [0.1, 0.4, 1.0], [0.03, 0.09, 0.05]
CURVE = ForwardVarianceCurve(TIMES, VARIANCES)
ROUGH_HESTON = (0.02, 0.6, 0.07, 0.4, -0.7)
MERTON = pr.Merton(0.2, 0.8, -0.1, 0.15)


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def fair_variance(model, expiry):
    """Of the price of a swap of strike 0."""
    swap = pr.VarianceSwap(1e-300, expiry)
    return pr.price(swap, model, MARKET, pr.Analytic()).value / MARKET.discount(swap.expiry)


@pytest.mark.parametrize("expiry", [0.05, 0.1, 0.25, 0.4, 0.8, 1.0, 2.5])
def test_mean_of_a_curve_is_its_integral(expiry):
    kinks = [time for time in TIMES if time < expiry]
    integral = quad(lambda t: numpy.interp(t, TIMES, VARIANCES), 0.0, expiry, points=kinks or None, epsabs=1e-14)[0]
    found = fair_variance(pr.RoughBergomi(CURVE, 1.5, 0.1, -0.7), expiry)
    assert found.item() == pytest.approx(integral / expiry, rel=1e-12)


@pytest.mark.parametrize("expiry", [0.05, 0.1, 0.25, 0.4, 1.0, 2.5])
def test_mean_of_a_curve_grows_as_the_curve_lies_above_it(expiry):
    """Nodes included: d(T mean) / dT is the curve at T."""
    time = double(expiry).requires_grad_()
    (slope,) = torch.autograd.grad(time * mean_of_curve(CURVE, time), time)
    assert slope.item() == pytest.approx(numpy.interp(expiry, TIMES, VARIANCES), rel=1e-12)


def test_flat_curves_and_batches():
    assert fair_variance(pr.RoughBergomi([0.04, 0.09], 1.5, 0.1, -0.7), 1.0).tolist() == pytest.approx([0.04, 0.09])
    one = ForwardVarianceCurve([0.5], [0.04])
    assert fair_variance(pr.RoughBergomi(one, 1.5, 0.1, -0.7), [0.2, 2.0]).tolist() == pytest.approx([0.04, 0.04])
    several = ForwardVarianceCurve(TIMES, [VARIANCES, [2 * x for x in VARIANCES]])
    found = mean_of_curve(several, double([[0.3], [1.7], [3.0]]))
    assert found.shape == (3, 2)
    alone = mean_of_curve(CURVE, double([0.3, 1.7, 3.0]))
    torch.testing.assert_close(found, torch.stack([alone, 2 * alone], dim=-1), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("hurst", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("expiry", [0.02, 1.0, 5.0])
def test_fair_variance_of_rough_heston_is_a_mittag_leffler_function(hurst, expiry):
    r"""$\theta + (v_0 - \theta) E_{\alpha, 2}(-\kappa T^\alpha)$, the series in 60 digits."""
    v0, kappa, theta, *_ = ROUGH_HESTON
    with mpmath.workdps(60):
        alpha = mpmath.mpf(hurst) + 0.5
        z = -kappa * mpmath.mpf(expiry) ** alpha
        exact = theta + (v0 - theta) * mpmath.nsum(lambda k: z**k / mpmath.gamma(alpha * k + 2), [0, 200], method="d")
    assert fair_variance(pr.RoughHeston(*ROUGH_HESTON, hurst), expiry).item() == pytest.approx(float(exact), rel=1e-10)


def test_smooth_rough_heston_is_heston():
    rough, smooth = pr.RoughHeston(*ROUGH_HESTON, [0.5, 0.5]), pr.Heston(*ROUGH_HESTON)
    expiries = [[0.1], [1.0], [7.0]]
    found = fair_variance(rough, expiries)
    assert found.shape == (3, 2)
    torch.testing.assert_close(found, fair_variance(smooth, expiries).expand(3, 2), rtol=1e-11, atol=0.0)


@pytest.mark.parametrize(
    ("model", "bias"),
    [
        (pr.RoughBergomi(0.04, 1.5, 0.1, -0.7), 0.0),
        (pr.RoughBergomi(CURVE, 1.5, 0.1, -0.7), 4e-4),  # the variance of a step is the one at its start
        (pr.RoughHeston(*ROUGH_HESTON, 0.1), 2e-4),  # a trapezium over v0 and a steep rise
    ],
    ids=["bergomi", "bergomi curve", "heston"],
)
def test_swaps_against_simulation(model, bias):
    swap = pr.VarianceSwap(0.03, 1.0)
    exact = pr.price(swap, model, MARKET)
    assert exact.engine == "analytic"
    engine = pr.MonteCarlo(2**14, n_steps=64, seed=2, noise="antithetic", controls=False)
    found = pr.price(swap, model, MARKET, engine)
    assert found.std_error < 1e-3
    assert abs(found.value.item() - exact.value.item()) < 4 * found.std_error.item() + bias


def test_derivatives_of_the_swaps():
    def bergomi(variances, expiry):
        return fair_variance(pr.RoughBergomi(ForwardVarianceCurve(TIMES, variances), 1.5, 0.1, -0.7), expiry)

    def heston(v0, kappa, theta, expiry):
        return fair_variance(pr.RoughHeston(v0, kappa, theta, 0.4, -0.7, 0.2), expiry)

    for price, numbers in ((bergomi, (VARIANCES, 0.7)), (heston, (0.02, 0.6, 0.07, 0.9))):
        inputs = [double(x).requires_grad_() for x in numbers]
        assert torch.autograd.gradcheck(price, inputs, check_forward_ad=True, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("option", ["call", "put"])
def test_forward_start_under_jumps_against_simulation(option):
    contract = pr.ForwardStart([0.9, 1.0, 1.2], 0.5, 1.25, option)
    exact = pr.price(contract, MERTON, MARKET)
    assert exact.engine == "analytic"
    found = pr.price(contract, MERTON, MARKET, pr.MonteCarlo(2**18, seed=3, noise="antithetic", controls=False))
    assert (found.std_error < 0.06).all()
    assert ((found.value - exact.value).abs() < 4 * found.std_error).all()


@pytest.mark.parametrize("option", ["call", "put"])
def test_forward_start_under_jumps_is_an_option_on_the_growth(option):
    """By Fourier inversion over the time after the reset, on curves whose forward rates differ."""
    market = pr.Market(100.0, rate=pr.ZeroCurve([0.5, 2.0], [0.02, 0.05]), dividend_yield=0.01)
    reset, expiry, moneyness = double(0.5), double(1.25), double([0.7, 1.0, 1.4])
    found = pr.price(pr.ForwardStart(moneyness, reset, expiry, option), MERTON, market)
    forward, strike = market.forward(expiry), moneyness * market.forward(reset)
    unit = pr.Market(forward.item())  # no rates: the option on the forward, undiscounted
    option_on_growth = pr.price(pr.European(strike, expiry - reset, option), MERTON, unit, pr.Fourier())
    wanted = market.discount(expiry) * option_on_growth.value
    assert ((found.value - wanted).abs() <= found.error_bound + option_on_growth.error_bound).all()


def test_forward_start_under_jumps_at_its_limits():
    calm = pr.Merton(0.25, 0.0, -0.1, 0.2)
    contract = pr.ForwardStart([0.8, 1.1], 0.5, 1.0, "put")
    plain = pr.price(contract, pr.BlackScholes(0.25), MARKET).value
    torch.testing.assert_close(pr.price(contract, calm, MARKET).value, plain, rtol=1e-13, atol=1e-13)
    today = pr.price(pr.ForwardStart(1.1, 0.0, 0.7, "call"), MERTON, MARKET).value.item()
    assert today == pytest.approx(pr.price(pr.European(110.0, 0.7), MERTON, MARKET).value.item(), rel=1e-13)
    call, put = (pr.price(pr.ForwardStart(1.1, 0.5, 1.25, side), MERTON, MARKET).value for side in ("call", "put"))
    parity = MARKET.discount(double(1.25)) * (MARKET.forward(double(1.25)) - 1.1 * MARKET.forward(double(0.5)))
    assert (call - put).item() == pytest.approx(parity.item(), rel=1e-12)
    assert math.isfinite(call.item())


def test_forward_start_under_jumps_refuses_cash_dividends():
    paying = pr.Market(100.0, dividends=pr.CashDividends([0.5], [1.0]))
    with pytest.raises(ValueError, match="cash dividends"):
        pr.price(pr.ForwardStart(1.0, 0.5, 1.0), MERTON, paying, pr.Analytic())
