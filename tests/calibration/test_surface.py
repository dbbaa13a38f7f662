"""A surface from a grid: against pricers' forwards, the published DAX quotes, and what a tired person passes."""

import math

import numpy as np
import pytest
import references_dax as ref
import torch

import pricers as pr
from pricers.black import black_price
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import ConfigError, DataError

STRIKES, EXPIRIES = [80.0, 90.0, 100.0, 110.0, 120.0], [0.25, 0.5, 1.0]
VOLS = np.array([[0.3, 0.26, 0.22, 0.2, 0.21], [0.28, 0.25, 0.22, 0.2, 0.2], [0.27, 0.24, 0.22, 0.21, 0.2]])


def grid(vols=VOLS, **how):
    return Surface.from_grid(STRIKES, EXPIRIES, vols, **({"spot": 100.0, "rates": 0.03, "dividends": 0.01} | how))


def heston_vols(surface, model):
    """Implied vols of the model at the quotes, from the option that is out of the money, on a forward of 1."""
    strike, expiry = (torch.from_numpy(column.copy()) for column in (np.exp(surface.log_moneyness), surface.expiry))
    vols = []
    for option in ("put", "call"):
        price = pr.price(pr.European(strike, expiry, option), model, pr.Market(1.0)).value
        vols.append(pr.implied_vol(price, 1.0, strike, expiry, 1.0, option, errors="nan"))
    return torch.where(strike <= 1.0, *vols).numpy()


# ---- grids ----------------------------------------------------------------------------------------------------------


def test_a_grid_is_read_row_by_row_with_the_forwards_of_the_market():
    surface = grid()
    market = pr.Market(100.0, 0.03, 0.01)
    expiry = torch.tensor(EXPIRIES, dtype=torch.float64).repeat_interleave(5)
    np.testing.assert_array_equal(surface.vol, VOLS.flatten())
    np.testing.assert_array_equal(surface.strike, STRIKES * 3)
    np.testing.assert_allclose(surface.forward, market.forward(expiry).numpy(), rtol=1e-15)
    np.testing.assert_allclose(surface.discount, market.discount(expiry).numpy(), rtol=1e-15)
    assert surface.expiries.tolist() == EXPIRIES


def test_rates_may_be_a_curve_and_may_be_negative():
    times, rates = [0.25, 1.0], [-0.01, 0.02]
    for given in ((times, rates), {"times": times, "rates": rates}, pr.ZeroCurve(times, rates)):
        discount = grid(rates=given).discount[::5]
        np.testing.assert_allclose(discount, np.exp(-np.interp(EXPIRIES, times, rates) * EXPIRIES), rtol=1e-15)
    assert grid(rates=-0.02).discount.min() > 1.0


def test_strikes_may_differ_by_expiry():
    strikes = np.array([np.linspace(80.0, 120.0, 5), np.linspace(70.0, 130.0, 5), np.linspace(60.0, 140.0, 5)])
    surface = Surface.from_grid(strikes, EXPIRIES, VOLS, spot=100.0)
    np.testing.assert_array_equal(surface.strike, strikes.flatten())


def test_strikes_in_other_units_are_the_same_surface():
    prices, forwards = grid(), grid().forward[::5]
    percent = Surface.from_grid(
        STRIKES, EXPIRIES, VOLS, spot=200.0, rates=0.03, dividends=0.01, strike_unit="percent_of_spot"
    )
    np.testing.assert_allclose(percent.log_moneyness, prices.log_moneyness, rtol=1e-12, atol=1e-15)
    shares = Surface.from_grid(
        np.array(STRIKES) / 100.0, EXPIRIES, VOLS, spot=200.0, rates=0.03, dividends=0.01, strike_unit="moneyness"
    )
    np.testing.assert_allclose(shares.strike, percent.strike, rtol=1e-15)
    logs = np.log(np.array(STRIKES)[None] / forwards[:, None])
    logs = Surface.from_grid(logs, EXPIRIES, VOLS, forwards=forwards, strike_unit="log_moneyness")
    np.testing.assert_allclose(logs.strike, prices.strike, rtol=1e-14)


def test_missing_quotes_are_dropped_and_counted():
    vols = VOLS.copy()
    vols[1, 2], vols[2, 0] = np.nan, np.nan
    surface = grid(vols)
    assert len(surface) == 13
    assert (100.0, 0.5) not in set(zip(surface.strike, surface.expiry, strict=True))
    assert "2 of 15 quotes dropped: no vol (an empty cell or NaN)" in surface.notes


def test_a_vol_that_is_missing_is_the_mean_of_bid_and_ask():
    surface = grid(None, bid=VOLS - 0.01, ask=VOLS + 0.03)
    np.testing.assert_allclose(surface.vol, VOLS.flatten() + 0.01, rtol=1e-14)
    np.testing.assert_array_equal(surface.bid, VOLS.flatten() - 0.01)


def test_a_bid_of_zero_is_no_bid():
    bid = VOLS - 0.01
    bid[0, 0] = 0.0
    surface = grid(None, bid=bid, ask=VOLS + 0.01)
    assert len(surface) == 14
    assert any("a bid without an ask" in note for note in surface.notes)
    assert np.isnan(grid(VOLS, bid=bid, ask=VOLS + 0.01).bid[0])


# ---- the DAX --------------------------------------------------------------------------------------------------------


def test_the_dax_holds_the_published_quotes():
    surface = Surface.dax_2002()
    np.testing.assert_array_equal(surface.vol.reshape(8, 13).T, ref.VOLS)
    np.testing.assert_array_equal(surface.strike.reshape(8, 13)[3], ref.STRIKES)
    np.testing.assert_allclose(365.0 * surface.expiries, ref.DAYS, rtol=1e-14)
    years = np.array(ref.DAYS) / 365.0
    np.testing.assert_allclose(surface.discount[::13], np.exp(-np.array(ref.ZERO_RATES) * years), rtol=1e-14)
    assert surface.spot == ref.SPOT
    assert surface.date == np.datetime64("2002-07-05")
    assert (surface.weight == 1.0).all()


def test_heston_leaves_the_published_sum_of_squares_with_maturities_in_weeks():
    surface = Surface.dax_2002("week_rounded")
    vols = heston_vols(surface, pr.Heston(**ref.HESTON_OPTIMUM))
    # the parameters are printed to six digits
    assert 1e4 * np.square(vols - surface.vol).sum() == pytest.approx(ref.HESTON_SSE_WEEKS, abs=1e-3)


def test_dax_maturities_have_two_conventions():
    with pytest.raises(ConfigError, match=r'`maturities` must be "exact_days" or "week_rounded", got .weeks.'):
        Surface.dax_2002("weeks")


# ---- bad input ------------------------------------------------------------------------------------------------------


def one_wrong(value, where=(1, 3)):
    vols = VOLS.copy()
    vols[where] = value
    return vols


@pytest.mark.parametrize("value", [0.0, -0.2])
def test_a_vol_that_is_not_above_zero_is_refused_by_name(value):
    with pytest.raises(DataError, match=r"`vol` of a quote must be above 0: .*strike 110, expiry 0\.5 has vol"):
        grid(one_wrong(value))


def test_a_vol_of_900_percent_is_refused_by_name():
    message = r"`vol` of a quote must be at most 5 \(500 %\): the quote at strike 110, expiry 0\.5 has vol 9; 1 of 15"
    with pytest.raises(DataError, match=message):
        grid(one_wrong(9.0))
    assert grid(one_wrong(9.0), max_vol=10.0).vol.max() == 9.0
    dropped = grid(one_wrong(9.0), errors="drop")
    assert len(dropped) == 14
    assert any("1 of 15 quotes dropped: `vol` of a quote must be at most 5" in note for note in dropped.notes)


def test_vols_in_percent_are_asked_about():
    with pytest.raises(DataError, match=r"the vols in `vol` look like percent \(30\); pass vol_unit=\"percent\" or di"):
        grid(100.0 * VOLS)
    np.testing.assert_allclose(grid(100.0 * VOLS, vol_unit="percent").vol, VOLS.flatten(), rtol=1e-15)
    with pytest.raises(DataError, match=r"look like decimals \(0\.3\), but `vol_unit` is percent"):
        grid(VOLS, vol_unit="percent")
    with pytest.raises(ConfigError, match=r"`vol_unit` must be"):
        grid(VOLS, vol_unit="bps")


def test_strikes_in_percent_of_spot_are_asked_about():
    for strikes, unit in ((STRIKES, "percent_of_spot"), (np.array(STRIKES) / 100.0, "moneyness")):
        with pytest.raises(DataError, match=rf'the strikes look like .*spot 4468\.17\); pass strike_unit="{unit}"'):
            Surface.from_grid(strikes, EXPIRIES, VOLS, spot=4468.17)
        assert Surface.from_grid(strikes, EXPIRIES, VOLS, spot=4468.17, strike_unit=unit).strike[0] == pytest.approx(
            0.8 * 4468.17
        )
    with pytest.raises(ConfigError, match=r"`strike_unit` must be one of"):
        grid(strike_unit="percent")
    with pytest.raises(DataError, match=r'strike_unit="moneyness" needs the `spot`'):
        Surface.from_grid(STRIKES, EXPIRIES, VOLS, forwards=[100.0] * 3, strike_unit="moneyness")


@pytest.mark.parametrize(("share", "unit"), [(100.0, "percent_of_spot"), (1.0, "moneyness")])
def test_strikes_in_percent_are_asked_about_in_columns_and_where_the_spot_lies_beyond_them(share, unit):
    strikes = share * np.array([0.8, 0.9, 1.0, 1.1, 1.2])
    with pytest.raises(DataError, match=rf'the strikes look like .*forward 4468\); pass strike_unit="{unit}"'):
        Surface(strike=strikes, expiry=0.5, vol=VOLS[0], forward=4468.0)
    surface = Surface(strike=strikes, expiry=0.5, vol=VOLS[0], forward=4500.0, spot=4468.0, strike_unit=unit)
    np.testing.assert_allclose(surface.strike, 4468.0 * strikes / share, rtol=1e-14)
    for spot in (0.6 * share, 1.5 * share):  # near enough to be a spot, but no strike is
        with pytest.raises(DataError, match=rf'the strikes look like .*pass strike_unit="{unit}"'):
            Surface.from_grid(strikes, EXPIRIES, VOLS, spot=spot)
        assert Surface.from_grid(strikes, EXPIRIES, VOLS, spot=spot, strike_unit="price").strike[0] == strikes[0]


def test_strikes_on_one_side_of_the_spot_are_prices():
    for strikes, spot in (([90.0, 95.0, 100.0], 105.0), ([110.0, 120.0, 130.0], 100.0), ([50.0, 60.0, 70.0], 100.0)):
        assert len(Surface.from_grid(strikes, [0.5], [[0.25, 0.22, 0.2]], spot=spot)) == 3
        assert len(Surface(strike=strikes, expiry=0.5, vol=0.2, forward=spot)) == 3


def test_an_ask_of_zero_is_no_ask():
    ask = VOLS + 0.01
    ask[0, 0] = 0.0
    surface = grid(None, bid=VOLS - 0.01, ask=ask)
    assert len(surface) == 14
    assert any("a bid without an ask" in note for note in surface.notes)
    both = Surface(strike=[90.0, 100.0], expiry=0.5, vol=0.2, forward=100.0, bid=[0.19, 0.19], ask=[0.0, 0.21])
    assert np.isnan(both.ask[0])
    assert both.ask[1] == 0.21


def test_a_crossed_market_is_refused_by_name():
    ask = VOLS + 0.01
    ask[2, 4] = 0.1
    with pytest.raises(
        DataError, match=r"`bid` must not be above `ask` \(the market is crossed\): .*strike 120, exp.* 1"
    ):
        grid(bid=VOLS - 0.01, ask=ask)


def test_expiries_that_have_passed_are_refused():
    with pytest.raises(
        DataError, match=r"`expiry` must be a number above 0 \(0 or less has expired\): .*strike 80, expiry 0"
    ):
        Surface.from_grid(STRIKES, [0.0, 0.5, 1.0], VOLS, spot=100.0)
    with pytest.raises(DataError, match=r"`expiry` must be at most 60 years: .*`days`"):
        Surface.from_grid(STRIKES, [91.0, 182.0, 365.0], VOLS, spot=100.0)


def test_duplicates_are_refused_unless_they_say_the_same():
    with pytest.raises(DataError, match=r"quoted once for each expiry: .*strike 100, expiry 0\.5 has vol 0\.25 and"):
        Surface(strike=[100.0, 100.0], expiry=0.5, vol=[0.2, 0.25], forward=100.0)
    surface = Surface(strike=[100.0, 110.0, 100.0], expiry=0.5, vol=[0.2, 0.19, 0.2], forward=100.0)
    assert surface.strike.tolist() == [100.0, 110.0]
    assert "1 of 3 quotes dropped: copies of a quote that is there" in surface.notes


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(DataError, match=r"`vols` must have a row for each of the 3 expiries .*\(5, 3\); transpose it"):
        grid(VOLS.T)
    with pytest.raises(DataError, match=r"`forwards` must be one number, or one for each of the 3 .*shape \(2,\)"):
        Surface.from_grid(STRIKES, EXPIRIES, VOLS, forwards=[100.0, 101.0])
    with pytest.raises(DataError, match=r"a grid needs `vols`, or `bid` and `ask`"):
        grid(None, bid=VOLS)
    with pytest.raises(DataError, match=r"`vol` must hold numbers, .* in rows of one length"):
        grid([[0.2, 0.3], [0.2]])


def test_numbers_out_of_range_are_named():
    with pytest.raises(DataError, match=r"`spot` must be a number above 0, got -1"):
        grid(spot=-1.0)
    with pytest.raises(DataError, match=r"`rates` must be decimal, in \[-1, 1\], got 3; 3 % is 0\.03"):
        grid(rates=3.0)
    with pytest.raises(DataError, match=r"`weight` must be a number of 0 or more: .*has weight -1"):
        grid(weights=-1.0)
    with pytest.raises(DataError, match=r"`strike` must be a number above 0: .*strike nan"):
        Surface.from_grid([math.nan, 90.0, 100.0, 110.0, 120.0], EXPIRIES, VOLS, spot=100.0)
    with pytest.raises(DataError, match=r"quotes need forwards: give `forwards`, or `spot`"):
        Surface.from_grid(STRIKES, EXPIRIES, VOLS)
    with pytest.raises(DataError, match=r"`date` must be a date, or ISO 8601 text such as 2002-07-05, got '5.7.02'"):
        grid(date="5.7.02")
    with pytest.raises(ConfigError, match=r'`errors` must be "raise" or "drop", got \'skip\''):
        grid(errors="skip")


def test_a_surface_is_shown_in_a_line_and_printed_as_a_table():
    assert repr(Surface.dax_2002()) == "<DAX, exact_days 2002-07-05: 104 quotes at 8 expiries, spot 4468.17>"
    lines = str(Surface.dax_2002()).splitlines()
    assert lines[2].split() == ["0.0356", "13", "4473.85", "0.99873", "3400-5600", "33.02-66.25", "35.96"]


def test_what_is_no_grid_is_named():
    with pytest.raises(DataError, match=r"a grid needs one expiry and one strike or more, got 0 expiries"):
        Surface.from_grid(STRIKES, [], [], spot=100.0)
    with pytest.raises(DataError, match=r"`rates` must be given; 0 for none"):
        grid(rates=None)
    with pytest.raises(DataError, match=r"`date` must be a date.*NaT"):
        grid(date=np.datetime64("NaT"))
    with pytest.raises(ConfigError, match=r"`max_vol` must be a number above 0, got 'high'"):
        grid(max_vol="high")
    with pytest.raises(DataError, match=r"`keep` must be a mask of 15 quotes, or indices of them"):
        grid().where([True])
    with pytest.raises(DataError, match=r"the surface has no quotes; give one strike or more"):
        Surface(strike=[], expiry=[], vol=[], forward=[])


def test_a_surface_without_a_quote_is_refused():
    with pytest.raises(DataError, match=r"the surface has no quotes; every one was empty or left out"):
        grid(np.full_like(VOLS, np.nan))


# ---- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_with_quotes_of_no_weight():
    vols = VOLS.copy()
    vols[0] = np.nan
    short, long = grid(vols), grid(VOLS, weights=2.0)
    quotes = as_quotes([short, long])
    assert quotes.vol.shape == (2, 15)
    assert quotes.vol.dtype == torch.float64
    np.testing.assert_array_equal(quotes.vol[0, :10], short.vol)
    np.testing.assert_array_equal(quotes.log_moneyness[1], long.log_moneyness)
    assert quotes.weight[0].tolist() == [1.0] * 10 + [0.0] * 5
    assert quotes.weight[1].tolist() == [2.0] * 15
    for name in ("log_moneyness", "expiry", "vol", "forward"):
        padding = getattr(quotes, name)[0, 10:]
        assert bool((padding == getattr(quotes, name)[0, 0]).all()), name


def test_vega_weights_are_squares_of_blacks_vega():
    surface = grid()
    columns = [torch.from_numpy(c.copy()) for c in (surface.forward, surface.strike, surface.expiry, surface.vol)]
    vol = columns[3].requires_grad_()
    price = black_price(*columns[:3], vol, torch.from_numpy(surface.discount.copy()))
    (vega,) = torch.autograd.grad(price.sum(), vol)
    weight, square = surface.reweighted("vega").weight, vega.numpy() ** 2
    np.testing.assert_allclose(weight / weight.sum(), square / square.sum(), rtol=1e-12)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(DataError, match=r"there are no surfaces to calibrate to"):
        as_quotes([])


def test_columns_of_vols_in_percent_are_asked_about():
    quotes = {"strike": [90.0, 100.0, 110.0], "expiry": 1.0, "forward": 100.0}
    with pytest.raises(DataError, match=r'the vols in `vol` look like percent .* pass vol_unit="percent"'):
        Surface(**quotes, vol=[3.0, 2.8, 2.9])
    with pytest.raises(DataError, match="the vols in `bid` look like percent"):
        Surface(**quotes, vol=np.nan, bid=[2.9, 2.7, 2.8], ask=[3.1, 2.9, 3.0])
    with pytest.raises(DataError, match=r"look like decimals .* but `vol_unit` is percent"):
        Surface(**quotes, vol=[0.22, 0.2, 0.21], vol_unit="percent")
    assert Surface(**quotes, vol=[3.0, 2.8, 2.9], vol_unit="percent").vol.tolist() == pytest.approx(
        [0.03, 0.028, 0.029]
    )
    assert Surface(**quotes, vol=[3.0, 2.8, 2.9], vol_unit="decimal").vol.tolist() == [3.0, 2.8, 2.9]
    one_wild_quote = Surface(**quotes, vol=[3.0, 0.2, 0.2])  # is no reason to doubt the unit of the others
    assert one_wild_quote.vol[0] == 3.0
