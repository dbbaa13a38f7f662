"""Heston with spot and variance swap, 30 daily steps, expected shortfall: Buehler et al. (2019), section 5.

The paper quotes 1.94 for the worst half of the paths and 3.49 for the worst hundredth. The first is met. The second
is no optimum: the model's own hedge costs less, and a policy less still, also on paths of an independent simulation.
"""

import math

import numpy as np
import pytest
import torch

import pricers as pr
import qfml
from qfml.engine import Cosine
from qfml.hedging import (
    Book,
    ExpectedShortfall,
    FeedForward,
    ModelDelta,
    ModelMarket,
    PathSet,
    Spot,
    VarianceSwapHedge,
    deep_hedge,
    gains,
)
from qfml.hedging.textbook import problem_of

V0, KAPPA, THETA, SIGMA, RHO = 0.04, 1.0, 0.04, 2.0, -0.7
N_STEPS, HORIZON = 30, 30 / 365
QUOTED = {0.5: 1.94, 0.01: 3.49}  # per cent of the spot, by tail
BOOK = Book(((1.0, pr.European(1.0, HORIZON)),))


def market():
    return ModelMarket(
        pr.Heston(V0, KAPPA, THETA, SIGMA, RHO),
        pr.Market(1.0),
        instruments=(Spot(), VarianceSwapHedge(HORIZON)),
        n_steps=N_STEPS,
        horizon=HORIZON,
        information=("log_moneyness", "time_to_horizon", "vol", "prices"),
    )


def trained(tail, n_epochs, n_paths, lr=2e-3, hidden=(32, 32), exact=False, steps_per_epoch=100):
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=lr, weight_decay=0.0),
        schedule=Cosine(),
        max_epochs=n_epochs,
        batch_size=n_paths,
        seed=1,
    )
    return deep_hedge(
        market(),
        BOOK,
        ExpectedShortfall(tail),
        policy=FeedForward(hidden=hidden, sees_holdings=False),
        trainer=trainer,
        steps_per_epoch=steps_per_epoch,
        n_validation=2**13,
        exact=exact,
    )


def priced(hedger, n_sets=8):
    """Price and standard error on fresh paths, in per cent of the spot."""
    pnl = torch.cat([hedger.gains(hedger.paths(2**15, seed=7, number=n)).pnl for n in range(n_sets)], 1)
    found = hedger.loss.objective.price(pnl)
    return 100 * float(found.value), 100 * float(found.std_error)


def independent_paths(vol, n_paths, seed, steps_a_day=10):
    """Paths of the same market by other means: exact draws of the variance, its integral by trapezia (numpy alone).

    Variance: noncentral chi-square (Cox, Ingersoll and Ross, 1985). Price: Broadie and Kaya (2006), eq. 6.
    """
    random, dt = np.random.default_rng(seed), 1 / 365 / steps_a_day
    degrees = 4 * KAPPA * THETA / SIGMA**2
    size = SIGMA**2 * (1 - math.exp(-KAPPA * dt)) / (4 * KAPPA)
    variance, integral, log_spot = np.full(n_paths, V0), np.zeros(n_paths), np.zeros(n_paths)
    rows = [(log_spot, variance, integral)]
    for step in range(N_STEPS * steps_a_day):
        then = size * random.noncentral_chisquare(degrees, variance * math.exp(-KAPPA * dt) / size)
        piece = 0.5 * (variance + then) * dt
        by_variance = RHO / SIGMA * (then - variance - KAPPA * THETA * dt + KAPPA * piece)
        own = np.sqrt((1 - RHO**2) * piece) * random.standard_normal(n_paths)
        log_spot, integral, variance = log_spot + by_variance - 0.5 * piece + own, integral + piece, then
        if (step + 1) % steps_a_day == 0:
            rows.append((log_spot, variance, integral))
    log_spot, variance, integral = (np.stack(part, 1) for part in zip(*rows, strict=True))
    times = np.arange(N_STEPS + 1) / 365
    left = HORIZON - times
    swap = (integral + THETA * left + (variance - THETA) * (1 - np.exp(-KAPPA * left)) / KAPPA) / HORIZON
    spot, to_go = np.exp(log_spot), np.broadcast_to(left / HORIZON, log_spot.shape)
    features = np.stack([-log_spot / (vol * math.sqrt(HORIZON)), to_go, np.sqrt(variance) / vol, swap / vol**2], -1)
    prices, owed = np.stack([spot, swap], -1), np.maximum(spot[:, -1] - 1.0, 0.0)
    names = ("spot", f"variance swap {HORIZON:g}")
    called = ("log_moneyness", "time_to_horizon", "vol", names[1])
    tensors = [torch.tensor(part, dtype=torch.float32) for part in (prices, owed, features)]
    return PathSet(torch.tensor(times), *tensors, names, called)


def test_the_markets_features_and_prices_are_those_of_an_independent_simulation():
    own, other = market().paths(2**14, BOOK, seed=1), independent_paths(market().vol, 2**13, seed=1, steps_a_day=4)
    assert own.feature_names == other.feature_names
    assert own.instrument_names == other.instrument_names
    for name in ("prices", "features", "liability"):
        one, two = (getattr(paths, name).double() for paths in (own, other))
        error = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
        assert bool(((one.mean(0) - two.mean(0)).abs() <= 5 * error + 1e-6).all()), name
        error = (one.square().var(0) / len(one) + two.square().var(0) / len(two)).sqrt()
        assert bool(((one.square().mean(0) - two.square().mean(0)).abs() <= 5 * error + 1e-6).all()), name


def test_seconds_of_training_come_near_the_quoted_price_of_the_worst_half():
    price, error = priced(trained(0.5, n_epochs=1, n_paths=256, lr=1e-2, hidden=(16, 16)), n_sets=1)
    assert 1.90 - 4 * error < price < 1.10 * QUOTED[0.5]


def test_seconds_of_training_on_the_worst_hundredth_cost_less_than_is_quoted():
    """The model's own hedge costs 3.4, no hedge 12.6; what is below the price of the worst half would be an error."""
    hedger = trained(0.01, n_epochs=1, n_paths=256, lr=1e-2, hidden=(16, 16), exact=True, steps_per_epoch=75)
    price, error = priced(hedger, n_sets=1)
    owed = hedger.paths(2**15, seed=7).liability
    assert price + 4 * error < 0.3 * 100 * float(ExpectedShortfall(0.01).risk(-owed[None]))
    assert QUOTED[0.5] < price - 4 * error
    assert price + 4 * error < QUOTED[0.01]


@pytest.mark.slow
def test_the_worst_half_costs_what_is_quoted():
    price, error = priced(trained(0.5, n_epochs=10, n_paths=2048, lr=5e-3))
    assert error < 0.002
    assert abs(price / QUOTED[0.5] - 1) < 0.03


@pytest.mark.slow
def test_the_worst_hundredth_costs_less_than_is_quoted_on_any_paths():
    hedger = trained(0.01, n_epochs=8, n_paths=2048, exact=True)
    price, error = priced(hedger)
    assert error < 0.01
    other = independent_paths(market().vol, 2**17, seed=5)
    found = hedger.price(other)
    apart = 100 * float(found.value) - price
    assert abs(apart) < 4 * math.hypot(error, 100 * float(found.std_error))
    (held,) = ModelDelta().holdings(other, problem_of(market(), BOOK))[None]
    by_model = ExpectedShortfall(0.01).price(gains(held[None], other).pnl)
    assert price < 2.9
    assert price + 4 * error < 100 * float(by_model.value) < QUOTED[0.01]
