"""The page of a surrogate: its bound bin by bin, and settings as a reader writes them."""

from pathlib import Path

import pytest

from qfml.report.formats import model_name
from qfml.report.surrogate import _settings, _speed, _speed_cards
from qfml.report.surrogate_judgement import SurrogateRun, arbitrage_section, bound_section, greeks_section
from qfml.summary import SUMMARIES

CONFORMAL = {
    "level": 0.99,
    "bound": 0.001,
    "n_calibration": 2000,
    "of": "value",
    "n_test": 2000,
    "coverage": 0.985,
    "coverage_low": 0.979,
    "coverage_high": 0.989,
    "p_value": 0.0123,
    "by_bin": [
        {"name": "v0", "low": 0.01, "high": 0.1, "n": 1200, "coverage": 0.995},
        {"name": "v0", "low": 0.1, "high": 0.5, "n": 800, "coverage": 0.97},
        {"name": "expiry", "low": 0.02, "high": 1.0, "n": 2000, "coverage": 0.985},
        {"name": "expiry", "low": 1.0, "high": 3.0, "n": 0, "coverage": None},
    ],
}


def bound_text(conformal: dict) -> str:
    metrics = {"judgement": {"conformal": conformal, "target": "implied_vol"}}
    return str(bound_section(SurrogateRun(Path(), "", metrics, {})).html())


def test_coverage_and_its_chance_are_shown_bin_by_bin() -> None:
    text = bound_text(CONFORMAL)
    assert "0.012" in text
    assert '<span title="[0.100, 0.500]: 800 points">97.0%</span>' in text
    assert "lies in [0.100, 0.500]: 97.0% of 800 points" in text
    assert 'title="no points"' in text
    assert "kept by fewer fresh points than it says" in text


def test_a_run_of_before_has_no_bins() -> None:
    old = {name: value for name, value in CONFORMAL.items() if name not in ("by_bin", "p_value")}
    assert "bin by bin" not in bound_text(old)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "mlp", "hidden": [64, 64], "dropout": 0.0, "layer_norm": False}, "mlp (hidden 64-64)"),
        (
            {"kind": "bounded", "inner": {"kind": "mlp", "hidden": [8], "layer_norm": True}, "output": "exp"},
            "bounded (inner mlp (hidden 8, layer norm True), output exp)",
        ),
    ],
)
def test_a_network_is_written_without_what_is_off(settings: dict, told: str) -> None:
    assert _settings(settings) == told


def test_proper_names_keep_their_capitals() -> None:
    assert [model_name(kind) for kind in ("rough_bergomi", "black_scholes", "sabr", "asian", "local_vol")] == [
        "rough Bergomi",
        "Black Scholes",
        "SABR",
        "Asian",
        "local vol",
    ]


MEASURES = {"rmse": 1e-4, "mean_abs": 1e-4, "q99": 2e-4, "q999": 7.77e-4, "max": 8e-4}
SPEED = {
    "surrogate": {
        "threads": 1,
        "n_batch": 100_000,
        "batch_seconds": {"least": 0.01, "median": 0.02},
        "price_batch_seconds": {"least": 0.03, "median": 0.04},
        "gradient_batch_seconds": {"least": 0.05, "median": 0.06},
        "single_seconds": {"least": 1e-4, "median": 2e-4},
    },
    "exact": {"engine": "FiniteDifference", "seconds_per_price": 1e-3},
    "ratio_exact": 5000.0,
}


def judged(n_points: int = 1000, **changes: object) -> dict:
    in_bps = {name: 1e4 * value for name, value in MEASURES.items()}
    found = {
        "target": "implied_vol",
        "error": MEASURES,
        "vol_bps": in_bps,
        "points": {"n_points": n_points, "note": "", "error_bound": {"n_points": 64, "rms": 0.0, "max": 0.0}},
        "conformal": CONFORMAL | {"level": 0.995},
        "speed": SPEED,
        "arbitrage": {},
        "arbitrage_note": "no rule was looked at: the strike does not vary in the box",
    }
    return found | changes


def run_of(found: dict) -> SurrogateRun:
    return SurrogateRun(Path(), "", {"judgement": found}, {})


def test_a_thousand_points_tell_the_last_thousandth(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_of(judged(1000)).tells_q999
    assert not run_of(judged(999)).tells_q999
    for n_points, told in ((1000, True), (999, False)):
        SUMMARIES["surrogate"]({"judgement": judged(n_points)})
        shown = capsys.readouterr().out
        assert ("99.9 %" in shown, "7.77" in shown) == (told, told)
        assert "bound at 99.5%" in shown


def test_vols_are_called_vols_and_prices_timed_with_their_formula(capsys: pytest.CaptureFixture[str]) -> None:
    SUMMARIES["surrogate"]({"judgement": judged()})
    assert "100,000 vols in 20.0 ms; 100,000 prices in 40.0 ms" in " ".join(capsys.readouterr().out.split())
    cards = _speed_cards("implied_vol", SPEED)
    assert [card[:2] for card in cards] == [("100,000 vols", "20.0 ms"), ("100,000 prices", "40.0 ms")]
    section = _speed(run_of(judged()))
    assert section is not None
    text = str(section.html())
    for told in ("vols in a batch", "prices in a batch", "FiniteDifference, vols", "200 ns", "400 ns", "in float32"):
        assert told in text
    of_prices = {"surrogate": {k: v for k, v in SPEED["surrogate"].items() if k != "price_batch_seconds"}}
    assert _speed_cards("price", of_prices)[0][:2] == ("100,000 prices", "20.0 ms")


def test_a_derivative_that_is_zero_shows_no_relative_error() -> None:
    one = {"rms_exact": 0.0, "rmse": 0.01, "relative": None, "q99": 0.02, "noise": 0.0}
    section = greeks_section(
        SurrogateRun(Path(), "", {"judgement": {"greeks": {"vol": one}}, "labels": {"units": {}}}, {})
    )
    assert section is not None
    text = str(section.html())
    assert ("n/a" in text, "%</td>" in text) == (True, False)


def test_missing_rules_are_said() -> None:
    section = arbitrage_section(run_of(judged()))
    assert section is not None
    assert "No rule was looked at: the strike does not vary in the box." in str(section.html())


def test_values_with_an_error_of_their_own_are_not_called_exact() -> None:
    assert run_of(judged()).truth == "exact value"
    points = {"n_points": 1000, "note": "two grids", "error_bound": {"n_points": 64, "rms": 1e-5, "max": 5e-5}}
    coarse = run_of(judged(points=points))
    assert coarse.truth == "engine's value"
    assert "bounds their error by 0.100 bps of vol in the root mean square and 0.500 at most" in coarse.stated
    assert "two grids" in coarse.stated
    tiny = {"n_points": 64, "rms": 1e-9, "max": 5e-9}
    assert run_of(judged(points=points | {"note": "", "error_bound": tiny})).truth == "exact value"
