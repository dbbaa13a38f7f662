"""The page of a surrogate: its bound bin by bin, and settings as a reader writes them."""

from pathlib import Path

import pytest

from qfml.report.formats import model_name
from qfml.report.surrogate import _bound, _Run, _settings

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
    return str(_bound(_Run(Path(), "", metrics, {})).html())


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
