"""Simulated paths with their state: martingales, moments of the variance, prices, and addresses of the noise."""

import math

import pytest
import torch
from contract_examples import MODEL_EXAMPLES

import pricers as pr

MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
DATES = [0.1, 0.25, 0.5]
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.06, sigma=0.5, rho=-0.6)
MANY = 2**15  # more than one chunk, so that threads have something to share


@pytest.mark.parametrize("noise", ["pseudo", "antithetic", "sobol"])
@pytest.mark.parametrize("kind", pr.MODELS)
def test_spot_over_forward_is_a_martingale(kind, noise):
    n_paths = 2**13
    made = pr.simulate(MODEL_EXAMPLES[kind].at_point(), MARKET, DATES, n_paths, seed=2, noise=noise, n_steps=32)
    ratio = made.spot / MARKET.forward(made.times)
    assert torch.equal(made.spot[:, 0], torch.full_like(made.spot[:, 0], 100.0))
    std_error = ratio.std(0)[1:] / math.sqrt(n_paths)  # of independent paths: the other noises have less
    assert bool(((ratio.mean(0)[1:] - 1.0).abs() <= 4.0 * std_error).all())
    assert bool((std_error <= 0.004).all())


@pytest.mark.parametrize("scheme", ["qe-m", pytest.param("exact", marks=pytest.mark.slow)])
def test_variance_of_heston_has_its_first_two_moments(scheme):
    made = pr.simulate(HESTON, MARKET, DATES, MANY, seed=3, scheme=scheme, n_steps=20)
    kappa, theta, sigma, v0 = 2.0, 0.06, 0.5, 0.04
    decay = torch.exp(-kappa * made.times)
    mean = theta + (v0 - theta) * decay
    variance = sigma**2 / kappa * (v0 * (decay - decay**2) + 0.5 * theta * (1.0 - decay) ** 2)
    found = made.state["variance"]
    squares = (found - mean) ** 2
    for sample, truth in ((found, mean), (squares, variance)):
        error = sample.std(0)[1:] / math.sqrt(MANY)
        assert bool(((sample.mean(0) - truth)[1:].abs() <= 4.0 * error).all())
        assert bool((error <= 0.02 * truth[1:]).all())


def test_integrated_variance_is_the_trapezium_of_the_variance_and_adds_up():
    made = pr.simulate(HESTON, MARKET, DATES, 64, seed=3, n_steps=20, every_step=True)
    variance, dt = made.state["variance"], made.times.diff()
    trapezium = 0.5 * (variance[:, 1:] + variance[:, :-1]) * dt
    torch.testing.assert_close(made.state["integrated_variance"], trapezium, rtol=1e-12, atol=1e-15)
    coarse = made.on(torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64))
    index = int(torch.searchsorted(made.times, 0.25 - 1e-9))
    parts = torch.stack([trapezium[:, :index].sum(1), trapezium[:, index:].sum(1)], dim=1)
    torch.testing.assert_close(coarse.state["integrated_variance"], parts, rtol=1e-12, atol=1e-15)
    assert torch.equal(coarse.spot[:, 1], made.spot[:, index])


def test_variance_of_rough_bergomi_is_recorded_at_the_ends_of_its_steps():
    model = pr.RoughBergomi(xi=0.05, eta=1.2, hurst=0.2, rho=-0.5)
    made = pr.simulate(model, MARKET, DATES, MANY, seed=3, n_steps=24, every_step=True)
    variance = made.state["variance"]
    error = variance.std(0)[1:] / math.sqrt(MANY)
    assert bool(((variance.mean(0)[1:] - 0.05).abs() <= 4.0 * error).all())
    # a step's variance is the one at its start
    torch.testing.assert_close(made.state["integrated_variance"], variance[:, :-1] * made.times.diff())


@pytest.mark.parametrize("kind", ["black_scholes", "heston", "bates", "rough_bergomi", "local_vol"])
def test_european_price_is_that_of_the_engine(kind):
    model = MODEL_EXAMPLES[kind].at_point()
    call = pr.European(105.0, 0.5)
    engine = pr.price(call, model, MARKET, pr.MonteCarlo(MANY, n_steps=32, seed=8))
    made = pr.simulate(model, MARKET, DATES, MANY, seed=4, n_steps=32)
    value = call.payoff(made.paths, MARKET.discount)
    error = math.hypot(value.std().item() / math.sqrt(MANY), engine.std_error.item())
    assert abs(value.mean().item() - engine.value.item()) <= 4.0 * error
    assert error <= 0.1


def test_path_dependent_price_is_the_closed_form():
    model = pr.BlackScholes(vol=0.2)
    lookback = pr.Lookback(strike=None, expiry=0.5, option="put")
    made = pr.simulate(model, MARKET, [0.5], MANY, seed=5, n_steps=8, every_step=True, bridge_uniforms=True)
    value = lookback.payoff(made.paths, MARKET.discount)
    error = value.std().item() / math.sqrt(MANY)
    assert abs(value.mean().item() - pr.price(lookback, model, MARKET).value.item()) <= 4.0 * error
    assert error <= 0.1


@pytest.mark.parametrize("noise", ["pseudo", "antithetic", "sobol"])
def test_paths_do_not_depend_on_threads_nor_on_how_many_there_are(noise):
    simulation = pr.Simulation(HESTON, MARKET, DATES, n_steps=6, noise=noise, every_step=True, bridge_uniforms=True)
    many = simulation.draw(MANY + 1024, seed=7, number=2)
    few = simulation.draw(2048, seed=7, number=2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threaded = simulation.draw(MANY + 1024, seed=7, number=2)
    finally:
        torch.set_num_threads(before)
    for name in ("spot", "bridge_uniforms"):
        assert torch.equal(getattr(many, name), getattr(threaded, name))
        assert torch.equal(getattr(many, name)[:2048], getattr(few, name))
    assert torch.equal(many.state["variance"], threaded.state["variance"])
    other = simulation.draw(2048, seed=7, number=3)
    assert bool((other.spot[:, 1:] != few.spot[:, 1:]).all())
    if noise == "sobol":  # scrambles of one sequence: independent as sets, not path by path
        return
    correlation = torch.corrcoef(torch.stack([few.spot[:, -1].log(), other.spot[:, -1].log()]))[0, 1]
    assert abs(correlation.item()) < 4.0 / math.sqrt(2048)


def test_antithetic_paths_mirror_each_other():
    made = pr.simulate(pr.BlackScholes(0.2), pr.Market(1.0), DATES, 2048, seed=1, noise="antithetic")
    log_spot = made.spot.log().reshape(2, 2, 512, -1)  # tiles, halves
    drift = -0.5 * 0.04 * made.times
    torch.testing.assert_close(log_spot[:, 0] - drift, drift - log_spot[:, 1], rtol=0.0, atol=1e-14)


def test_paths_have_a_gradient_in_the_parameters():
    vol = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    call = pr.European(100.0, 0.5)

    def mean(of):
        paths = pr.simulate(pr.BlackScholes(of), MARKET, DATES, 4096, seed=6).paths
        return call.payoff(paths, MARKET.discount).mean()

    (gradient,) = torch.autograd.grad(mean(vol), vol)
    with torch.no_grad():
        bumped = (mean(vol + 1e-4) - mean(vol - 1e-4)) / 2e-4
    torch.testing.assert_close(gradient, bumped, rtol=1e-4, atol=0.0)


def test_single_precision_keeps_its_dates_in_double():
    made = pr.simulate(HESTON, MARKET, DATES, 512, seed=1, n_steps=8, dtype=torch.float32)
    assert made.spot.dtype == torch.float32
    assert made.times.dtype == torch.float64
    assert bool(made.spot.isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": pr.BlackScholes([0.2, 0.3])}, "one parameter set"),
        ({"model": "heston"}, "must be one of"),
        ({"market": pr.Market(100.0, dividends=pr.CashDividends([0.1], [1.0]))}, "cash dividends"),
        ({"dates": [0.0]}, "above 0"),
        ({"dates": [0.5, 0.25]}, "ascend"),
        ({"dates": [0.1, float("nan")]}, "finite"),
        ({"n_paths": 3, "noise": "antithetic"}, "even"),
        ({"n_paths": 0}, "n_paths"),
        ({"noise": "white"}, "pseudo"),
        ({"scheme": "milstein"}, "qe-m"),
        ({"number": -1}, "number"),
        ({"dtype": torch.float16}, "dtype"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"model": HESTON, "market": MARKET, "dates": DATES, "n_paths": 8, "seed": 1, **change}
    with pytest.raises(ValueError, match=message):
        pr.simulate(**arguments)


def test_steps_without_a_variance_are_refused():
    model = MODEL_EXAMPLES["local_vol"].at_point()
    with pytest.raises(ValueError, match="every_step"):
        pr.simulate(model, MARKET, DATES, 8, seed=1, scheme="quadratic", every_step=True)


def test_a_date_that_was_not_recorded_is_refused():
    made = pr.simulate(HESTON, MARKET, DATES, 8, seed=1)
    with pytest.raises(ValueError, match="recorded"):
        made.on(torch.tensor([0.0, 0.3], dtype=torch.float64))
