"""Conditional simulation and control variates: unbiased against closed forms and plain simulation, and worth it."""

import pytest
import torch

import pricers as pr
from pricers.monte_carlo.statistics import controlled

MARKET = pr.Market(100.0, rate=0.03, dividend_yield=0.01)
HESTON = pr.Heston(0.04, 2.0, 0.06, 0.5, -0.6)
FIXINGS = [0.25, 0.5, 0.75, 1.0]


def engine(n_paths: int = 2**15, **settings) -> pr.MonteCarlo:
    return pr.MonteCarlo(n_paths, seed=4, **({"noise": "sobol"} | settings))


@pytest.mark.parametrize("option", ["call", "put"])
@pytest.mark.parametrize("pays", ["cash", "asset"])
def test_conditional_digital_against_fourier(option, pays):
    contract = pr.Digital([90.0, 105.0], 1.0, option, pays)
    exact = pr.price(contract, HESTON, MARKET)
    found = engine(scheme="exact").price(contract, HESTON, MARKET)
    unit = 1.0 if pays == "cash" else 100.0
    assert (found.std_error < 3e-5 * unit).all()
    assert ((found.value - exact.value).abs() <= 4 * found.std_error + 2e-6 * unit).all()  # look-ups of the scheme


@pytest.mark.parametrize("expiry", [0.5, [0.5, 1.0]])
def test_conditional_european_over_a_batch_of_expiries(expiry):
    contract = pr.European([[90.0], [110.0]], expiry if isinstance(expiry, list) else [expiry])
    exact = pr.price(contract, HESTON, MARKET)
    found = engine(n_steps=16).price(contract, HESTON, MARKET)
    assert found.value.shape == exact.value.shape
    assert (found.std_error < 2e-3).all()
    assert ((found.value - exact.value).abs() <= 4 * found.std_error + 2e-3).all()  # bias of 16 steps


@pytest.mark.slow
@pytest.mark.parametrize("past", [{}, {"running_average": 97.0, "n_past": 3}, {"running_average": 300.0, "n_past": 3}])
@pytest.mark.parametrize("option", ["call", "put"])
def test_conditional_average_is_that_of_plain_paths(option, past):
    contract = pr.Asian([95.0, 105.0], FIXINGS, option, **past)
    smooth = engine(scheme="exact").price(contract, HESTON, MARKET)
    plain = engine(2**16, scheme="exact", conditional=False, controls=False).price(contract, HESTON, MARKET)
    error = (smooth.std_error**2 + plain.std_error**2).sqrt()
    assert (smooth.std_error < 1e-3).all()
    assert (plain.std_error < 2e-2).all()
    assert ((smooth.value - plain.value).abs() <= 4 * error + 1e-9).all()


@pytest.mark.parametrize("model", [pr.BlackScholes(0.3), HESTON], ids=lambda model: model.kind)
def test_conditional_geometric_average_against_the_closed_form(model):
    contract = pr.Asian(100.0, FIXINGS, average="geometric", running_average=101.0, n_past=2)
    exact = pr.price(contract, model, MARKET)
    found = engine(scheme="exact").price(contract, model, MARKET)
    assert found.std_error < 1e-3
    assert abs(found.value - exact.value) <= 4 * found.std_error + 2e-4  # look-ups: 2e-6 of spot


def test_average_with_a_fixing_today_and_of_the_forward():
    contract = pr.Asian(100.0, [0.0, 0.5, 1.0])
    smooth = engine().price(contract, pr.BlackScholes(0.25), MARKET)
    plain = engine(2**17, conditional=False, controls=False).price(contract, pr.BlackScholes(0.25), MARKET)
    assert abs(smooth.value - plain.value) <= 4 * (smooth.std_error**2 + plain.std_error**2).sqrt()


def test_gradients_of_the_conditional_average_are_those_of_differences():
    contract = pr.Asian(100.0, FIXINGS)
    model = pr.Heston(0.04, 2.0, 0.06, 0.5, -0.6)
    settings = engine(2**12, n_steps=8)
    for name in ("spot", "v0", "rho", ("spot", "spot")):
        smooth, bumped = (
            pr.greeks(contract, model, MARKET, wrt=(name,), engine=settings, method=method)[name].value
            for method in ("pathwise", "bump")
        )
        torch.testing.assert_close(smooth, bumped, rtol=2e-3, atol=1e-5)  # central differences of 1e-3


@pytest.mark.parametrize(
    ("contract", "model", "settings"),
    [
        (pr.European(100.0, 1.0), HESTON, {"n_steps": 10}),
        (pr.European(100.0, 1.0), HESTON, {"n_steps": 10, "conditional": False}),
        (pr.Asian(100.0, FIXINGS), HESTON, {"scheme": "exact"}),
        (pr.Asian(100.0, FIXINGS), HESTON, {"scheme": "exact", "conditional": False}),
        (pr.Asian(100.0, FIXINGS), pr.BlackScholes(0.3), {"conditional": False}),
        (pr.Barrier(100.0, 1.0, 80.0, "down-out"), pr.BlackScholes(0.3), {"n_steps": 10}),
        (pr.Lookback(100.0, 1.0, "call"), pr.BlackScholes(0.3), {"n_steps": 10}),
        (
            pr.Basket(100.0, 1.0, weights=[0.5, 0.5]),
            pr.BlackScholes([0.3, 0.2], [[1.0, 0.4], [0.4, 1.0]]),
            {},
        ),
    ],
    ids=lambda item: getattr(item, "kind", None),
)
def test_controls_have_the_mean_that_they_are_known_to_have(contract, model, settings):
    market = MARKET if model.n_assets == 1 else pr.Market([100.0, 100.0], rate=0.03)
    sampler = engine(2**16, noise="pseudo", **settings).sampler(contract, model, market)
    moments = sampler.moments()
    assert sampler.known is not None
    mean, scatter = moments[0].mean[..., 1:], moments[0].scatter.diagonal(dim1=-2, dim2=-1)[..., 1:]
    error = scatter.sqrt() / 2**16
    assert ((mean - sampler.known).abs() <= 4 * error + 2e-5 * sampler.known.abs()).all()  # look-ups
    value, with_controls = controlled(moments, sampler.known)
    plain, without = controlled(moments, None)
    assert with_controls <= 1.0001 * without
    assert abs(value - plain) <= 4 * without


@pytest.mark.parametrize(
    ("contract", "model", "least"),
    [
        (pr.Asian(100.0, FIXINGS), pr.BlackScholes(0.3), 20.0),
        (pr.Barrier(100.0, 1.0, 70.0, "down-out"), pr.BlackScholes(0.2), 5.0),
    ],
    ids=lambda item: getattr(item, "kind", None),
)
def test_controls_cut_the_error(contract, model, least):
    settings = {"noise": "pseudo", "conditional": False, "n_steps": 8}
    with_controls = engine(**settings).price(contract, model, MARKET)
    without = engine(**settings, controls=False).price(contract, model, MARKET)
    assert without.std_error > least * with_controls.std_error
    assert abs(with_controls.value - without.value) <= 4 * without.std_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "expiry", "price"),
    [
        ((0.04, 0.5, 0.04, 1.0, -0.9), 10.0, 13.08467014),
        ((0.0175, 1.5768, 0.0398, 0.5751, -0.5711), 1.0, 5.785155434376),
    ],
)
def test_one_part_in_ten_thousand_of_a_european(parameters, expiry, price):
    contract, model, market = pr.European(100.0, expiry), pr.Heston(*parameters), pr.Market(100.0)
    for seed in range(4):
        found = pr.MonteCarlo(2**15, noise="sobol", scheme="exact", seed=seed).price(contract, model, market)
        assert found.std_error < 1e-4 * price
        assert abs(found.value - price) + found.std_error < 2e-4 * price


@pytest.mark.slow
def test_one_part_in_ten_thousand_of_an_average():
    contract, market = pr.Asian(100.0, [float(year) for year in range(1, 11)]), pr.Market(100.0)
    model = pr.Heston(0.04, 0.5, 0.04, 1.0, -0.9)
    fine = pr.MonteCarlo(2**19, noise="sobol", scheme="exact", seed=99).price(contract, model, market)
    found = pr.MonteCarlo(2**17, noise="sobol", scheme="exact", seed=1).price(contract, model, market)
    assert found.std_error < 1e-4 * found.value
    assert abs(found.value - fine.value) <= 4 * (found.std_error**2 + fine.std_error**2).sqrt()
