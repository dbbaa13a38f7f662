"""Forward starts and cliquets by Fourier inversion: mpmath, QuantLib, exact simulation, closed forms, limits."""

import itertools
import math

import mpmath as mp
import pytest
import QuantLib as ql  # noqa: N813 - the name that its own examples use
import torch

import pricers as pr

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

MARKET = pr.Market(100.0, pr.ZeroCurve([0.5, 2.0], [0.02, 0.05]), 0.01)
HESTON = {"v0": 0.04, "kappa": 1.5, "theta": 0.06, "sigma": 0.5, "rho": -0.7}
JUMPS = {"intensity": 0.4, "jump_mean": -0.1, "jump_std": 0.15}
WILD = {"v0": 0.09, "kappa": 0.3, "theta": 0.04, "sigma": 0.9, "rho": 0.5}  # kappa < rho sigma, far from Feller


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def lewis(moneyness, reset, expiry, numeraire, *, v0, kappa, theta, sigma, rho, intensity=0, jump_mean=0, jump_std=0):
    """Undiscounted call on the growth over its mean, by Lewis' integral in 30 digits; moneyness over the mean."""
    with mp.workdps(30):
        values = (reset, expiry, v0, kappa, theta, sigma, rho, intensity, jump_mean, jump_std)
        reset, expiry, v0, kappa, theta, sigma, rho, intensity, jump_mean, jump_std = map(mp.mpf, values)
        time, speed = expiry - reset, kappa - rho * sigma if numeraire else kappa
        gone = reset if speed == 0 else (1 - mp.exp(-speed * reset)) / speed
        scale = sigma**2 * gone / 4  # the variance over it is a noncentral chi-square variable
        mean_jump = mp.exp(jump_mean + jump_std**2 / 2) - 1

        def characteristic(z):
            pull = kappa - rho * sigma * z
            d = mp.sqrt(pull * pull - sigma**2 * (z * z - z))
            ratio, fall = (pull - d) / (pull + d), mp.exp(-d * time)
            log_part = mp.log((1 - ratio * fall) / (1 - ratio))
            constant = kappa * theta / sigma**2 * ((pull - d) * time - 2 * log_part)
            slope = (pull - d) / sigma**2 * (1 - fall) / (1 - ratio * fall)
            room = 1 - 2 * scale * slope
            start = mp.exp(slope * mp.exp(-speed * reset) * v0 / room) * room ** (-2 * kappa * theta / sigma**2)
            jumps = intensity * time * (mp.exp(z * jump_mean + z * z * jump_std**2 / 2) - 1 - z * mean_jump)
            return mp.exp(constant + jumps) * start

        x = mp.log(mp.mpf(moneyness))
        integral = mp.quad(
            lambda u: mp.re(mp.exp(-1j * u * x) * characteristic(mp.mpf(0.5) + 1j * u)) / (u * u + 0.25),
            [0, 1, 3, 8, 20, 50, 120, 300, 800, 2000, 5000],
        )
        return float(1 - mp.exp(x / 2) / mp.pi * integral)


@pytest.mark.parametrize(
    ("numbers", "dates"),
    [
        (HESTON, (0.5, 1.25)),
        pytest.param(WILD, (1.0, 2.0), marks=pytest.mark.slow),
        pytest.param(HESTON | JUMPS, (0.25, 1.0), marks=pytest.mark.slow),
        (WILD | JUMPS, (2.0, 2.5)),
    ],
)
def test_forward_starts_against_quadrature(numbers, dates):
    reset, expiry = map(double, dates)
    model = (pr.Bates if "intensity" in numbers else pr.Heston)(**numbers)
    ratios = [0.8, 1.0, 1.3]  # strike over the mean of the growth
    forward, start, discount = MARKET.forward(expiry), MARKET.forward(reset), MARKET.discount(expiry)
    moneyness = double(ratios) * forward / start
    found = pr.price(pr.ForwardStart(moneyness, reset, expiry), model, MARKET)
    assert found.engine == "fourier"
    wanted = [(discount * forward).item() * lewis(ratio, *dates, True, **numbers) for ratio in ratios]
    assert (found.value - double(wanted)).abs().max() < 1e-8
    assert ((found.value - double(wanted)).abs() <= found.error_bound + 1e-10).all()
    put = pr.price(pr.ForwardStart(moneyness, reset, expiry, "put"), model, MARKET)
    parity = discount * (forward - moneyness * start)
    assert (found.value - put.value - parity).abs().max() < 1e-8


def test_a_variance_without_pull_in_the_measure_of_the_asset():
    numbers = HESTON | {"kappa": 0.3, "sigma": 0.6, "rho": 0.5}  # kappa = rho sigma: the formula is 0 / 0
    found = pr.price(pr.ForwardStart(1.0, 1.0, 1.5), pr.Heston(**numbers), pr.Market(1.0))
    assert found.value.item() == pytest.approx(lewis(1.0, 1.0, 1.5, True, **numbers), abs=1e-10)


@pytest.mark.parametrize("numbers", [HESTON, pytest.param(WILD, marks=pytest.mark.slow)])
def test_cliquets_against_quadrature_under_the_pricing_measure(numbers):
    """Returns are not weighted with the price at the reset: another law of the variance than that of forward starts."""
    times, floor, cap = [0.5, 1.0, 1.75], -0.03, 0.06
    market, growths = pr.Market(100.0, 0.03, 0.01), [math.exp(0.02 * 0.5), math.exp(0.02 * 0.75)]
    found = pr.price(pr.Cliquet(times, floor, cap), pr.Heston(**numbers), market)
    wanted = 2 * floor
    for (start, end), growth in zip(itertools.pairwise(times), growths, strict=True):
        low, high = (growth * lewis((1 + bound) / growth, start, end, False, **numbers) for bound in (floor, cap))
        wanted += low - high
    assert found.value.item() == pytest.approx(math.exp(-0.03 * 1.75) * wanted, abs=1e-9)


@pytest.mark.parametrize("option", ["call", "put"])
def test_forward_starts_against_quantlib(option):
    """Under Feller's condition: without it QuantLib's integral over the variance misses mass next to 0."""
    numbers = HESTON | {"sigma": 0.2}
    today, count = ql.Date(1, 1, 2024), ql.Actual360()
    ql.Settings.instance().evaluationDate = today
    rate, dividend = (ql.YieldTermStructureHandle(ql.FlatForward(today, r, count)) for r in (0.03, 0.01))
    spot = ql.QuoteHandle(ql.SimpleQuote(100.0))
    process = ql.HestonProcess(rate, dividend, spot, *numbers.values())
    kind = ql.Option.Call if option == "call" else ql.Option.Put
    market = pr.Market(100.0, 0.03, 0.01)
    for moneyness, (reset, expiry) in itertools.product([0.85, 1.0, 1.2], [(90, 270), (360, 720)]):
        exercise = ql.EuropeanExercise(today + expiry)
        contract = ql.ForwardVanillaOption(moneyness, today + reset, ql.PlainVanillaPayoff(kind, 0.0), exercise)
        contract.setPricingEngine(ql.AnalyticHestonForwardEuropeanEngine(process))
        ours = pr.price(pr.ForwardStart(moneyness, reset / 360, expiry / 360, option), pr.Heston(**numbers), market)
        assert ours.value.item() == pytest.approx(contract.NPV(), abs=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pr.Heston(**HESTON), pr.Heston(**WILD), pr.Bates(**HESTON, **JUMPS)])
def test_exact_simulation(model):
    engine = pr.MonteCarlo(2**14, seed=5, scheme="exact", noise="antithetic", controls=False)
    contracts = [
        pr.ForwardStart([0.9, 1.0, 1.15], 0.5, 1.0),
        pr.ForwardStart([0.9, 1.0, 1.15], 0.5, 1.0, "put"),
        pr.Cliquet([0.0, 0.25, 0.75, 1.0], [-0.05, 0.0], [0.03, 0.08]),
    ]
    for contract in contracts:
        exact, found = pr.price(contract, model, MARKET), pr.price(contract, model, MARKET, engine)
        assert (found.std_error < 0.25).all()
        assert ((found.value - exact.value).abs() < 4 * found.std_error + exact.error_bound).all()


@pytest.mark.parametrize("model", [pr.Heston(**HESTON), pr.Bates(**HESTON, **JUMPS), pr.Merton(0.2, **JUMPS)])
@pytest.mark.parametrize("option", ["call", "put"])
def test_a_reset_today_is_a_european_option(model, option):
    moneyness = double([0.8, 1.1])
    european = pr.price(pr.European(100.0 * moneyness, 0.7, option), model, MARKET, pr.Fourier()).value
    for reset, tolerance in ((0.0, 1e-10), (1e-6, 1e-3)):
        found = pr.price(pr.ForwardStart(moneyness, reset, 0.7, option), model, MARKET, pr.Fourier())
        assert (found.value - european).abs().max() < tolerance


def test_growth_that_does_not_depend_on_when_it_begins_has_closed_forms():
    for model, contract in (
        (pr.BlackScholes(0.3), pr.ForwardStart([0.7, 1.1], 0.5, 1.25)),
        (pr.Merton(0.2, **JUMPS), pr.ForwardStart([0.7, 1.1], 0.5, 1.25, "put")),
        (pr.BlackScholes(0.3), pr.Cliquet([0.5, 0.75, 1.5], local_cap=0.1)),
        (pr.BlackScholes(0.3), pr.Cliquet([0.0, 0.75, 1.5], [-2.0, 0.0, 0.05])),
    ):
        exact, found = pr.price(contract, model, MARKET), pr.price(contract, model, MARKET, pr.Fourier())
        assert exact.engine == "analytic"
        assert ((found.value - exact.value).abs() <= found.error_bound + exact.error_bound).all()


def test_bates_between_its_limits():
    contract = pr.ForwardStart(1.05, 0.5, 1.0, "put")
    no_jumps = pr.Bates(**HESTON, **(JUMPS | {"intensity": 0.0}))
    heston = pr.price(contract, pr.Heston(**HESTON), MARKET).value.item()
    assert pr.price(contract, no_jumps, MARKET).value.item() == pytest.approx(heston, abs=1e-10)
    still = pr.Bates(**(HESTON | {"v0": 0.04, "theta": 0.04, "sigma": 1e-7}), **JUMPS)
    merton = pr.price(contract, pr.Merton(0.2, **JUMPS), MARKET).value.item()
    assert pr.price(contract, still, MARKET).value.item() == pytest.approx(merton, abs=1e-6)


def test_batches_of_everything_equal_the_single_prices():
    sigma, reset, moneyness = double([0.3, 0.6]), double([0.0, 0.25, 0.5])[:, None], double([0.9, 1.1])[:, None, None]
    model = pr.Heston(0.04, 1.5, 0.06, sigma, -0.7)
    found = pr.price(pr.ForwardStart(moneyness, reset, 1.0), model, MARKET).value
    assert found.shape == (2, 3, 2)
    for i, j, k in itertools.product(range(2), range(3), range(2)):
        single = pr.ForwardStart(moneyness[i, 0, 0], reset[j, 0], 1.0)
        alone = pr.price(single, pr.Heston(0.04, 1.5, 0.06, sigma[k], -0.7), MARKET)
        assert found[i, j, k].item() == pytest.approx(alone.value.item(), abs=1e-9)
    low = pr.price(
        pr.ForwardStart(torch.tensor(0.9), torch.tensor(0.5), torch.tensor(1.0)),
        pr.Heston(*(torch.tensor(value) for value in HESTON.values())),
        pr.Market(torch.tensor(100.0)),
    )
    assert low.value.dtype == torch.float32


@pytest.mark.parametrize(
    "numbers", [HESTON | {"kappa": 0.3, "sigma": 0.6, "rho": 0.5}, pytest.param(HESTON, marks=pytest.mark.slow)]
)
def test_derivatives(numbers):
    def forward_start(reset, v0, kappa, theta, sigma, rho):
        contract, model = pr.ForwardStart(0.9, reset, 1.0), pr.Heston(v0, kappa, theta, sigma, rho)
        return pr.Fourier().price(contract, model, pr.Market(1.0, 0.03)).value

    inputs = [double(value).requires_grad_() for value in (0.5, *numbers.values())]
    assert torch.autograd.gradcheck(forward_start, inputs, check_forward_ad=True, rtol=1e-5, atol=1e-8)
    rest = [double(value) for value in numbers.values()]
    today = double(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(forward_start(today, *rest), today)
    up, down = (forward_start(double(h), *rest).item() for h in (2e-5, 1e-5))
    assert slope.item() == pytest.approx((up - down) / 1e-5, rel=1e-3)


def test_what_has_no_known_forward_law_is_refused():
    rough = pr.RoughHeston(0.04, 0.3, 0.04, 0.3, -0.7, 0.1)
    with pytest.raises(
        ValueError, match="growth between two later dates under RoughHeston has no known characteristic"
    ):
        pr.price(pr.ForwardStart(1.0, 0.5, 1.0), rough, MARKET, pr.Fourier())
    with pytest.raises(ValueError, match="global floor or cap is no sum of forward starts"):
        pr.price(pr.Cliquet([0.0, 0.5, 1.0], 0.0, global_cap=0.2), pr.Heston(**HESTON), MARKET, pr.Fourier())
    paying = pr.Market(100.0, dividends=pr.CashDividends([0.5], [1.0]))
    with pytest.raises(ValueError, match="not as cash amounts"):
        pr.price(pr.ForwardStart(1.0, 0.5, 1.0), pr.Heston(**HESTON), paying, pr.Fourier())
