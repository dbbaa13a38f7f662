"""Greeks of American and Bermudan options from a fitted rule, against finite differences."""

import pytest
import torch

import pricers as pr

TRIPLE = (pr.American([36.0, 40.0], 1.0, "put"), pr.BlackScholes(0.2), pr.Market(40.0, 0.06))
# spot, vol, rate, strike of FiniteDifference(n_space=240, n_time=80), errors below 1 %
EXACT = {
    "spot": (-0.19833, -0.40476),
    "vol": (10.9108, 14.7120),
    "rate": (-6.7053, -11.1757),
    "time": (-0.68876, -0.80066),
    "strike": (0.24591, 0.46275),
    ("spot", "spot"): (0.03813, 0.05973),
}
ENGINE = pr.LongstaffSchwartz(n_paths=16_384, n_steps=25, seed=1)


def test_greeks_of_the_rule_that_is_held():
    found = pr.greeks(*TRIPLE, tuple(EXACT), ENGINE)
    for name, values in EXACT.items():
        exact = torch.tensor(values, dtype=torch.float64)
        gap = (found[name].value - exact).abs()
        # a rule fitted on 16,384 paths and 25 dates costs about one percent of a Greek
        assert (gap <= 4.0 * found[name].std_error + 0.015 * exact.abs()).all(), (name, found[name].value)
        assert (found[name].std_error <= 0.06 * exact.abs()).all(), name
        assert "held" in found[name].note


def test_bumps_move_the_time_of_exercise_under_the_same_rule():
    found = pr.greeks(*TRIPLE, ("spot",), ENGINE, method="bump", bump=1e-2)["spot"]
    gap = (found.value - torch.tensor(EXACT["spot"], dtype=torch.float64)).abs()
    assert (gap <= 4.0 * found.std_error + 0.006).all()


@pytest.mark.slow
def test_heston_put():
    put, market = pr.American(10.0, 0.25, "put"), pr.Market(9.0, 0.1)
    model = pr.Heston(0.0625, 5.0, 0.16, 0.9, 0.1)
    exact = pr.greeks(put, model, market, ("spot", "v0"), pr.FiniteDifference(n_space=80, n_time=20, n_variance=32))
    found = pr.greeks(put, model, market, ("spot", "v0"), pr.LongstaffSchwartz(n_paths=16_384, n_steps=20, seed=1))
    for name in found:
        gap = (found[name].value - exact[name].value).abs()
        assert gap <= 4.0 * found[name].std_error + exact[name].error_bound + 0.02 * exact[name].value.abs(), name


def test_exercise_now_has_the_greeks_of_the_payoff():
    found = pr.greeks(pr.American(60.0, 1.0, "put"), *TRIPLE[1:], ("spot", "strike", "vol"), ENGINE)
    assert [found[name].value.item() for name in ("spot", "strike", "vol")] == [-1.0, 1.0, 0.0]


def test_several_assets_have_one_greek_each():
    model = pr.BlackScholes([0.2, 0.2], [[1.0, 0.0], [0.0, 1.0]])
    option = pr.Bermudan(100.0, [1.0, 2.0, 3.0], "call", on="max")
    engine = pr.LongstaffSchwartz(n_paths=16_384, n_steps=3, seed=1)
    found = pr.greeks(option, model, pr.Market([100.0, 100.0], 0.05, 0.1), ("spot", "strike"), engine)
    value = pr.price(option, model, pr.Market([100.0, 100.0], 0.05, 0.1), engine)
    assert found["spot"].value.shape == (2,)
    # Euler: the value is homogeneous in spots and strike, and so is that of a rule in their ratios, path by path
    total = 100.0 * (found["spot"].value.sum() + found["strike"].value)
    assert total.item() == pytest.approx(value.value.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("wrt", "method", "message"),
    [
        ((("vol", "vol"),), "auto", r"vol and vol.*FiniteDifference"),
        (("spot",), "likelihood_ratio", r"pathwise.*bump"),
        (("sigma",), "auto", r"known are"),
    ],
)
def test_refusals(wrt, method, message):
    with pytest.raises(ValueError, match=message):
        pr.greeks(*TRIPLE, wrt, ENGINE, method)


@pytest.mark.parametrize("name", ["time", "expiry", "dividends.times"])
@pytest.mark.parametrize("method", ["auto", "bump"])
def test_dates_under_cash_dividends_are_refused(name, method):
    market = pr.Market(100.0, 0.05, dividends=pr.CashDividends([0.3, 0.8], [4.0, 4.0]))
    engine = pr.LongstaffSchwartz(2**9, n_steps=20, seed=1)
    with pytest.raises(ValueError, match=f"derivative by {name} moves exercise dates .* use FiniteDifference"):
        pr.greeks(pr.American(100.0, 1.0, "put"), pr.BlackScholes(0.25), market, (name,), engine=engine, method=method)
