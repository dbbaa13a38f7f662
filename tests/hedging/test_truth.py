"""The dynamic program of a short call with costs, against published values, quadrature, brute force and simulation."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hedging.truth import hedging_truth
from references import (
    SHORT_CALL_COST_EXPONENTS,
    SHORT_CALL_HEDGED,
    SHORT_CALL_OPTIMUM_WITH_SPURIOUS_DRIFT,
)
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from pricers.black import black_greeks

Problem, Grid, solve = hedging_truth.Problem, hedging_truth.Grid, hedging_truth.solve
frictionless, policy_value = hedging_truth.frictionless, hedging_truth.policy_value
COARSE = Grid(per_deviation=3, n_holdings=51)
COSTS = np.geomspace(1e-4, 2e-3, 5)


def unhedged(date, spot):
    return np.zeros_like(spot)


@pytest.mark.parametrize("published", SHORT_CALL_HEDGED, ids=lambda row: f"risk_aversion {row['risk_aversion']:g}")
def test_published_prices(published):
    problem = Problem(published["risk_aversion"], published["cost"])
    assert solve(problem, COARSE).price == pytest.approx(published["optimum"], abs=1.5e-6)
    assert frictionless(problem, COARSE).price == pytest.approx(published["frictionless"], abs=5.5e-7)
    assert policy_value(problem, unhedged, COARSE).price == pytest.approx(published["no_hedge"], abs=5.5e-7)


@pytest.mark.slow
@pytest.mark.parametrize("published", SHORT_CALL_HEDGED, ids=lambda row: f"risk_aversion {row['risk_aversion']:g}")
def test_published_optimum_to_its_digits_on_a_fine_grid(published):
    problem = Problem(published["risk_aversion"], published["cost"])
    price, finer = (solve(problem, grid).price for grid in (Grid(), Grid().halved()))
    assert finer == pytest.approx(published["optimum"], abs=7e-7)
    assert abs(finer - price) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(("risk_aversion", "exponent"), SHORT_CALL_COST_EXPONENTS.items())
def test_published_exponents_of_the_cost(risk_aversion, exponent):
    assert hedging_truth.cost_exponent(risk_aversion, COSTS) == pytest.approx(exponent, abs=0.01)


@pytest.mark.slow
def test_published_optimum_under_the_spurious_drift():
    """The log-spot of the published example falls by 30 days' worth of half the variance over 28 days."""
    drift = -0.5 * 0.2**2 * 2 / 28
    found = solve(Problem(1.0, 1e-3, drift=drift), Grid(lowest=-0.5, highest=1.5, n_holdings=401)).price
    assert found == pytest.approx(SHORT_CALL_OPTIMUM_WITH_SPURIOUS_DRIFT, abs=1e-6)


@pytest.mark.parametrize(("risk_aversion", "drift"), [(1.0, 0.0), (10.0, 0.05)])
def test_no_hedge_equals_an_integral_over_the_final_spot(risk_aversion, drift):
    problem = Problem(risk_aversion, drift=drift)
    deviation = problem.deviation * math.sqrt(problem.n_steps)
    mean = (drift - 0.5 * problem.vol**2) * problem.dt * problem.n_steps

    def integrand(z):
        return math.exp(risk_aversion * max(math.exp(mean + deviation * z) - 1, 0) - 0.5 * z * z)

    kink = -mean / deviation
    total = sum(quad(integrand, *ends, epsabs=1e-13)[0] for ends in ((-12, kink), (kink, 12)))
    exact = math.log(total / math.sqrt(2 * math.pi)) / risk_aversion
    assert policy_value(problem, unhedged, COARSE).price == pytest.approx(exact, abs=2e-9)


def test_last_date_equals_a_search_over_holdings_and_quadrature():
    """One date, away from the strike, with costs: the best holding by a scalar search over an integral."""
    problem = Problem(20.0, 2e-3, n_steps=1, dt=28 / 365, spot=0.98, drift=0.1)
    mean = (problem.drift - 0.5 * problem.vol**2) * problem.dt
    kink = (math.log(1 / 0.98) - mean) / problem.deviation

    def risk(holding):
        def integrand(z):
            spot = 0.98 * math.exp(mean + problem.deviation * z)
            loss = max(spot - 1, 0) - holding * (spot - 0.98)
            return math.exp(20 * loss - 0.5 * z * z)

        total = sum(quad(integrand, *ends, epsabs=1e-13)[0] for ends in ((-12, kink), (kink, 12)))
        return math.log(total / math.sqrt(2 * math.pi)) / 20 + 2e-3 * 0.98 * abs(holding)

    best = minimize_scalar(risk, bounds=(0, 1), method="bounded", options={"xatol": 1e-9})
    found = solve(problem, Grid(per_deviation=24, n_holdings=801))
    assert found.price == pytest.approx(best.fun, abs=1e-6)
    assert found.hold(0, np.array([0.98]), np.array([0.0]))[0] == pytest.approx(best.x, abs=2e-3)


def test_without_cost_both_recursions_agree_and_the_band_is_the_hedge():
    problem = Problem(10.0)
    free, solved = frictionless(problem, COARSE), solve(problem, COARSE)
    assert solved.price == pytest.approx(free.price, abs=1e-6)
    near = np.abs(np.log(free.spot)) < 0.08
    np.testing.assert_array_equal(solved.low, solved.high)
    found, hedge = solved.low[:-1, near], free.holdings[:-1, near]
    inside = (hedge > 0.02) & (hedge < 0.98)
    np.testing.assert_allclose(found[inside], hedge[inside], atol=2e-3)
    np.testing.assert_allclose(found[~inside], hedge[~inside], atol=0.5 * 0.02)  # half a cell next to the bounds


def test_frictionless_hedge_is_near_black_scholes_and_beats_it():
    problem = Problem(1.0)
    found = frictionless(problem, COARSE)

    def black_scholes(date, spot):
        left = (problem.n_steps - date) * problem.dt
        return black_greeks(torch.from_numpy(spot), 1.0, left, problem.vol).delta.numpy()

    central = (found.spot > 0.96) & (found.spot < 1.04)
    difference = found.holdings[0] - black_scholes(0, found.spot)
    assert np.abs(difference[central]).max() < 0.02
    assert found.price < policy_value(problem, black_scholes, COARSE).price < found.price + 1e-6
    assert policy_value(problem, found.hold, COARSE).price == pytest.approx(found.price, abs=1e-12)


def test_price_rises_with_cost_and_risk_aversion():
    by_cost = [solve(Problem(10.0, cost), COARSE).price for cost in (0.0, 1e-4, 1e-3, 1e-2)]
    by_aversion = [solve(Problem(aversion, 1e-3), COARSE).price for aversion in (0.1, 1.0, 10.0, 100.0)]
    assert np.all(np.diff(by_cost) > 0)
    assert np.all(np.diff(by_aversion) > 0)


def test_band_of_a_small_cost_holds_the_frictionless_hedge_and_widens():
    free = frictionless(Problem(50.0), COARSE)
    near = np.abs(np.log(free.spot)) < 0.04
    widths = []
    for cost in (1e-4, 1e-3):
        found = solve(Problem(50.0, cost), COARSE)
        low, high = found.low[:20, near], found.high[:20, near]
        hedge = free.holdings[:20, near]
        assert np.all((low - 2e-3 <= hedge) & (hedge <= high + 2e-3))
        widths.append((high - low).mean())
    # between the cube root of ten, the law in continuous time, and ten, that of one date
    assert 10 ** (1 / 3) * widths[0] < widths[1] < 10 * widths[0]


def test_risk_of_the_drift_alone_is_mertons():
    """No call, no cost: one date's best holding earns about mu^2 dt / (2 lambda sigma^2) of risk a date."""
    problem = Problem(10.0, drift=0.02, quantity=0.0, n_steps=28)
    found = frictionless(problem, COARSE)
    years = problem.n_steps * problem.dt
    assert -found.price == pytest.approx(0.02**2 * years / (2 * 10 * 0.2**2), rel=1e-3)


def test_holdings_that_end_at_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"widen `lowest` and `highest`"):
        solve(Problem(1.0, 1e-3, drift=0.5), COARSE)


def simulated_price(problem, solution, n_paths, seed):
    """Price of the band's P&L and its standard error; the frictionless hedge without cost is the control variate."""
    free = frictionless(problem)
    rng = np.random.default_rng(seed)
    spot, holding = np.full(n_paths, problem.spot), np.zeros(n_paths)
    pnl, control = np.zeros(n_paths), np.zeros(n_paths)
    for date in range(problem.n_steps):
        after = solution.hold(date, spot, holding)
        pnl -= problem.cost * spot * np.abs(after - holding)
        holding = after
        shock = problem.deviation * rng.standard_normal(n_paths) - 0.5 * problem.deviation**2
        later = spot * np.exp(shock)
        pnl += holding * (later - spot)
        control += free.hold(date, spot) * (later - spot)
        spot = later
    owed = np.maximum(spot - problem.strike, 0)
    loss, known = (np.exp(-problem.risk_aversion * (x - owed)) for x in (pnl, control))
    beta = np.cov(loss, known)[0, 1] / known.var()
    adjusted = loss - beta * (known - math.exp(problem.risk_aversion * free.price))
    price = math.log(adjusted.mean()) / problem.risk_aversion
    return price, adjusted.std() / math.sqrt(n_paths) / adjusted.mean() / problem.risk_aversion


@pytest.mark.slow
@pytest.mark.parametrize(("risk_aversion", "cost"), [(10.0, 1e-3), (50.0, 1e-3), (10.0, 2e-3)])
def test_simulated_band_has_the_price_of_the_program(risk_aversion, cost):
    problem = Problem(risk_aversion, cost)
    solution = solve(problem)
    price, std_error = simulated_price(problem, solution, n_paths=2**18, seed=11)
    assert std_error < 2.5e-5
    assert abs(price - solution.price) < 3 * std_error
    narrow = replace(solution, low=0.5 * (solution.low + solution.high), high=0.5 * (solution.low + solution.high))
    dearer, _ = simulated_price(problem, narrow, n_paths=2**14, seed=11)
    assert dearer > solution.price + 10 * std_error


def test_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    out = tmp_path / "truth.json"
    monkeypatch.setattr(hedging_truth, "Grid", lambda: COARSE)
    monkeypatch.setattr("sys.argv", ["hedging_truth", "--risk-aversions", "10", "--out", str(out)])
    hedging_truth.main()
    (row,) = json.loads(out.read_text())
    assert row["price"] == pytest.approx(0.023206, abs=1.5e-6)
    assert 0 < row["grid_error"] < 1e-6
    assert "cost exponent 0.7" in capsys.readouterr().out
