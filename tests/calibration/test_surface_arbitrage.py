"""Arbitrage in quotes: against brute force over all trades, where it was planted, and absent from a model's quotes."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pricers as pr
from pricers.black import black_price
from qfml.calibration.surface import Surface
from qfml.errors import ConfigError, DataError

STRIKES = np.array([80.0, 85.0, 95.0, 100.0, 105.0, 120.0])  # uneven on purpose


def one_smile(vols, **how):
    return Surface.from_grid(STRIKES, [0.5], [vols], forwards=[100.0], **how)


def arbitrages(surface):
    return [finding for finding in surface.check() if finding.kind in ("vertical", "butterfly", "calendar")]


def calls(vols, expiry=0.5):
    vols = np.asarray(vols, float)
    return black_price(100.0, torch.from_numpy(STRIKES), expiry, torch.from_numpy(vols)).numpy()


def test_the_smiles_of_a_model_hold_none():
    model = pr.Heston(v0=0.04, kappa=2.0, theta=0.05, sigma=0.6, rho=-0.7)
    expiries = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    strikes = torch.exp(torch.linspace(-0.25, 0.2, 9, dtype=torch.float64) * expiries[:, None].sqrt())
    price = pr.price(pr.European(strikes, expiries[:, None], "call"), model, pr.Market(1.0)).value
    vols = pr.implied_vol(price, 1.0, strikes, expiries[:, None])
    surface = Surface.from_grid(strikes, expiries.numpy(), vols, forwards=[1.0] * 4)
    assert surface.check() == ()


@given(st.lists(st.floats(0.1, 0.6), min_size=6, max_size=6))
@settings(max_examples=40, deadline=None)
def test_mid_arbitrage_within_an_expiry_is_found_if_and_only_if_a_trade_pays(vols):
    call = calls(vols)
    trades = [call[j] - call[i] for i, j in combinations(range(6), 2)]  # i struck lower, so worth more
    trades += [call[i] - call[j] - (STRIKES[j] - STRIKES[i]) for i, j in combinations(range(6), 2)]
    for i, j, k in combinations(range(6), 3):
        share = (STRIKES[k] - STRIKES[j]) / (STRIKES[k] - STRIKES[i])
        trades.append(call[j] - share * call[i] - (1.0 - share) * call[k])
    found = arbitrages(one_smile(vols))
    if max(trades) > 1e-9:
        assert found
        assert max(finding.price for finding in found) <= max(trades) + 1e-12
    else:
        assert all(finding.price <= 1e-9 for finding in found)


@given(st.lists(st.floats(0.15, 0.35), min_size=6, max_size=6), st.floats(1e-3, 0.08))
@settings(max_examples=40, deadline=None)
def test_executable_arbitrage_is_found_if_and_only_if_a_trade_pays_at_the_market(vols, width):
    vols = np.array(vols)
    bid, ask = calls(vols - width / 2.0), calls(vols + width / 2.0)
    trades = [bid[j] - ask[i] for i, j in combinations(range(6), 2)]
    trades += [bid[i] - ask[j] - (STRIKES[j] - STRIKES[i]) for i, j in combinations(range(6), 2)]
    for i, j, k in combinations(range(6), 3):
        share = (STRIKES[k] - STRIKES[j]) / (STRIKES[k] - STRIKES[i])
        trades.append(bid[j] - share * ask[i] - (1.0 - share) * ask[k])
    found = arbitrages(one_smile(vols, bid=[vols - width / 2.0], ask=[vols + width / 2.0]))
    executable = [finding for finding in found if finding.executable]
    assert bool(executable) == (max(trades) > 1e-10)
    assert all(finding.executable is not None for finding in found)


def test_a_planted_butterfly_is_named_with_its_size():
    vols = np.array([0.26, 0.25, 0.23, 0.25, 0.21, 0.2])  # 100 is rich
    (worst, *_) = arbitrages(one_smile(vols))
    assert (worst.kind, worst.strike, worst.expiry) == ("butterfly", (95.0, 100.0, 105.0), (0.5,))
    call = calls(vols)
    assert worst.price == pytest.approx(call[3] - 0.5 * (call[2] + call[4]), rel=1e-10)
    # once each of the three has moved by the size in vol, the trade pays nothing to first order
    moved = vols + 1e-4 * worst.vol_bps * np.array([0.0, 0.0, 1.0, -1.0, 1.0, 0.0])
    call = calls(moved)
    assert abs(call[3] - 0.5 * (call[2] + call[4])) < 0.02 * worst.price
    note = str(worst)
    assert note.startswith("butterfly arbitrage at expiry 0.5, strikes 95, 100, 105: ")
    assert note in one_smile(vols).notes
    assert note in str(one_smile(vols))


def test_a_market_that_is_wide_enough_makes_it_unexecutable():
    vols = np.array([[0.26, 0.25, 0.23, 0.25, 0.21, 0.2]])
    wide = one_smile(vols[0], bid=vols - 0.05, ask=vols + 0.05)
    tight = one_smile(vols[0], bid=vols - 0.001, ask=vols + 0.001)
    assert {finding.executable for finding in arbitrages(wide)} == {False}
    assert arbitrages(tight)[0].executable
    assert "; executable at bid and ask" in str(arbitrages(tight)[0])
    assert "; within bid and ask" in str(arbitrages(wide)[0])


def test_a_planted_calendar_spread_is_named_with_its_size():
    vols = np.full((2, 6), 0.2)
    vols[0, 2] = 0.29
    surface = Surface.from_grid(STRIKES, [0.5, 1.0], vols, forwards=[100.0] * 2)
    (found,) = [finding for finding in arbitrages(surface) if finding.kind == "calendar"]
    assert found.strike == pytest.approx((95.0, 95.0))
    size = 1e4 * (0.29 * np.sqrt(0.5) - 0.2) / (np.sqrt(0.5) + 1.0)
    assert found.vol_bps == pytest.approx(size, rel=1e-12)
    assert not found.interpolated
    assert found.executable is None
    bids = Surface.from_grid(STRIKES, [0.5, 1.0], vols, forwards=[100.0] * 2, bid=vols - 0.001, ask=vols + 0.001)
    assert [f.executable for f in arbitrages(bids) if f.kind == "calendar"] == [True]


@pytest.mark.parametrize("side", ["bid", "ask"])
def test_a_calendar_spread_is_executable_only_where_both_sides_are_quoted(side):
    vols = np.full((2, 6), 0.2)
    vols[0, 1:4] = 0.29  # a bid, or an ask, could be read between the outer two
    sides = {"bid": vols - 0.001, "ask": vols + 0.001}
    sides[side][0 if side == "bid" else 1, 2] = np.nan  # the bid of the earlier, the ask of the later
    surface = Surface.from_grid(STRIKES, [0.5, 1.0], vols, forwards=[100.0] * 2, **sides)
    found = {f.strike[0]: f for f in arbitrages(surface) if f.kind == "calendar"}
    (worst,) = (finding for strike, finding in found.items() if strike == pytest.approx(95.0))
    assert worst.executable is None
    assert not worst.interpolated
    assert [other.executable for strike, other in found.items() if strike == pytest.approx(100.0)] == [True]


def test_an_executable_butterfly_is_gone_once_its_quotes_have_moved_by_its_size():
    # over 85, 100 and 105, so uneven; fair at mid
    vols = np.full(6, 0.22)
    bid, ask = np.full(6, np.nan), np.full(6, np.nan)
    ask[[1, 4]], bid[3] = vols[[1, 4]] - 0.03, vols[3] + 0.03
    surface = one_smile(vols, bid=[bid], ask=[ask])
    (found,) = [f for f in arbitrages(surface) if f.executable]
    assert (found.kind, found.strike) == ("butterfly", (85.0, 100.0, 105.0))

    def pays(bid, ask):
        return calls(bid)[3] - 0.25 * calls(ask)[1] - 0.75 * calls(ask)[4]

    bid, ask = np.nan_to_num(bid, nan=0.2), np.nan_to_num(ask, nan=0.2)
    assert found.price == pytest.approx(pays(bid, ask), rel=1e-10)
    # to first order, with Black's vegas at the mid vols of the finding
    step = 1e-5
    slope = (pays(vols, vols) - pays(vols - step, vols + step)) / step
    assert 1e-4 * found.vol_bps == pytest.approx(found.price / slope, rel=1e-3)


def test_calendar_spreads_are_judged_at_equal_log_moneyness():
    # flat in log-moneyness and rising in time: with forwards far apart equal strikes would seem to have arbitrage
    k = np.linspace(-0.2, 0.2, 7)
    forwards, expiries = np.array([100.0, 150.0]), [0.5, 0.52]
    steep = 0.3 - 0.3 * k
    surface = Surface.from_grid(forwards[:, None] * np.exp(k), expiries, [steep, steep], forwards=forwards)
    assert not [finding for finding in arbitrages(surface) if finding.kind == "calendar"]
    shifted = Surface.from_grid(
        forwards[:, None] * np.exp(k + np.array([[0.0], [0.03]])), expiries, [steep, steep], forwards=forwards
    )
    found = [finding for finding in arbitrages(shifted) if finding.kind == "calendar"]
    assert not found  # moved to the right the later smile is higher everywhere
    turned = Surface.from_grid(
        forwards[:, None] * np.exp(k - np.array([[0.0], [0.1]])), expiries, [steep, steep], forwards=forwards
    )
    found = [finding for finding in arbitrages(turned) if finding.kind == "calendar"]
    assert found
    assert all(finding.interpolated for finding in found)
    assert "(interpolated)" in str(found[0])


def test_the_dax_holds_butterflies_and_no_calendar_spread():
    found = arbitrages(Surface.dax_2002())
    assert {finding.kind for finding in found} == {"butterfly"}
    # the quotes at 4400 and 4500 are equal at two maturities, and high
    assert (found[0].strike, found[0].expiry) == ((4400.0, 4500.0, 4600.0), (524 / 365,))
    assert len(found) == 6
    text = str(Surface.dax_2002())
    assert text.startswith("DAX, exact_days 2002-07-05: 104 quotes at 8 expiries, spot 4468.17")
    assert "17 bps of vol" in text


def test_one_expiry_vols_outside_the_market_and_several_forwards_are_noted():
    flat = np.full((1, 6), 0.2)
    surface = one_smile(flat[0], bid=flat - 0.03, ask=flat - 0.02)
    assert [finding.kind for finding in surface.check()] == ["one_expiry", "outside_market"]
    assert any("6 vols lie outside their bid and ask, by up to 200.0 bps" in note for note in surface.notes)
    assert any(
        "one expiry only (0.5): what differs between expiries is not identified" in note for note in surface.notes
    )
    apart = Surface(strike=[90.0, 100.0], expiry=0.5, vol=0.2, forward=[100.0, 100.5])
    assert any("the forwards of expiry 0.5 lie between 100 and 100.5" in note for note in apart.notes)


# ---- weights and local volatility -----------------------------------------------------------------------------------


def test_weights_by_vega_and_by_spread_follow_their_formulas():
    vols, width = np.array([[0.3, 0.28, 0.24, 0.22, 0.21, 0.2]]), np.array([[0.02, 0.01, 0.01, 0.005, 0.01, 0.04]])
    surface = one_smile(vols[0], bid=vols - width / 2.0, ask=vols + width / 2.0, weights=3.0, rates=0.02)
    spread = surface.reweighted("spread")
    np.testing.assert_allclose(spread.weight / spread.weight[0], (0.02 / width[0]) ** 2, rtol=1e-10)
    assert spread.weight.mean() == pytest.approx(1.0)
    vol = torch.from_numpy(vols[0]).requires_grad_()
    (vega,) = torch.autograd.grad(black_price(100.0, torch.from_numpy(STRIKES), 0.5, vol).sum(), vol)
    np.testing.assert_allclose(surface.reweighted("vega").weight, vega**2 / (vega**2).mean(), rtol=1e-12)
    assert surface.reweighted("equal").weight.tolist() == [1.0] * 6
    left_out = one_smile(vols[0], weights=[[1.0, 1.0, 0.0, 1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(left_out.reweighted("vega").weight > 0.0, left_out.weight > 0.0)
    with pytest.raises(DataError, match=r"every quote has weight 0"):
        one_smile(vols[0], weights=0.0).reweighted("vega")
    with pytest.raises(ConfigError, match=r'`weights` must be "equal", "vega" or "spread", got \'oi\''):
        surface.reweighted("oi")
    with pytest.raises(DataError, match=r'"spread" weights need bid and ask of every quote, 6 lack them'):
        one_smile(vols[0]).reweighted("spread")


def test_a_local_volatility_can_be_read_from_quotes_with_arbitrage():
    day = Surface.dax_2002()
    surface = day.where((day.expiry > 0.6) & (day.expiry < 1.0) & (day.strike % 800 == 0.0))
    assert surface.remarks[-1] == "6 of 104 quotes were chosen"
    fitted = surface.vol_surface()
    k = torch.from_numpy(surface.log_moneyness[:3].copy())
    vols = fitted.vol(k, torch.tensor(surface.expiries[0]))
    np.testing.assert_allclose(vols, surface.vol[:3], atol=30e-4)
    assert bool((pr.LocalVol(fitted).surface.local_variance(k, torch.tensor(0.8).double()) > 0.0).all())
