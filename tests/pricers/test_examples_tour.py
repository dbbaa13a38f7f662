"""The tour of pricers runs, its two columns agree, and it leaves out no pair that an engine prices."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pricers as pr
from pricers.pricing import capable_engines

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "pricers_tour.py"
STEP_BIAS = 1e-3  # of the spot: what 48 time steps may leave, at most under the rough models (docs/pricers.md)


@pytest.fixture(scope="module")
def tour():
    spec = importlib.util.spec_from_file_location("pricers_tour", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pricers_tour"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pricers_tour"]


def check(tour, row, bias):
    found = [estimate for estimate in (row.exact, row.simulated) if estimate is not None]
    assert found, row.line
    assert len(row.line) <= 120
    for estimate in found:
        assert estimate.value.shape == ()
        assert estimate.value.isfinite()
        assert row.instrument.startswith("Variance swap") or estimate.value > 0
        assert estimate.engine
    if row.exact is not None:
        assert row.exact.std_error == 0
        assert row.exact.error_bound <= 1e-3 * row.exact.value.abs() + 2e-3, row.line
    if len(found) == 2:
        room = 4 * row.simulated.std_error + row.exact.error_bound + row.simulated.error_bound + bias
        if "lower bound" in row.simulated.note:
            assert row.simulated.value <= row.exact.value + room, row.line
            room = room + 0.02 * row.exact.value  # a fitted rule is not the best one
        assert (row.simulated.value - row.exact.value).abs() <= room, row.line


def scale_of(row):
    per_unit = ("cash", "Cliquet", "Autocallable", "Variance")
    return 1.0 if any(word in row.instrument for word in per_unit) else 100.0


@pytest.mark.parametrize(
    "only", [("european", "merton"), ("digital", "black_scholes"), ("asian", "heston"), ("basket",)]
)
def test_a_part_of_the_tour_agrees_with_itself(tour, only):
    found = list(tour.rows(2048, only))
    assert len(found) >= 1
    for row in found:
        check(tour, row, STEP_BIAS * scale_of(row))


def test_the_tour_visits_every_registered_class(tour):
    visited = {type(contract) for contract in (*tour.INSTRUMENTS.values(), *tour.INSTRUMENTS_OF_TWO.values())}
    assert visited == set(pr.INSTRUMENTS.values())
    assert {kind: type(model) for kind, model in tour.MODELS.items()} == pr.MODELS


def test_the_tour_leaves_nothing_out(tour):
    for name, model_name, instrument, model, market in tour.triples():
        assert capable_engines(instrument, model, market), (name, model_name)


def test_what_no_engine_prices_says_why_engine_by_engine(tour):
    """The variance of a log price that may reach 0 is infinite."""
    with pytest.raises(ValueError, match="no engine prices") as refused:
        pr.price(pr.VarianceSwap(0.04, 1.0), pr.SABR(2.0, 0.5, -0.3, 0.4), tour.MARKET)
    for name in pr.ENGINES:
        assert name in str(refused.value)


def test_the_script_prints_its_table():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--paths", "1024", "--only", "european,sabr"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Hagan" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert done.stdout.count("European call") == 2  # its line, and the note below


@pytest.mark.slow
@pytest.mark.parametrize("model", [*pr.MODELS, "black_scholes of two"])
def test_the_whole_tour_agrees_with_itself(tour, model):
    """Each pair of a model, at the script's own number of paths."""
    found = [row for row in tour.rows(16_384, (model,)) if row.model == model]
    assert len(found) >= 5
    for row in found:
        check(tour, row, STEP_BIAS * scale_of(row))
