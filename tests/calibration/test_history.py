"""Histories: what is written is read back, in the order of the dates, and each date by itself."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from qfml.calibration.history import SurfaceHistory
from qfml.calibration.surface import Surface, as_quotes
from qfml.errors import DataError

DATES = ["2002-07-05", "2002-07-08", "2002-07-09"]


def day(date, shift=0.0, missing=0):
    vols = np.array([[0.3, 0.25, 0.22, 0.2], [0.28, 0.24, 0.22, 0.21]]) + shift
    vols[0, :missing] = np.nan
    return Surface.from_grid(
        [80.0, 90.0, 100.0, 110.0], [0.5, 1.0], vols, spot=100.0 + 100.0 * shift, rates=0.02, date=date, name="X"
    )


def history():
    return SurfaceHistory([day(DATES[0]), day(DATES[1], 0.01, missing=2), day(DATES[2], 0.02)])


def assert_same(left, right):
    assert (left.date, left.name, left.spot, len(left)) == (right.date, right.name, right.spot, len(right))
    for name in ("strike", "expiry", "vol", "weight", "forward", "discount"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_it_is_a_sequence_of_surfaces():
    days = history()
    assert len(days) == 3
    assert [surface.date for surface in days] == list(days.dates)
    assert isinstance(days[1:], SurfaceHistory)
    assert days[1:][0] is days[1]
    assert days[-1].date == np.datetime64("2002-07-09")
    assert str(days).startswith("X: 3 dates from 2002-07-05 to 2002-07-09, 6 to 8 quotes each")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_what_is_written_reads_back_to_the_same_bits(tmp_path, suffix):
    days = history()
    again = SurfaceHistory.read(days.write(tmp_path / f"days.{suffix}"))
    for left, right in zip(again, days, strict=True):
        assert_same(left, right)


def test_rows_in_any_order_come_out_by_date(tmp_path):
    path = history().write(tmp_path / "days.csv")
    table = pl.read_csv(path)
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=4)
    again = SurfaceHistory.from_frame(shuffled)
    assert list(again.dates) == list(history().dates)
    for left, right in zip(again, history(), strict=True):
        order = np.lexsort((left.strike, left.expiry))
        np.testing.assert_array_equal(left.vol[order], right.vol)
        assert left.spot == right.spot


def test_expiry_dates_are_counted_from_each_date():
    table = pl.DataFrame(
        {
            "date": [dt.date(2002, 7, 5), dt.date(2002, 7, 8)],
            "maturity": [dt.date(2002, 7, 18)] * 2,
            "strike": [100.0, 100.0],
            "vol": [0.2, 0.21],
            "forward": [101.0, 102.0],
        }
    )
    days = SurfaceHistory.from_frame(table)
    assert [surface.expiry[0] for surface in days] == [13.0 / 365.0, 10.0 / 365.0]


def test_notes_belong_to_their_date():
    table = pl.DataFrame(
        {
            "date": [DATES[0]] * 3 + [DATES[1]] * 3,
            "strike": [90.0, 100.0, 110.0] * 2,
            "expiry": [0.5] * 6,
            "vol": [0.2, None, 0.2, 0.2, 0.2, 0.2],
            "forward": [100.0] * 6,
            "discount": [1.0] * 6,
        }
    )
    first, second = SurfaceHistory.from_frame(table)
    assert first.remarks == ("1 of 3 quotes dropped: no vol (an empty cell or NaN)",)
    assert second.remarks == ()


def bad_day(vol):
    rows = {"date": [DATES[0]] * 2 + [DATES[1]] * 2, "strike": [90.0, 100.0] * 2, "expiry": [0.5] * 4}
    return pl.DataFrame(rows | {"vol": [0.2, 0.2, *vol], "forward": [100.0] * 4, "discount": [1.0] * 4})


def test_a_bad_row_names_its_date():
    with pytest.raises(DataError, match=r"`vol` of a quote must be at most 5 .*: row 3 \(2002-07-08, strike 100, exp"):
        SurfaceHistory.from_frame(bad_day([0.2, 9.0]))
    days = SurfaceHistory.from_frame(bad_day([0.2, 9.0]), errors="drop")
    assert [len(surface) for surface in days] == [2, 1]
    assert any("1 of 2 quotes dropped: `vol` of a quote must be at most 5" in note for note in days[1].notes)


def test_a_date_without_quotes_is_refused_or_left_out():
    with pytest.raises(DataError, match=r"no quote of 2002-07-08.* is left: 2 of 2 quotes dropped: no vol"):
        SurfaceHistory.from_frame(bad_day([None, None]))
    days = SurfaceHistory.from_frame(bad_day([None, None]), errors="drop")
    assert len(days) == 1
    assert "2002-07-08" in days.remarks[0]
    assert days.remarks[0] in str(days)


def test_dates_must_be_there_and_ascend():
    with pytest.raises(
        DataError, match=r"dates of a history must ascend, but 2002-07-05.* follows 2002-07-08.* place 1"
    ):
        SurfaceHistory([day(DATES[1]), day(DATES[0])])
    with pytest.raises(DataError, match=r"must ascend"):
        SurfaceHistory([day(DATES[0]), day(DATES[0])])
    with pytest.raises(DataError, match=r"every surface of a history needs a `date`; the one at place 1 has none"):
        SurfaceHistory([day(DATES[0]), day(None)])
    with pytest.raises(DataError, match=r"a history needs one surface or more"):
        SurfaceHistory([])
    with pytest.raises(DataError, match=r"a history holds surfaces, got str at place 0"):
        SurfaceHistory(["surface.csv"])
    with pytest.raises(DataError, match=r"a history needs a column `date`"):
        SurfaceHistory.from_frame(bad_day([0.2, 0.2]).drop("date").head(2))


def test_a_history_is_a_batch():
    quotes = as_quotes(history())
    assert quotes.vol.shape == (3, 8)
    assert quotes.weight.sum(dim=1).tolist() == [8.0, 6.0, 8.0]


def test_what_some_days_lack_comes_back_as_it_was(tmp_path):
    """A spot, a name, bids and asks that only one of two days has."""
    quotes = {"strike": [90.0, 100.0, 110.0], "expiry": 0.5, "vol": [0.22, 0.2, 0.19], "forward": 100.0}
    one = Surface(**quotes, date="2020-01-01", spot=99.0, name="X")
    other = Surface(**quotes, date="2020-01-02", bid=[0.21, 0.19, 0.18], ask=[0.23, 0.21, np.nan])
    for kind in ("csv", "parquet"):
        path = SurfaceHistory([one, other]).write(tmp_path / f"days.{kind}")
        first, second = SurfaceHistory.read(path)
        assert (first.spot, second.spot) == (99.0, None)
        assert (first.name, second.name) == ("X", "X")
        np.testing.assert_array_equal(second.ask, other.ask)
        np.testing.assert_array_equal(second.vol, other.vol)


def test_a_history_is_of_one_underlying():
    quotes = {"strike": [90.0, 100.0], "expiry": 0.5, "vol": 0.2, "forward": 100.0}
    days = [Surface(**quotes, date=f"2020-01-0{day}", name=name) for day, name in ((1, "X"), (2, "Y"))]
    with pytest.raises(DataError, match="a history is of one underlying, got X, Y; make one of each"):
        SurfaceHistory(days)


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("strike", "moneyness", "the strikes of 2002-07-09 look like strike/spot"),
        ("strike", "percent", "the strikes of 2002-07-09 look like percent of the spot"),
        ("vol", "percent", "the vols in `vol` of 2002-07-09 look like percent"),
    ],
)
def test_one_date_in_another_unit_is_named_among_many_that_are_not(name, factor, message):
    days = [day(date) for date in ("2002-07-01", "2002-07-02", "2002-07-03", *DATES)]
    table = pl.concat(
        [
            pl.DataFrame(
                {
                    "date": [str(d.date)[:10]] * 8,
                    "strike": 50.0 * d.strike,
                    "vol": d.vol,
                    "expiry": d.expiry,
                    "forward": 50.0 * d.forward,
                }
            )
            for d in days
        ]
    )
    to = {"moneyness": 1.0 / pl.col("forward"), "percent": 100.0 / pl.col("forward") if name == "strike" else 100.0}
    last = pl.col("date") == DATES[-1]
    mixed = table.with_columns(pl.when(last).then(pl.col(name) * to[factor]).otherwise(pl.col(name)).alias(name))
    with pytest.raises(DataError, match=message):
        SurfaceHistory.from_frame(mixed)
    if name == "strike":  # with a spot beside them they are looked at before the forwards are known
        with pytest.raises(DataError, match=message):
            SurfaceHistory.from_frame(mixed.drop("forward"), spot=5000.0, rates=0.02, dividends=0.0)
    else:
        with pytest.raises(DataError, match=r"of 2002-07-01 look like decimals .* give all dates in one unit"):
            SurfaceHistory.from_frame(mixed, vol_unit="percent")
    assert len(SurfaceHistory.from_frame(table)) == 6
