"""Prices that have no implied vol, and what the caller is told."""

import math

import pytest
import torch

from pricers.black import bachelier_implied_vol, black_price, implied_vol

GOOD: dict[str, object] = {
    "price": [8.0, 9.0, 10.0],
    "forward": 100.0,
    "strike": 100.0,
    "expiry": 1.0,
    "discount": 1.0,
    "option": "call",
    "errors": "raise",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"price": [8.0, 100.0, 101.0]},
            r"must lie below discount \* forward, .* got 100 against 100 at index 1",
        ),
        (
            {"price": 45.0, "forward": 100.0, "strike": 80.0, "discount": 0.5, "option": "put"},
            r"`price` must lie below discount \* strike, .* got 45 against 40",
        ),
        (
            {"price": [8.0, 9.0, 0.0]},
            "must exceed the discounted intrinsic value, .* got 0 against 0 at index 2",
        ),
        ({"price": 10.0, "strike": 80.0, "discount": 0.5}, "no vol is identified, got 10 against 10"),
        ({"price": 9.0, "strike": 80.0, "discount": 0.5}, "got 9 against 10"),
        ({"price": [8.0, math.nan, 1.0]}, "`price` must be finite, got nan at index 1"),
        ({"price": [[8.0, 9.0], [math.inf, 1.0]]}, r"`price` must be finite, got inf at index \(1, 0\)"),
        ({"forward": -5.0}, "`forward` must be above 0, got -5 at index 0"),
        ({"strike": 0.0}, "`strike` must be above 0, got 0 at index 0"),
        ({"expiry": 0.0}, "`expiry` must be above 0, got 0 at index 0"),
        ({"discount": -1.0}, "`discount` must be above 0, got -1 at index 0"),
        ({"option": "Call"}, "`option` must be one of 'call', 'put', got 'Call'"),
        ({"errors": "ignore"}, "`errors` must be one of 'raise', 'nan', got 'ignore'"),
        ({"strike": [90.0, 100.0]}, r"`price` of shape \(3,\) and `strike` of shape \(2,\) do not broadcast"),
        ({"price": torch.tensor([8, 9])}, "`price` must hold real floating point numbers, got torch.int64"),
        (
            {"price": torch.tensor([8.0, 9.0], dtype=torch.float16)},
            "`price` must be float32 or float64, got torch.float16",
        ),
        ({"price": "high"}, "`price` must be a real number"),
    ],
)
def test_the_message_names_the_argument_the_rule_and_the_element(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        implied_vol(**(GOOD | change))


def test_the_message_says_how_to_go_on() -> None:
    with pytest.raises(ValueError, match='pass errors="nan" to get NaN for such elements'):
        implied_vol(0.0, 100.0, 100.0, 1.0)


def test_nan_marks_just_the_elements_without_a_vol() -> None:
    price = [8.0, math.nan, -1.0, 0.0, 100.0, math.inf, 12.0]
    vols = implied_vol(price, 100.0, 100.0, 1.0, errors="nan")
    assert vols.isnan().tolist() == [False, True, True, True, True, True, False]
    again = black_price(torch.tensor(100.0, dtype=torch.float64), 100.0, 1.0, vols[[0, 6]])
    torch.testing.assert_close(again, torch.tensor([8.0, 12.0], dtype=torch.float64), rtol=1e-14, atol=0)


def test_a_normal_vol_needs_time_value_but_no_positive_forward() -> None:
    vol = bachelier_implied_vol(0.5, -1.0, -1.0, 1.0).item()
    assert vol == pytest.approx(0.5 * math.sqrt(2 * math.pi), rel=1e-14)
    with pytest.raises(ValueError, match=r"`price` must exceed the discounted intrinsic value, .* got 3 against 3"):
        bachelier_implied_vol(3.0, 2.0, -1.0, 1.0)


def test_no_elements_give_no_vols() -> None:
    assert implied_vol(torch.zeros(0, 3), torch.ones(3), 1.0, 1.0).shape == (0, 3)


def test_axes_broadcast() -> None:
    strike, expiry = torch.tensor([[80.0], [100.0], [120.0]]).double(), torch.tensor([0.5, 2.0]).double()
    price = black_price(100.0, strike, expiry, 0.25)
    vols = implied_vol(price, 100.0, strike, expiry)
    torch.testing.assert_close(vols, torch.full((3, 2), 0.25, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_price_just_above_intrinsic_is_not_told_that_it_is_below() -> None:
    with pytest.raises(ValueError, match=r"by enough to tell its vol from 0, got 1e-300 against 0;"):
        implied_vol(1e-300, 100.0, 100.0, 1.0)
    with pytest.raises(ValueError, match=r"for without time value no vol is identified, got 0 against 0;"):
        implied_vol(0.0, 100.0, 100.0, 1.0)
