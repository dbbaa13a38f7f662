"""Greeks from paths against exact ones: pathwise, by scores and by bumps; jumps, digitals, barriers, many assets."""

import pytest
import torch

import pricers as pr
from pricers import noise
from pricers.models import heston_exact

LEWIS = pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
FANG = pr.Heston(v0=0.0175, kappa=1.5768, theta=0.0398, sigma=0.5751, rho=-0.5711)
MARKET = pr.Market(100.0, rate=0.01, dividend_yield=0.02)
SOBOL = {"noise": "sobol", "seed": 3}


def agree(found, exact, bias=0.0):
    """Four standard errors, and the stated bias of the time steps, relative."""
    for name, estimate in found.items():
        gap = (estimate.value - exact[name].value).abs()
        reach = 4.0 * estimate.std_error + exact[name].error_bound + bias * exact[name].value.abs()
        assert (estimate.std_error > 0).all(), name
        assert (gap <= reach).all(), (name, estimate.value, exact[name].value, estimate.std_error)


def precise(found, exact, relative):
    """A Greek whose error is as large as itself proves nothing."""
    for name, estimate in found.items():
        assert (estimate.std_error <= relative * exact[name].value.abs().max()).all(), (name, estimate.std_error)


HESTON_NAMES = ("spot", ("spot", "spot"), "v0", "kappa", "theta", "sigma", "rho", "rate", ("spot", "v0"))


def test_heston_call():
    call = pr.European(100.0, 1.0)
    exact = pr.greeks(call, LEWIS, MARKET, HESTON_NAMES)
    found = pr.greeks(call, LEWIS, MARKET, HESTON_NAMES, pr.MonteCarlo(n_paths=2**14, n_steps=16, **SOBOL))
    agree(found, exact, bias=0.03)
    precise(found, exact, 0.02)


@pytest.mark.slow  # minutes: the bias of the scheme, which needs small standard errors to be seen
# Where Feller's condition fails and the variance starts near 0, the cross derivative is noisy: standard errors of 12 %
# from 2^15 paths and 4 % from 2^17. Half a percent would take some 2^23.
@pytest.mark.parametrize(("model", "market", "cross"), [(LEWIS, MARKET, 0.005), (FANG, pr.Market(100.0), 0.05)])
def test_bias_of_quadratic_exponential_steps_is_small_at_100_a_year(model, market, cross):
    call = pr.European(100.0, 1.0)
    wrt = (*HESTON_NAMES, "time", ("v0", "v0"))
    exact = pr.greeks(call, model, market, wrt)
    found = pr.greeks(call, model, market, wrt, pr.MonteCarlo(n_paths=2**17, n_steps=100, **SOBOL))
    agree(found, exact, bias=0.003)
    second_in_v0 = ("spot", "v0"), ("v0", "v0")
    precise({name: found[name] for name in wrt if name not in second_in_v0}, exact, 0.005)
    precise({("spot", "v0"): found["spot", "v0"]}, exact, cross)


def test_digital_call_under_heston():
    digital = pr.Digital([90.0, 100.0, 110.0], 1.0)
    wrt = ("spot", ("spot", "spot"), "v0", "rho", "rate", "strike", ("spot", "v0"))
    exact = pr.greeks(digital, LEWIS, MARKET, wrt)
    for conditional in (None, False):  # by the closed form along each variance path; by the score of the asset
        engine = pr.MonteCarlo(n_paths=2**15, n_steps=16, seed=5, conditional=conditional)
        found = pr.greeks(digital, LEWIS, MARKET, wrt, engine)
        agree(found, exact, bias=0.03)
    assert found["spot"].engine.endswith("likelihood ratio")
    assert found["strike"].engine.endswith("bump")  # no density moves with a level of the contract
    precise({"spot": found["spot"]}, exact, 0.03)


@pytest.mark.slow  # the grid behind it is differentiated four times
@pytest.mark.parametrize("method", ["auto", "bump"])
def test_discrete_barrier_by_score_and_by_bump(method):
    """Against finite differences."""
    barrier = pr.Barrier(100.0, 0.5, 92.0, "down-out", "call", monitoring=[0.125, 0.25, 0.375])
    model, market, wrt = pr.BlackScholes(0.25), pr.Market(100.0, 0.05, 0.02), ("spot", "vol", "rate", "barrier")
    exact = pr.greeks(barrier, model, market, wrt, pr.FiniteDifference(n_space=160, n_time=24))
    found = pr.greeks(barrier, model, market, wrt, pr.MonteCarlo(n_paths=2**17, seed=1), method, bump=1e-2)
    if method == "auto":  # the level that is watched moves no density
        assert [found[name].engine.split(", ")[1] for name in wrt] == ["likelihood ratio"] * 3 + ["bump"]
        found.pop("barrier")  # with a small bump: too noisy to prove anything
    agree(found, exact, bias=0.01)
    precise({"spot": found["spot"]}, exact, 0.05)


def test_digital_by_score_of_the_exact_law():
    digital, model, market = pr.Digital(105.0, 0.5), pr.BlackScholes(0.3), pr.Market(100.0, 0.03)
    wrt = ("spot", ("spot", "spot"), "vol", ("vol", "vol"), ("spot", "vol"), "rate", "time", "expiry")
    exact = pr.greeks(digital, model, market, wrt)
    found = pr.greeks(digital, model, market, wrt, pr.MonteCarlo(n_paths=2**17, n_steps=10, seed=1))
    agree(found, exact)
    precise({name: found[name] for name in ("spot", "vol", ("spot", "spot"))}, exact, 0.05)


def test_autocallable_by_score_and_by_bump_agree():
    note = pr.Autocallable([0.5, 1.0], 100.0, autocall_barrier=1.0, coupon=0.04, protection_barrier=0.7)
    model, market, wrt = pr.BlackScholes(0.25), pr.Market(100.0, 0.02), ("spot", "vol")
    engine = pr.MonteCarlo(n_paths=2**17, seed=1)
    score = pr.greeks(note, model, market, wrt, engine)
    bump = pr.greeks(note, model, market, wrt, engine, method="bump", bump=5e-3)
    for name in wrt:
        assert score[name].engine.endswith("likelihood ratio")
        error = (score[name].std_error ** 2 + bump[name].std_error ** 2).sqrt()
        assert (score[name].value - bump[name].value).abs() <= 4.0 * error
        assert error <= 0.05 * score[name].value.abs()


def test_merton_in_all_parameters_with_the_score_of_the_number_of_jumps():
    call, model, market = (
        pr.European([90.0, 110.0], 1.0),
        pr.Merton(0.12, 0.4, -0.12, 0.18),
        pr.Market(100.0, 0.05, 0.01),
    )
    wrt = ("spot", "vol", "intensity", "jump_mean", "jump_std", ("spot", "intensity"), "time", "expiry", "rate")
    exact = pr.greeks(call, model, market, wrt)
    for conditional, steps in ((None, None), (False, 4)):
        if conditional is False:
            wrt = tuple(name for name in wrt if isinstance(name, str))
        engine = pr.MonteCarlo(n_paths=2**16, n_steps=steps, seed=2, conditional=conditional)
        found = pr.greeks(call, model, market, wrt, engine)
        agree(found, exact)
        precise({name: found[name] for name in wrt if name != ("spot", "intensity")}, exact, 0.1)


def test_bates_in_its_jumps():
    call, model = pr.European(100.0, 1.0), pr.Bates(0.04, 4.0, 0.25, 1.0, -0.5, 0.4, -0.12, 0.18)
    wrt = ("intensity", "jump_mean", "jump_std", "spot", "time")
    exact = pr.greeks(call, model, MARKET, wrt)
    found = pr.greeks(call, model, MARKET, wrt, pr.MonteCarlo(n_paths=2**15, n_steps=16, seed=2))
    agree(found, exact, bias=0.03)


def test_no_derivative_by_the_intensity_where_nothing_jumps():
    triple = (pr.European(100.0, 1.0), pr.Merton(0.2, 0.0, -0.1, 0.2), MARKET)
    with pytest.raises(ValueError, match=r"intensity.*Fourier"):
        pr.greeks(*triple, ("intensity",), pr.MonteCarlo(n_paths=1024, seed=0))


def test_exchange_option_on_two_assets():
    model = pr.BlackScholes([0.3, 0.2], [[1.0, 0.5], [0.5, 1.0]])
    triple = (pr.Basket(100.0, 1.0, "call", on="max"), model, pr.Market([100.0, 90.0], 0.05))
    wrt = ("spot", "vol", ("spot", "spot"))
    exact = pr.greeks(*triple, wrt)
    found = pr.greeks(*triple, wrt, pr.MonteCarlo(n_paths=2**16, seed=4))
    assert found["spot", "spot"].value.shape == (2, 2)
    agree(found, exact)


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["pseudo", "antithetic", "sobol"])
def test_standard_errors_tell_the_scatter_between_seeds(noise):
    """Over 24 seeds the squared errors in units of the stated one average to 1, within four of their own errors."""
    call, model = pr.European(100.0, 1.0), pr.BlackScholes(0.2)
    exact = pr.greeks(call, model, MARKET, ("spot", "rate", "vol"))
    scores = []
    for seed in range(24):
        engine = pr.MonteCarlo(n_paths=2**12, noise=noise, seed=seed, controls=False)
        found = pr.greeks(call, model, MARKET, ("spot", "rate", "vol"), engine)
        scores.append([((found[k].value - exact[k].value) / found[k].std_error).item() ** 2 for k in exact])
    mean = torch.tensor(scores).mean(0)
    assert ((mean > 0.25) & (mean < 2.2)).all(), mean


def test_all_greeks_share_noise_and_do_not_depend_on_company():
    triple, engine = (pr.European(100.0, 1.0), LEWIS, MARKET), pr.MonteCarlo(n_paths=2048, n_steps=4, **SOBOL)
    together = pr.greeks(*triple, ("spot", "sigma"), engine)
    alone = pr.greeks(*triple, ("sigma",), engine)
    assert torch.equal(together["sigma"].value, alone["sigma"].value)
    assert torch.equal(together["sigma"].std_error, alone["sigma"].std_error)


def test_controls_that_do_not_move_are_left_out():
    """A discounted forward does not depend on the rate: its derivative is rounding, and no control."""
    triple = (pr.European(100.0, 1.0), pr.BlackScholes(0.2), MARKET)
    engine = pr.MonteCarlo(n_paths=2**14, seed=3)
    exact = pr.greeks(*triple, ("rate",))
    for method in ("auto", "bump"):
        agree(pr.greeks(*triple, ("rate",), engine, method), exact)


def test_pathwise_is_refused_where_it_would_miss_something():
    engine = pr.MonteCarlo(n_paths=1024, seed=0, conditional=False)
    with pytest.raises(ValueError, match=r"pathwise.*Digital.*'auto'"):
        pr.greeks(pr.Digital(100.0, 1.0), pr.BlackScholes(0.2), MARKET, ("spot",), engine, "pathwise")
    asian = pr.Asian(100.0, [0.5, 1.0], "call")
    with pytest.raises(ValueError, match=r"pathwise.*second derivative"):
        pr.greeks(asian, pr.BlackScholes(0.2), MARKET, (("spot", "spot"),), engine, "pathwise")
    with pytest.raises(ValueError, match=r"likelihood_ratio.*strike.*'bump'"):
        pr.greeks(pr.Digital(100.0, 1.0), pr.BlackScholes(0.2), MARKET, ("strike",), engine, "likelihood_ratio")
    with pytest.raises(ValueError, match=r"likelihood_ratio.*SABR.*'bump'"):
        pr.greeks(
            pr.European(100.0, 1.0),
            pr.SABR(2.0, 0.5, -0.3, 0.4),
            pr.Market(100.0),
            ("spot",),
            pr.MonteCarlo(n_paths=1024, n_steps=4, seed=0),
            "likelihood_ratio",
        )


def test_single_precision():
    one = torch.tensor(1.0, dtype=torch.float32)
    triple = (pr.European(100.0 * one, one), pr.BlackScholes(0.2 * one), pr.Market(100.0 * one))
    found = pr.greeks(*triple, ("spot", "vol"), pr.MonteCarlo(n_paths=2**14, seed=1))
    exact = pr.greeks(*triple, ("spot", "vol"))
    assert found["spot"].value.dtype == torch.float32
    agree(found, exact, bias=1e-5)


def test_a_target_of_the_price_is_refused_for_greeks():
    engine = pr.MonteCarlo(n_paths=4096, seed=0, target_std_error=0.5)
    with pytest.raises(ValueError, match=r"`target_std_error` is an error of the price.* got 0.5; leave it out"):
        pr.greeks(pr.European(100.0, 1.0), LEWIS, MARKET, ("spot",), engine)


@pytest.mark.slow
@pytest.mark.parametrize("model", [pr.BlackScholes(0.2), pr.Heston(0.04, 2.0, 0.05, 0.5, -0.6)], ids=["flat", "heston"])
@pytest.mark.parametrize("scheme", [None, "exact"])
def test_greeks_on_sobol_points_need_no_price_before_them(model, scheme):
    """What a simulation keeps for later is made by Greeks as well, whatever is differentiated."""
    if scheme is not None and scheme not in model.schemes:
        scheme = None
    asian = pr.Asian(100.0, [0.25, 0.5, 0.75, 1.0])
    engine = pr.MonteCarlo(2**10, n_steps=16, noise="sobol", seed=9, scheme=scheme)
    pr.price(asian, model, pr.Market(100.0, 0.03), engine)
    after = pr.greeks(asian, model, pr.Market(100.0, 0.03), ("spot", ("spot", "spot")), engine=engine)
    noise._scramble.cache_clear()
    heston_exact.tables.cache_clear()
    fresh = pr.greeks(asian, model, pr.Market(100.0, 0.03), ("spot", ("spot", "spot")), engine=engine)
    for key, estimate in after.items():
        assert torch.equal(estimate.value, fresh[key].value)
