"""Surfaces from tables: prices made from known vols come back as these vols; what a tired person writes is named."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pricers.black import black_price
from qfml.calibration.reading import Reading
from qfml.calibration.surface import Surface
from qfml.errors import ConfigError, DataError

SPOT, RATE, DIVIDEND = 100.0, 0.03, 0.01
DAYS, STRIKES = (30, 91, 365), (80.0, 90.0, 95.0, 100.0, 105.0, 110.0, 120.0)


def true_vol(strike, expiry):
    return 0.22 - 0.1 * np.log(strike / SPOT) + 0.2 * np.log(strike / SPOT) ** 2 - 0.01 * expiry


def chain(options=("call", "put")):
    """European prices: a row for each option."""
    rows = []
    for days in DAYS:
        expiry = days / 365.0
        forward, discount = SPOT * np.exp((RATE - DIVIDEND) * expiry), np.exp(-RATE * expiry)
        for strike in STRIKES:
            vol = true_vol(strike, expiry)
            for option in options:
                price = black_price(forward, strike, expiry, vol, discount, option).item()
                rows.append((strike, days, option, price, vol))
    return pl.DataFrame(rows, schema=["strike", "days", "option", "price", "vol"], orient="row")


def assert_is_the_truth(surface, tolerance=1e-9):
    np.testing.assert_allclose(surface.vol, true_vol(surface.strike, surface.expiry), rtol=tolerance)
    forward = SPOT * np.exp((RATE - DIVIDEND) * surface.expiry)
    np.testing.assert_allclose(surface.forward, forward, rtol=tolerance)
    np.testing.assert_allclose(surface.discount, np.exp(-RATE * surface.expiry), rtol=tolerance)


def written(tmp_path, text, name="quotes.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def vol_table(**changed):
    columns = {"strike": [90.0, 100.0, 110.0], "expiry": [0.5] * 3, "vol": [0.25, 0.2, 0.22], "forward": [100.0] * 3}
    return pl.DataFrame({name: value for name, value in (columns | changed).items() if value is not None}, strict=False)


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_prices_become_the_vols_from_which_they_were_made():
    surface = Surface.from_frame(chain().drop("vol"), spot=SPOT, rates=RATE, dividends=DIVIDEND)
    assert_is_the_truth(surface, 1e-11)
    assert len(surface) == len(DAYS) * len(STRIKES)
    assert "21 of 42 quotes dropped: in the money, beside the option out of the money at the same strike" in (
        surface.remarks
    )


def test_forwards_and_discount_factors_are_implied_where_they_are_not_given():
    surface = Surface.from_frame(chain().drop("vol"))
    assert_is_the_truth(surface)
    assert sum("by put-call parity from 7 pairs" in note for note in surface.remarks) == 3
    known = Surface.from_frame(chain().drop("vol"), rates=RATE)
    assert_is_the_truth(known)
    assert any(note.startswith("expiry 0.2493: forward 100.5 (std error") for note in known.remarks)
    asked = Surface.from_frame(chain().drop("vol"), rates=RATE, spot=SPOT, dividends=0.5, parity=True)
    assert_is_the_truth(asked)


def test_one_stale_price_is_named_and_moves_nothing():
    table = chain().drop("vol").with_row_index("n")
    table = table.with_columns(pl.when(pl.col("n") == 20).then(pl.col("price") + 2.0).otherwise("price").alias("price"))
    surface = Surface.from_frame(table.drop("n"), rates=RATE)
    np.testing.assert_allclose(surface.forward, SPOT * np.exp((RATE - DIVIDEND) * surface.expiry), rtol=1e-9)
    assert any("from 6 pairs, without the outliers at strikes 100" in note for note in surface.remarks)


def markets(changed=None):
    """Bids and asks around the chain; `changed` maps (strike, days, option) to another (bid, ask)."""
    table = chain().drop("vol").with_columns(bid_price=0.98 * pl.col("price"), ask_price=1.02 * pl.col("price"))
    for (strike, days, option), (bid, ask) in (changed or {}).items():
        here = (pl.col("strike") == strike) & (pl.col("days") == days) & (pl.col("option") == option)
        table = table.with_columns(
            bid_price=pl.when(here).then(bid).otherwise("bid_price"),
            ask_price=pl.when(here).then(ask).otherwise("ask_price"),
        )
    return table.drop("price")


def test_a_crossed_price_in_the_money_is_refused_before_it_enters_a_forward():
    crossed = markets({(90.0, 91, "call"): (14.0, 11.0)})
    message = r"`bid_price` must not be above `ask_price` \(the market is crossed\): row 16 \(call, strike 90"
    for how in ({}, {"rates": RATE}, {"spot": SPOT, "rates": RATE, "dividends": DIVIDEND}):
        with pytest.raises(DataError, match=message):
            Surface.from_frame(crossed, **how)
    dropped = Surface.from_frame(crossed, errors="drop")
    assert any("1 of 42 quotes dropped: `bid_price` must not be above" in note for note in dropped.remarks)
    assert any("by put-call parity from 6 pairs" in note for note in dropped.remarks)
    np.testing.assert_allclose(dropped.forward, SPOT * np.exp((RATE - DIVIDEND) * dropped.expiry), rtol=1e-9)


def test_a_locked_market_leaves_the_widths_of_the_others_their_weight():
    # wide and wrong at both ends: the widths say so
    wide = {}
    for strike, option, shift in ((80.0, "call", 1.0), (90.0, "put", 0.8), (110.0, "call", 0.9), (120.0, "put", 1.0)):
        price = chain().filter(strike=strike, days=91, option=option)["price"].item()
        wide[strike, 91, option] = (price + shift - 2.0, price + shift + 2.0)
    price = chain().filter(strike=100.0, days=91, option="call")["price"].item()
    locked = wide | {(100.0, 91, "call"): (price, price)}
    forwards = []
    for changed in (wide, locked):
        surface = Surface.from_frame(markets(changed), rates=RATE, errors="drop")
        forwards.append(surface.forward[surface.expiry == 91 / 365.0][0])
    true = SPOT * np.exp((RATE - DIVIDEND) * 91 / 365.0)
    assert abs(forwards[0] - true) < 0.01
    assert abs(forwards[1] - true) < 0.01
    assert any("; 1 of 14 markets have no width and were given one of the others'" in note for note in surface.remarks)


def test_an_ask_price_of_zero_is_no_ask():
    surface = Surface.from_frame(markets({(110.0, 91, "put"): (9.5, 0.0)}))
    assert any("from 6 pairs" in note for note in surface.remarks)
    assert not any("outliers" in note for note in surface.remarks)
    np.testing.assert_allclose(surface.forward, SPOT * np.exp((RATE - DIVIDEND) * surface.expiry), rtol=1e-9)


def test_calls_and_puts_may_stand_side_by_side(tmp_path):
    wide = chain().drop("vol").pivot("option", index=["strike", "days"], values="price")
    wide.write_csv(tmp_path / "wide.csv")
    surface = Surface.read(tmp_path / "wide.csv", rates=RATE)
    assert_is_the_truth(surface)
    assert len(surface) == 21


def test_columns_have_their_usual_other_names_in_any_case():
    table = chain().rename({"strike": "Strike Price", "days": "DTE", "option": "CP-Flag", "vol": "IV", "price": "Mid"})
    table = table.with_columns(pl.col("CP-Flag").str.slice(0, 1).str.to_uppercase())
    assert_is_the_truth(Surface.from_frame(table, spot=SPOT, rates=RATE, dividends=DIVIDEND))


def test_bids_and_asks_of_prices_become_those_of_vols():
    table = chain(("call",)).drop("vol").filter(pl.col("strike") >= 100.0)
    bid, ask = (pl.col("price") * 0.98).alias("bid"), (pl.col("price") * 1.02).alias("ask")
    surface = Surface.from_frame(table.with_columns(bid, ask), spot=SPOT, rates=RATE, dividends=DIVIDEND)
    assert_is_the_truth(surface)
    assert surface.bid is not None
    assert surface.ask is not None
    columns = [torch.from_numpy(c.copy()) for c in (surface.forward, surface.strike, surface.expiry)]
    for vol, share in ((surface.bid, 0.98), (surface.ask, 1.02)):
        price = black_price(*columns, torch.from_numpy(vol.copy()), torch.from_numpy(surface.discount.copy()))
        np.testing.assert_allclose(price, share * table["price"].to_numpy(), rtol=1e-10)
    alone = table.with_columns(bid, ask).drop("price")
    with pytest.raises(DataError, match=r'may be vols or prices; pass quote="vol" or quote="price"'):
        Surface.from_frame(alone, spot=SPOT, rates=RATE, dividends=DIVIDEND)
    surface = Surface.from_frame(alone, spot=SPOT, rates=RATE, dividends=DIVIDEND, quote="price")
    np.testing.assert_array_equal(surface.vol, 0.5 * (surface.bid + surface.ask))


def test_a_price_bid_of_zero_is_no_bid():
    table = pl.DataFrame(
        {"strike": [90.0, 60.0], "days": [30, 30], "option": ["put", "put"], "bid_price": [0.3, 0.0]}
    ).with_columns(ask_price=pl.Series([0.4, 0.05]))
    surface = Surface.from_frame(table, spot=SPOT, rates=RATE, dividends=0.0)
    assert surface.strike.tolist() == [90.0]
    assert "1 of 2 quotes dropped: a bid without an ask, or an ask without a bid, and no vol beside it" in surface.notes


def test_expiries_may_be_dates():
    for column, values in (
        ("maturity", ["2002-07-18", "2002-08-15"]),
        ("expiry", [dt.date(2002, 7, 18), dt.date(2002, 8, 15)]),
    ):
        table = pl.DataFrame({"strike": [90.0, 100.0], column: values, "vol": [0.3, 0.2], "forward": [100.0, 100.0]})
        surface = Surface.from_frame(table, date="2002-07-05")
        np.testing.assert_allclose(surface.expiry, [13.0 / 365.0, 41.0 / 365.0], rtol=1e-15)
        with pytest.raises(DataError, match=r"holds dates, so quotes need a `date`, as a column or an argument"):
            Surface.from_frame(table)
    noon = pl.DataFrame({"strike": [90.0], "maturity": ["2002-07-06T12:00"], "vol": [0.3], "forward": [100.0]})
    assert Surface.from_frame(noon, date=dt.datetime(2002, 7, 5)).expiry[0] == 1.5 / 365.0


def test_pandas_frames_and_parquet_files_hold_the_same(tmp_path):
    table = chain().drop("vol")
    expected = Surface.from_frame(table, rates=RATE)
    table.write_parquet(tmp_path / "q.parquet")
    frame = pd.DataFrame(table.to_dict(as_series=False))
    for surface in (Surface.read(tmp_path / "q.parquet", rates=RATE), Surface.from_frame(frame, rates=RATE)):
        np.testing.assert_array_equal(surface.vol, expected.vol)


def test_empty_cells_are_counted_not_lost_in_silence(tmp_path):
    rows = "90,0.5,0.25,100", "100,0.5,,100", "110,0.5,n/a,100", "120,0.5, nan ,100", "130,0.5,0.2,100"
    text = "\n".join(["strike,expiry,vol,forward", *rows])
    surface = Surface.read(written(tmp_path, text))
    assert surface.strike.tolist() == [90.0, 130.0]
    assert "3 of 5 quotes dropped: no vol (an empty cell or NaN)" in surface.notes


def test_rates_may_stand_in_a_column():
    table = vol_table(forward=None, spot=[100.0] * 3, rate=[-0.01] * 3, q=[0.02] * 3)
    surface = Surface.from_frame(table)
    np.testing.assert_allclose(surface.forward, 100.0 * np.exp(-0.03 * 0.5), rtol=1e-15)
    assert (surface.discount > 1.0).all()
    given = Surface.from_frame(vol_table(df=[0.97] * 3))
    assert given.discount.tolist() == [0.97] * 3
    silent = Surface.from_frame(vol_table())
    assert "no rates are given: discount factors are 1 (vols do not depend on them)" in silent.remarks


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_written_reads_back_to_the_same_bits(tmp_path, suffix):
    vols = 0.2 + 0.1 * np.random.default_rng(5).random((3, 5))
    vols[1, 1] = np.nan
    bid = vols - 0.01 / 3.0
    bid[0, 0] = np.nan
    surface = Surface.from_grid(
        np.linspace(70.0, 130.0, 5), [1.0 / 3.0, 0.7, 1.1], vols, spot=100.1, rates=0.031, bid=bid, ask=vols + 0.007,
        weights=np.random.default_rng(6).random((3, 5)), date="2002-07-05T17:30:00", name="DAX",
    )  # fmt: skip
    path = surface.write(tmp_path / f"surface.{suffix}")
    again = Surface.read(path)
    for name in ("strike", "expiry", "vol", "bid", "ask", "weight", "forward", "discount"):
        np.testing.assert_array_equal(getattr(again, name), getattr(surface, name), err_msg=name)
    assert (again.spot, again.date, again.name) == (surface.spot, surface.date, surface.name)
    with pytest.raises(DataError, match=r"written as \.csv or \.parquet, got surface\.xlsx"):
        surface.write(tmp_path / "surface.xlsx")


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (vol_table(vol=["0.25", "abc", "0.2"]), r"`vol` must hold numbers: row 1 has 'abc'; correct it, or leave"),
        (vol_table(vol=["25%", "20%", "22%"]), r"row 0 has '25%'; take off the % and pass vol_unit=\"percent\""),
        (vol_table(vol=["0,25", "0,2", "0,22"]), r"row 0 has '0,25'; write decimals with a point"),
        (vol_table(vol=[0.25, 0.0, 0.2]), r"`vol` of a quote must be above 0: row 1 \(strike 100, expiry 0\.5\)"),
        (vol_table(vol=[0.25, 9.0, 0.2]), r"`vol` of a quote must be at most 5 \(500 %\): row 1 .* has vol 9; 1 of 3"),
        (vol_table(vol=[25.0, 20.0, 22.0]), r"the vols in `vol` look like percent \(25\); pass vol_unit=\"percent\""),
        (vol_table(strike=[0.9, 1.0, 1.1]), r"the strikes look like strike/spot .*strike_unit=\"moneyness\""),
        (vol_table(forward=[4468.0] * 3), r"strikes look like percent of the spot .*strike_unit=\"percent_of_spot\""),
        (vol_table(strike=[100.0, 100.0, 110.0]), r"quoted once for each expiry: row 1 .* has vol 0\.2 and row 0"),
        (vol_table(bid=[0.24, 0.21, 0.2], ask=[0.26, 0.19, 0.23]), r"crossed\): row 1 .* has bid 0\.21, ask 0\.19"),
        (vol_table(expiry=[0.5, -0.1, 0.5]), r"`expiry` must be a number above 0 \(0 or less has expired\): row 1 "),
        (vol_table(expiry=[182.0] * 3), r"`expiry` must be at most 60 years: row 0 .*`days`"),
        (vol_table(strike=[90.0, None, 110.0]), r"`strike` must be a number above 0: row 1 "),
        (vol_table(forward=[100.0, None, 100.0]), r"`forward` must be a number above 0: row 1 \(strike 100"),
        (vol_table(df=[97.0] * 3), r"`discount` must be at most 10: row 0 .*percent by 100"),
        (vol_table(rate=[3.0] * 3), r"`rate` must be decimal, in \[-1, 1\]: row 0 .* has 3; 3 % is 0\.03"),
        (vol_table(weight=[1.0, -1.0, 1.0]), r"`weight` must be a number of 0 or more: row 1 .* has weight -1"),
        (vol_table(vola=[1.0] * 3), r"the column `vola` is not known \(did you mean `vol`\?\); name it with rename="),
        (vol_table(volume=[1.0] * 3), r"the column `volume` is not known.*ignore=\"unknown\""),
        (vol_table(iv=[0.2] * 3), r"`vol` and `iv` are both the vol; leave one out with ignore=\['iv'\]"),
        (vol_table(strike=None), r"quotes need a column `strike`; there are: expiry, vol, forward"),
        (vol_table(expiry=None), r"quotes need one column for the expiry: .* got none"),
        (vol_table(days=[182] * 3), r"quotes need one column for the expiry: .* got expiry, days; leave out all but"),
        (vol_table(vol=None), r"quotes need a column `vol` or `price`, or `bid` and `ask`"),
        (vol_table(vol=None, price=[5.0] * 3), r"prices need a column `option` that holds call or put"),
        (vol_table(vol=None, price=[5.0] * 3, cp=["C", "X", "P"]), r"must hold call or put \(C or P\): row 1 has 'X'"),
        (vol_table(vol=None, price=[5.0] * 3, cp=["C"] * 3), r"prices need discount factors: give `rates`"),
        (vol_table(forward=None), r"quotes need forwards: give a column `forward`, or `spot` and `rates` and `div"),
        (vol_table(spot=[100.0, 101.0, 100.0]), r"`spot` must be .*one for each date: row 1 has 101, the first .* 100"),
        (vol_table(date=["2002-07-05", "5.7.2002", "2002-07-05"]), r"`date` must be ISO 8601 text.*row 1"),
        (vol_table(date=["2002-07-05", None, "2002-07-05"]), r"`date` must hold a date in every row: row 1 is empty"),
        (vol_table(date=[1.0, 1.0, 1.0]), r"`date` must hold dates, got numbers"),
        (vol_table(date=["2002-07-05", "2002-07-08", "2002-07-05"]), r"the table holds 2 dates.*SurfaceHistory"),
        (vol_table(symbol=["DAX", "SPX", "DAX"]), r"the table holds 2 underlyings \(DAX, SPX\)"),
        (vol_table().clear(), r"the table of quotes has no rows"),
        (vol_table(vol=[None] * 3), r"no quote is left: .*3 of 3 quotes dropped: no vol"),
        (vol_table(vol=[0.2, float("inf"), 0.2]), r"`vol` must hold finite numbers: row 1 is infinite"),
    ],
)  # fmt: skip
def test_bad_tables_are_named(table, message):
    with pytest.raises(DataError, match=message):
        Surface.from_frame(table)


def test_a_price_without_a_vol_is_named_by_row_or_dropped():
    table = chain(("put",)).drop("vol")
    prices = table["price"].to_list()
    prices[6] = 15.0  # the put at 120, below its intrinsic value of about 19.5
    table = table.with_columns(price=pl.Series(prices))
    how = {"spot": SPOT, "rates": RATE, "dividends": DIVIDEND}
    message = r"`price` must have an implied vol, .*: row 6 \(put, strike 120, expiry 0\.0821918\) has price 15, intrin"
    with pytest.raises(DataError, match=message):
        Surface.from_frame(table, **how)
    dropped = Surface.from_frame(table, errors="drop", **how)
    assert len(dropped) == 20
    assert any("1 of 21 quotes dropped: `price` must have an implied vol" in note for note in dropped.notes)


def test_strikes_in_percent_are_asked_about_before_parity_trips_over_them():
    table = chain().drop("vol").with_columns(price=pl.col("price") * 44.0)
    with pytest.raises(
        DataError, match=r"the strikes look like percent of the spot \(the middle one is 100, spot 4400\)"
    ):
        Surface.from_frame(table, spot=4400.0)
    surface = Surface.from_frame(table, spot=4400.0, strike_unit="percent_of_spot")
    np.testing.assert_allclose(surface.forward, 4400.0 * np.exp((RATE - DIVIDEND) * surface.expiry), rtol=1e-9)
    with pytest.raises(DataError, match=r"no forward at expiry .*strikes in the unit of the prices\?"):
        Surface.from_frame(table)


def test_an_expiry_without_pairs_is_refused_or_dropped():
    table = chain().drop("vol").filter((pl.col("days") != 91) | (pl.col("option") == "call"))
    with pytest.raises(DataError, match=r"no forward at expiry 0\.249315: put-call parity needs .* got 0"):
        Surface.from_frame(table)
    dropped = Surface.from_frame(table, errors="drop")
    assert len(dropped.expiries) == 2
    assert any("put-call parity implies no forward at their expiry" in note for note in dropped.notes)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.csv"):
        Surface.read(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=r"quotes are read from \.csv.* got book\.xlsx"):
        Surface.read(written(tmp_path, "x", "book.xlsx"))
    with pytest.raises(DataError, match=r"cannot read .*broken\.parquet"):
        Surface.read(written(tmp_path, "not parquet", "broken.parquet"))


def test_what_hand_made_files_are_like(tmp_path):
    header, row = "strike,expiry,vol,forward", "90,0.5,0.2,100"
    trailing = Surface.read(written(tmp_path, f"{header},\n{row},\n"))
    assert trailing.strike.tolist() == [90.0]
    blank = Surface.read(written(tmp_path, f"{header}\n{row}\n\n95,0.5,,100\n,,,\n100,0.5,0.2,100\n\n"))
    assert blank.strike.tolist() == [90.0, 100.0]
    assert "3 empty rows were left out" in blank.remarks
    with pytest.raises(DataError, match=r"`vol` must hold numbers: row 2 has 'x'"):  # counted with the blank line
        Surface.read(written(tmp_path, f"{header}\n{row}\n\n95,0.5,x,100\n"))
    with pytest.raises(DataError, match=r"seem to be separated by ';'; pass separator=';'"):
        Surface.read(written(tmp_path, f"{header}\n{row}\n".replace(",", ";")))
    assert len(Surface.read(written(tmp_path, f"{header}\n{row}\n".replace(",", ";")), separator=";")) == 1
    with pytest.raises(DataError, match=r"cannot read .*as many cells in every row as in the header"):
        Surface.read(written(tmp_path, f"{header}\n{row},7\n"))
    with pytest.raises(DataError, match=r"the path of quotes must be text or a Path, got int"):
        Surface.read(3)


def test_dates_in_other_forms_are_read_by_their_format(tmp_path):
    path = written(tmp_path, "date,exdate,strike,iv,fwd\n20020705,20020718,90,0.2,100\n")
    surface = Surface.read(path, time_format="%Y%m%d")
    assert surface.expiry[0] == 13.0 / 365.0
    assert surface.date == np.datetime64("2002-07-05")
    with pytest.raises(DataError, match=r"`date` must be ISO 8601 text.*time_format"):
        Surface.read(path)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"no setting `rate` \(did you mean `rates`\?\); there are: spot, rates"):
        Surface.from_frame(vol_table(), rate=0.03)
    with pytest.raises(ConfigError, match=r'`quote` must be "vol" or "price", got \'iv\''):
        Surface.from_frame(vol_table(), quote="iv")
    with pytest.raises(DataError, match=r"there is no column `Strke` \(did you mean `strike`\?\)"):
        Surface.from_frame(vol_table(), rename={"Strke": "strike"})
    how = Reading(rates=0.01)
    assert Surface.from_frame(vol_table(), how).discount[0] == pytest.approx(np.exp(-0.005))
    renamed = Surface.from_frame(vol_table().rename({"vol": "x", "strike": "y"}), rename={"x": "vol", "y": "strike"})
    assert renamed.vol.tolist() == [0.25, 0.2, 0.22]


# ---- prices that cannot be ------------------------------------------------------------------------------------------


def test_a_bid_above_what_the_option_can_cost_is_refused_and_one_below_the_intrinsic_value_is_counted():
    def table(bid, option="C", ask=None):
        return pl.DataFrame(
            {
                "strike": [90.0, 100.0, 110.0],
                "expiry": [1.0] * 3,
                "price": [14.0, 8.0, 11.5] if option == "P" else [14.0, 8.0, 4.0],
                "bid": [13.5, bid, 3.5],
                "ask": [14.5, ask, None],
                "option": ["C", option, "C"],
                "forward": [100.0] * 3,
                "rate": [0.0] * 3,
            },
            strict=False,
        )

    for bid, option in ((5000.0, "C"), (100.0, "P"), (-1.0, "C")):
        with pytest.raises(DataError, match=rf"`bid_price` must have an implied vol.*bid_price {bid:g}"):
            Surface.from_frame(table(bid, option))
    assert not any("bid(s)" in note for note in Surface.from_frame(table(7.5)).remarks)
    assert not any("bid(s)" in note for note in Surface.from_frame(table(0.0)).remarks)  # a bid of 0 says there is none
    deep = table(7.5).with_columns(bid=pl.Series([9.0, 7.5, 3.5]))  # the call at 90 is worth 10 exercised
    surface = Surface.from_frame(deep)
    assert "1 bid(s) at or below the discounted intrinsic value have no vol: left out" in surface.remarks
    assert np.isnan(surface.bid[0])
    assert np.isfinite(surface.bid[1:]).all()
