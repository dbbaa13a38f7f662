"""Variance swaps and options: published values, replication from smiles, simulated payoffs, inverted transforms."""

import math
import re

import mpmath
import pytest
import torch
from lognormal_paths import flat_discount, lognormal_paths
from torch import Tensor

from pricers.analytic.heston_variance_option import FORMULAS as HESTON_FORMULAS
from pricers.analytic.variance import FORMULAS, variance_swap_by_replication
from pricers.black.implied_vol import implied_vol
from pricers.black.price import black_price
from pricers.instruments.variance import VarianceOption, VarianceSwap
from pricers.market import CashDividends, Market
from pricers.models.bates import Bates, Merton
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston
from pricers.monte_carlo import MonteCarlo
from pricers.paths import Paths

# torch itself loads its deprecated script compiler with the first forward-mode derivative
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

# Demeterfi, Derman, Kamal and Zou (1999), table 1, over a continuum of strikes: S 100, r .05, T .25, vol .2 with a skew
# of -1 point per 5 points of strike. The often quoted .04189 is the error of a strip of few strikes.
SKEW_VARIANCE = 0.040190
# theta + (v0 - theta)(1 - e^{-kappa T}) / (kappa T) for v0 .04, kappa 4, theta .25, T 1
HESTON_FAIR_VARIANCE = 0.19846157104
LEWIS = {"v0": 0.04, "kappa": 4.0, "theta": 0.25, "sigma": 1.0, "rho": -0.5}
MARKET = Market(100.0, 0.03)


def value(instrument: VarianceSwap | VarianceOption, model, market: Market = MARKET) -> Tensor:
    return FORMULAS[type(instrument), type(model)](instrument, model, market).value


def skew(strike: Tensor) -> Tensor:
    return 0.2 - 0.01 * (strike - 100.0) / 5.0


def test_replication_published():
    fair = variance_swap_by_replication(skew, 100.0 * math.exp(0.05 * 0.25), 0.25, strikes=(20.0, 195.0))
    assert fair.item() == pytest.approx(SKEW_VARIANCE, abs=5e-7)


@pytest.mark.parametrize("vol", [0.02, 0.3, 1.5])
@pytest.mark.parametrize("expiry", [0.01, 1.0, 5.0])
def test_replication_of_a_flat_smile_is_its_variance(vol: float, expiry: float):
    fair = variance_swap_by_replication(lambda strike: torch.full_like(strike, vol), 90.0, expiry)
    assert fair.item() == pytest.approx(vol**2, rel=1e-10)


def test_replication_is_the_mean_of_a_mixture():
    # two volatilities with probability 1/2 each: the smile is implied, the fair variance their mean variance
    def smile(strike: Tensor) -> Tensor:
        vols = []
        for option in ("put", "call"):
            price = 0.5 * sum(black_price(100.0, strike, 1.0, vol, 1.0, option) for vol in (0.15, 0.35))
            vols.append(implied_vol(price, 100.0, strike, 1.0, option=option, errors="nan"))
        return torch.where(strike < 100.0, *vols)

    fair = variance_swap_by_replication(smile, 100.0, 1.0)
    assert fair.item() == pytest.approx(0.5 * (0.15**2 + 0.35**2), rel=1e-9)


def test_replication_refuses_a_smile_that_ends():
    with pytest.raises(ValueError, match="give the range of `strikes` that the smile holds for"):
        variance_swap_by_replication(lambda k: torch.where(k < 120.0, 0.2, math.nan), 100.0, 1.0)


def test_replication_derivatives():
    def fair(level: Tensor, slope: Tensor, forward: Tensor, expiry: Tensor) -> Tensor:
        return variance_swap_by_replication(lambda k: level + slope * (k - 100.0), forward, expiry, (30.0, 190.0))

    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.2, -0.002, 101.0, 0.25)]
    assert torch.autograd.gradcheck(
        fair, inputs, check_forward_ad=True, check_undefined_grad=False, rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forward": 0.0}, "`forward` must be above 0"),
        ({"expiry": -1.0}, "`expiry` must be above 0"),
        ({"forward": [100.0, 90.0]}, "`forward` and `expiry` must be one number each"),
        ({"strikes": (110.0, 120.0)}, "`strikes` must be (low, high) with 0 < low < forward < high"),
        ({"strikes": (50.0, 250.0)}, "`vol_of_strike` must be above 0 and finite, it is not at strike"),
    ],
)
def test_replication_bad_input(arguments: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        variance_swap_by_replication(skew, **{"forward": 100.0, "expiry": 0.25, "strikes": (50.0, 190.0), **arguments})


def test_heston_fair_variance_published():
    fair = value(VarianceSwap(0.0, 1.0), Heston(**LEWIS), Market(100.0))
    assert fair.item() == pytest.approx(HESTON_FAIR_VARIANCE, rel=1e-10)


def test_swap_is_discounted_mean_minus_strike():
    swap = VarianceSwap([0.03, 0.05], 2.0)
    assert value(swap, BlackScholes(0.2)).tolist() == pytest.approx(
        [math.exp(-0.06) * 0.01, -math.exp(-0.06) * 0.01], rel=1e-12
    )
    jumps = {"intensity": 0.4, "jump_mean": -0.12, "jump_std": 0.18}
    extra = 0.4 * (0.12**2 + 0.18**2)
    assert value(swap, Merton(0.2, **jumps))[0].item() == pytest.approx(math.exp(-0.06) * (0.01 + extra), rel=1e-12)
    difference = value(swap, Bates(**LEWIS, **jumps)) - value(swap, Heston(**LEWIS))
    assert difference.tolist() == pytest.approx([math.exp(-0.06) * extra] * 2, rel=1e-10)


@pytest.mark.parametrize(
    "model",
    [
        Heston(**LEWIS),
        Merton(0.2, intensity=0.4, jump_mean=-0.12, jump_std=0.18),
        Bates(**LEWIS, intensity=0.4, jump_mean=-0.12, jump_std=0.18),
    ],
)
def test_swap_formula_against_simulation(model):
    swap = VarianceSwap(0.1, 1.0)
    simulated = MonteCarlo(n_paths=2**14, n_steps=24, seed=1).price(swap, model, MARKET)
    assert simulated.std_error.item() < 2e-3
    # the scheme's own bias in the mean of the integrated variance is far below the standard error
    assert abs(simulated.value.item() - value(swap, model).item()) < 4 * simulated.std_error.item()


def test_payoffs_brute_force():
    times = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    variance, jumps = torch.rand(2, 8, 3, generator=generator, dtype=torch.float64) * 0.05
    paths = Paths(times, torch.ones(8, 4, dtype=torch.float64), variance, jumps)
    swap = VarianceSwap(0.04, [0.5, 1.0]).payoff(paths, flat_discount(0.02))
    calls = VarianceOption(0.06, [0.5, 1.0], "call").payoff(paths, flat_discount(0.02))
    puts = VarianceOption(0.06, [0.5, 1.0], "put").payoff(paths, flat_discount(0.02))
    for i in range(8):
        for j, (n, expiry) in enumerate([(2, 0.5), (3, 1.0)]):
            realised = sum((variance[i, k] + jumps[i, k]).item() for k in range(n)) / expiry
            discount = math.exp(-0.02 * expiry)
            assert swap[j, i].item() == pytest.approx(discount * (realised - 0.04), rel=1e-12)
            assert calls[j, i].item() == pytest.approx(discount * max(realised - 0.06, 0.0), rel=1e-12)
            assert puts[j, i].item() == pytest.approx(discount * max(0.06 - realised, 0.0), rel=1e-12)


def test_option_under_constant_volatility_is_known_today():
    paths = lognormal_paths([0.5, 1.0], 4, vol=0.2)
    for option, gain in (("call", 0.01), ("put", 0.0)):
        contract = VarianceOption(0.03, 1.0, option)
        assert value(contract, BlackScholes(0.2)).item() == pytest.approx(math.exp(-0.03) * gain, rel=1e-12)
        assert contract.payoff(paths, flat_discount(0.03)).tolist() == pytest.approx([math.exp(-0.03) * gain] * 4)


def heston_option(strike: Tensor, option: str = "put", **law: Tensor) -> Tensor:
    expiry = law.pop("expiry")
    return HESTON_FORMULAS[VarianceOption, Heston](
        VarianceOption(strike, expiry, option), Heston(**law, rho=-0.3), Market(100.0, 0.03)
    ).value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strike", "expiry", "v0", "kappa", "theta", "sigma"),
    [
        (0.04, 1, 0.04, 1, 0.04, 0.5),
        (0.02, 1, 0.04, 1, 0.04, 1),
        (0.2, 1, 0.04, 4, 0.25, 1),
        (0.03, 1, 0, 1, 0.04, 0.6),
    ],
)
def test_heston_option_by_mpmath(strike: float, expiry: float, v0: float, kappa: float, theta: float, sigma: float):
    # the transform as it is printed (Cox, Ingersoll and Ross), along a vertical line
    def integrand(u: mpmath.mpf) -> mpmath.mpf:
        s = 2 / mpmath.mpf(strike) + 1j * u
        gamma = mpmath.sqrt(kappa**2 + 2 * sigma**2 * s / expiry)
        decay = mpmath.exp(-gamma * expiry)
        bottom = (gamma + kappa) + (gamma - kappa) * decay
        power = (kappa - gamma) * expiry - 2 * mpmath.log(bottom / (2 * gamma))
        log_transform = kappa * theta / sigma**2 * power - 2 * s / expiry * (1 - decay) / bottom * v0
        return (mpmath.exp(s * strike + log_transform) / s**2).real / mpmath.pi

    with mpmath.workdps(20):
        pieces = [0, *(10.0 ** (j / 4) / strike for j in range(-4, 21))]
        exact = math.exp(-0.03 * expiry) * float(mpmath.quad(integrand, pieces))
    law = {"expiry": expiry, "v0": v0, "kappa": kappa, "theta": theta, "sigma": sigma}
    assert heston_option(strike, **law).item() == pytest.approx(exact, rel=1e-11)
    swap = value(VarianceSwap(strike, expiry), Heston(v0, kappa, theta, sigma, 0.0)).item()
    assert heston_option(strike, "call", **law).item() == pytest.approx(exact + swap, rel=1e-10)


def test_heston_option_without_volatility_of_variance_is_intrinsic():
    law = {"expiry": 1.0, "v0": 0.04, "kappa": 1.0, "theta": 0.09, "sigma": 1e-7}
    known = value(VarianceSwap(0.0, 1.0), Heston(0.04, 1.0, 0.09, 1e-7, 0.0), Market(100.0)).item()
    for strike in (0.01, 0.05, 0.07, 0.3):
        exact = math.exp(-0.03) * max(strike - known, 0.0)
        assert heston_option(strike, **law).item() == pytest.approx(exact, abs=1e-14)


def test_heston_option_batches_and_bound():
    strikes = torch.linspace(0.01, 0.3, 40, dtype=torch.float64)[:, None]
    expiry = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)
    contract = VarianceOption(strikes, expiry, "put")
    estimate = HESTON_FORMULAS[VarianceOption, Heston](contract, Heston(**LEWIS), MARKET)
    assert estimate.value.shape == (40, 3)
    assert bool((estimate.error_bound < 1e-14).all())
    slopes = estimate.value.diff(dim=0) / strikes.diff(dim=0)  # between 0 and the discount factor, and rising: convex
    assert bool((slopes > -1e-13).all())
    assert bool((slopes < MARKET.discount(expiry) + 1e-13).all())
    assert bool((slopes.diff(dim=0) > -1e-12).all())
    alone = HESTON_FORMULAS[VarianceOption, Heston](VarianceOption(strikes[7, 0], 1.0, "put"), Heston(**LEWIS), MARKET)
    assert estimate.value[7, 1].item() == pytest.approx(alone.value.item(), rel=1e-12)


def test_heston_option_derivatives():
    names = ("expiry", "v0", "kappa", "theta", "sigma")
    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.04, 1.0, 0.05, 1.2, 0.04, 0.5)]

    def price(strike: Tensor, *law: Tensor) -> Tensor:
        return heston_option(strike, **dict(zip(names, law, strict=True)))

    checks = {"check_forward_ad": True, "check_undefined_grad": False}  # the latter is for hand-written derivatives
    assert torch.autograd.gradcheck(price, inputs, atol=1e-9, rtol=1e-6, **checks)
    assert torch.autograd.gradgradcheck(price, inputs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VarianceSwap(-0.01, 1.0), "`strike` must be 0 or more, got -0.01"),
        (lambda: VarianceSwap(0.04, -1.0), "`expiry` must be above 0, got -1"),
        (lambda: VarianceSwap(float("nan"), 1.0), "`strike` must be finite"),
        (lambda: VarianceOption(0.0, 1.0, "call"), "`strike` must be above 0"),
        (lambda: VarianceOption(0.04, 1.0, "both"), "`option` must be one of 'call', 'put'"),
        (lambda: VarianceOption([0.04, 0.05], [1.0, 2.0, 3.0], "put"), "(2,) and `expiry` of shape (3,)"),
    ],
)
def test_bad_contract_is_refused(make, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_cash_dividends_are_refused():
    market = Market(100.0, dividends=CashDividends([0.5], [1.0]))
    for contract in (VarianceSwap(0.04, 1.0), VarianceOption(0.04, 1.0, "call")):
        with pytest.raises(ValueError, match="cash dividend"):
            value(contract, BlackScholes(0.2), market)
