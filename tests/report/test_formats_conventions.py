"""How numbers are written: digits, units, signs and what stands for "there is none"."""

import math

import pytest

from qfml.report import formats
from qfml.report.markup import Html, el, scrolling_table


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.percent(0.1234), "12.3%"),
        (formats.percent(-0.0123), "\N{MINUS SIGN}1.23%"),
        (formats.percent(0.000123), "0.012%"),
        (formats.percent(0.0), "0.000%"),
        (formats.ratio(-0.001), "0.00"),  # a rounded zero has no sign
        (formats.ratio(math.inf), "∞"),
        (formats.ratio(None), "n/a"),
        (formats.ratio(math.nan), "n/a"),
        (formats.ratio(True), "n/a"),
        (formats.count(1234567), "1,234,567"),
        (formats.significant(0.0001234), "0.0001234"),
        (formats.significant(123456.7), "123,457"),
        (formats.significant(1.5e-9), "1.500e-09"),
        (formats.probability(1e-5), "< 0.001"),
        (formats.probability(0.0), "0.000"),
        (formats.bps(1.0), "1 bps"),
        (formats.bps(0.99999999), "1 bps"),
        (formats.bps(2.5), "2.5 bps"),
        (formats.bps(10.0), "10 bps"),
        (formats.years(7.93), "7.9 years"),
        (formats.interval([-0.1, 0.2], formats.ratio), "[\N{MINUS SIGN}0.10, 0.20]"),
        (formats.interval(None, formats.ratio), ""),
        (formats.day("2004-01-02T00:00:00"), "2004-01-02"),
        (formats.day("2004-01-02T15:30:00"), "2004-01-02 15:30"),
        (formats.day("row 7"), "row 7"),
    ],
)
def test_numbers_are_written_with_sensible_digits_and_units(written: str, expected: str) -> None:
    assert written == expected


def test_strategies_come_in_a_fixed_order_with_unknown_ones_last() -> None:
    names = ["zeta", "momentum", "alpha", "network", "buy_and_hold"]
    assert formats.sort_strategies(names) == ["network", "buy_and_hold", "momentum", "alpha", "zeta"]


def test_unknown_metric_keeps_its_name_and_four_digits() -> None:
    assert formats.metric_label("my_metric") == "My metric"
    assert formats.metric_value("my_metric", 0.123456) == "0.1235"


def test_markup_escapes_text_children_and_attributes_but_not_markup() -> None:
    assert el("p", "<b>", Html("<i>"), title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;<i></p>'
    table = scrolling_table(["<h>"], [["<r>"]], caption="<c>")
    assert "<h>" not in table
    assert "<r>" not in table
    assert "<c>" not in table
