"""Policies without costs against the exact optimum of hedging at discrete dates: price, holdings, spread of the P&L."""

import math

import numpy as np
import pytest
import torch
from hedging.truth import hedging_truth

import pricers as pr
import qfml
from qfml.engine import Cosine
from qfml.hedging import Book, Entropic, FeedForward, ModelMarket, deep_hedge

HORIZON, AVERSION, VOL = 28 / 365, 10.0, 0.2


def trained(n_steps, n_epochs, n_paths, hidden, information=("log_moneyness", "time_to_horizon")):
    """A network that is told of the price and the time alone, and of no delta, unless asked for."""
    market = ModelMarket(
        pr.BlackScholes(VOL), pr.Market(1.0), n_steps=n_steps, horizon=HORIZON, information=information
    )
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=5e-3, weight_decay=0.0),
        schedule=Cosine(),
        max_epochs=n_epochs,
        batch_size=n_paths,
        seed=1,
    )
    return deep_hedge(
        market,
        Book(((1.0, pr.European(1.0, HORIZON)),)),
        Entropic(AVERSION),
        policy=FeedForward(hidden=hidden, sees_holdings=False),
        trainer=trainer,
        steps_per_epoch=100,
        n_validation=2**13,
    )


def optimum(n_steps):
    return hedging_truth.frictionless(hedging_truth.Problem(AVERSION, 0.0, n_steps, HORIZON / n_steps))


def judged(hedger, n_sets, n_paths=2**15):
    """Price with its standard error, deviation of the P&L, and by date the distances from the exact hedge (2, L - 1).

    The largest and the root mean square, where the price is within one standard deviation of its start, as it is on
    two paths of three.
    """
    n_steps = hedger.loss.n_steps
    exact = optimum(n_steps)
    pnl, distances = [], []
    for number in range(n_sets):
        paths = hedger.paths(n_paths, seed=9, number=number)
        spot = paths.prices[..., 0].double().numpy()
        held = hedger.holdings(paths)[0, :, :, 0].double().numpy()
        pnl.append(hedger.gains(paths).pnl)
        for date in range(n_steps):
            central = np.abs(np.log(spot[:, date])) <= VOL * math.sqrt(date * HORIZON / n_steps)
            apart = np.abs(held[central, date] - exact.hold(date, spot[central, date]))
            distances.append((apart.max(), np.square(apart).mean()))
    pnl = torch.cat(pnl, 1)
    found = Entropic(AVERSION).price(pnl)
    largest, squares = np.array(distances).reshape(n_sets, n_steps, 2).transpose(2, 0, 1)
    distance = np.stack([largest.max(0), np.sqrt(squares.mean(0))])
    return float(found.value), float(found.std_error), float(pnl.double().std()), distance


def test_after_seconds_the_price_is_near_the_optimum_and_the_hedge_near_the_exact_one():
    hedger = trained(n_steps=7, n_epochs=2, n_paths=512, hidden=(16, 16))
    price, error, _, distance = judged(hedger, n_sets=1)
    assert price > optimum(7).price - 4 * error  # nothing is better than the optimum
    assert price < optimum(7).price + 4 * error
    assert distance[0, :5].max() < 0.06


def test_after_seconds_the_deviation_of_the_pnl_falls_about_like_the_root_of_the_steps():
    """Kamal and Derman (1999), "When You Cannot Hedge Continuously": vega times vol times root of pi / 4n.

    A hedge that does not follow the spot has the same deviation however often it trades.
    """
    steps, seen = (4, 16), ("log_moneyness", "time_to_horizon", "call_delta")
    made = [trained(n, n_epochs=2, n_paths=256, hidden=(16, 16), information=seen) for n in steps]
    deviations = np.array([judged(hedger, n_sets=1, n_paths=2**14)[2] for hedger in made])
    root = VOL * math.sqrt(HORIZON)
    vega = math.sqrt(HORIZON / (2 * math.pi)) * math.exp(-0.5 * (root / 2) ** 2)
    expected = vega * VOL * np.sqrt(math.pi / (4 * np.array(steps)))
    assert np.abs(deviations / expected - 1).max() < 0.15
    assert abs(np.log(deviations[1] / deviations[0]) / math.log(steps[1] / steps[0]) + 0.5) < 0.12


@pytest.mark.slow
def test_the_price_is_the_optimum_and_the_hedge_the_exact_one():
    """Price within 3 standard errors, of at most 4e-6; holdings within .02 of the exact ones.

    For the first three quarters of the dates on each of the million paths, then in the root mean square over them: the
    exact hedge steepens into a step, and a path may stand on its side. On the last date, a day before the expiry, this
    network is .029 off in the root mean square.
    """
    price, error, _, distance = judged(trained(28, n_epochs=20, n_paths=2048, hidden=(32, 32, 32)), n_sets=32)
    assert error < 4e-6
    assert abs(price - optimum(28).price) < 3 * error
    assert distance[0, :21].max() < 0.02
    assert distance[1, :-1].max() < 0.02
    assert distance[1, -1] < 0.04


@pytest.mark.slow
def test_the_deviation_of_the_pnl_falls_like_the_root_of_the_steps():
    """Of networks that are told the delta: the last of 56 dates is half a day from the step that the hedge becomes."""
    steps, seen = (7, 14, 28, 56), ("log_moneyness", "time_to_horizon", "call_delta")
    made = [trained(n, n_epochs=20, n_paths=1024, hidden=(32, 32), information=seen) for n in steps]
    deviations = [judged(hedger, n_sets=2)[2] for hedger in made]
    slope = float(np.polyfit(np.log(steps), np.log(deviations), 1)[0])
    assert abs(slope + 0.5) < 0.05
