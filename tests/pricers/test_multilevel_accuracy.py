"""Multilevel Monte Carlo: the stated accuracy is kept, corrections shrink, and what has no bias is refused."""

import math

import pytest
import torch

import pricers as pr
from pricers.monte_carlo.multilevel import Level, _halved

HESTON = pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
MARKET = pr.Market(100.0, rate=0.01, dividend_yield=0.02)
CALL = pr.European(100.0, 1.0)


def root_mean_square(instrument, model, market, exact, n_seeds, **options):
    errors = [
        (pr.MultilevelMonteCarlo(seed=seed, **options).price(instrument, model, market).value - exact).item()
        for seed in range(n_seeds)
    ]
    return math.sqrt(sum(error**2 for error in errors) / n_seeds)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["qe-m", "euler"])
def test_root_mean_square_error_over_seeds_is_the_accuracy(scheme):
    exact = pr.price(CALL, HESTON, MARKET).value
    options = {"accuracy": 0.15, "scheme": scheme, "conditional": False}
    # over 30 seeds the root mean square has a relative error of 13 %
    assert root_mean_square(CALL, HESTON, MARKET, exact, 30, **options) <= 0.15 * 1.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["barrier", "lookback"])
def test_contracts_watched_at_all_times(kind):
    model, market = pr.BlackScholes(0.25), pr.Market(100.0, 0.05)
    contract = {
        "barrier": pr.Barrier(100.0, 1.0, 85.0, "down-out", "call"),
        "lookback": pr.Lookback(None, 1.0, "call"),
    }[kind]
    exact = pr.Analytic().price(contract, model, market).value
    assert root_mean_square(contract, model, market, exact, 10, accuracy=0.2) <= 0.2 * 1.5


def test_one_price_lies_within_its_errors():
    exact = pr.price(CALL, HESTON, MARKET).value
    found = pr.MultilevelMonteCarlo(accuracy=0.1, seed=1).price(CALL, HESTON, MARKET)
    assert (found.value - exact).abs() <= 4.0 * found.std_error + found.error_bound
    assert found.std_error.item() <= 1.05 * 0.1 / math.sqrt(2.0)
    assert found.error_bound.item() <= 0.1 / math.sqrt(2.0)
    again = pr.MultilevelMonteCarlo(accuracy=0.1, seed=1).price(CALL, HESTON, MARKET)
    assert torch.equal(found.value, again.value)


def test_variance_of_the_corrections_falls_with_the_step():
    """Giles (2008), theorem 3.1: a slope above 1 (on the square of the strong error) makes the cost 1/accuracy^2."""
    engine = pr.MultilevelMonteCarlo(accuracy=0.1, seed=3, scheme="euler", conditional=False)
    levels = [Level(0, engine._engine().sampler(CALL, pr.Heston(0.09, 2.0, 0.09, 0.3, -0.3), MARKET), None)]
    for index in range(1, 6):
        levels.append(Level(index, _halved(levels[-1].fine), levels[-1].fine))
    engine._draw(levels)
    logs = torch.tensor([math.log2(level.variance.item()) for level in levels[1:]])
    slope = (logs[-1] - logs[0]) / (len(logs) - 1)
    assert slope <= -0.8
    assert levels[-1].variance < 0.05 * levels[0].variance


@pytest.mark.parametrize(
    ("triple", "message"),
    [
        ((CALL, pr.BlackScholes(0.2), MARKET), "exactly.*MonteCarlo"),
        ((CALL, pr.RoughBergomi(0.04, 1.9, 0.1, -0.9), MARKET), "halved.*MonteCarlo"),
        ((pr.American(100.0, 1.0), HESTON, MARKET), "LongstaffSchwartz"),
    ],
)
def test_refusals(triple, message):
    with pytest.raises(ValueError, match=message):
        pr.MultilevelMonteCarlo(accuracy=0.1, seed=0).price(*triple)


@pytest.mark.parametrize("options", [{"accuracy": 0.0}, {"accuracy": math.inf}, {"accuracy": 0.1, "n_steps": 0}])
def test_bad_numbers(options):
    with pytest.raises(ValueError, match="must be"):
        pr.MultilevelMonteCarlo(seed=0, **options)
