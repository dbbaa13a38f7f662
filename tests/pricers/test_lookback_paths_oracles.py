"""Lookback payoffs along paths: a loop by hand, the closed form, the law of the bridge's extreme; bad input."""

import itertools
import math

import numpy as np
import pytest
import torch

from pricers.analytic.lookback import lookback_formula
from pricers.instruments.lookback import Lookback, bridge_extremum
from pricers.market import Market
from pricers.models.black_scholes import BlackScholes
from pricers.paths import Paths, time_grid

CONTRACTS = list(itertools.product((None, 101.0), ("call", "put")))


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def exact_paths(dates, n_paths, market, vol, n_steps=None, seed=1):
    """Black-Scholes paths without bias at any step, with uniforms for the extremes."""
    times = time_grid(dates, n_steps)
    generator = torch.Generator().manual_seed(seed)
    dt = times.diff()
    normals = torch.randn(n_paths, dt.shape[0], generator=generator, dtype=torch.float64)
    log_ratio = (vol * dt.sqrt() * normals - 0.5 * vol**2 * dt).cumsum(-1)
    log_ratio = torch.cat([torch.zeros(n_paths, 1, dtype=torch.float64), log_ratio], dim=-1)
    uniforms = torch.rand(n_paths, dt.shape[0], generator=generator, dtype=torch.float64).clamp(min=1e-16)
    variance = (vol**2 * dt).expand(n_paths, -1)
    return Paths(times, market.forward(times) * log_ratio.exp(), variance, bridge_uniforms=uniforms)


def is_of_maximum(strike, option):
    return (strike is None) == (option == "put")


@pytest.mark.parametrize(("strike", "option"), CONTRACTS)
@pytest.mark.parametrize("seasoned", [False, True])
def test_payoff_equals_a_loop(strike, option, seasoned):
    market = Market(number(100.0), number(0.06), number(0.01))
    paths = exact_paths(torch.tensor([0.5, 1.0], dtype=torch.float64), 200, market, 0.3, n_steps=6)
    highest = is_of_maximum(strike, option)
    before = (115.0 if highest else 90.0) if seasoned else None
    for expiry in (0.5, 1.0):  # one expiry lies within the paths
        contract = Lookback(None if strike is None else number(strike), number(expiry), option, before)
        assert contract.of_maximum == highest
        ours = contract.payoff(paths, market.discount)
        last = paths.times.tolist().index(expiry)
        rows = zip(
            paths.spot.tolist(), paths.variance.tolist(), paths.bridge_uniforms.tolist(), ours.tolist(), strict=True
        )
        for row, variances, uniforms, value in rows:
            extremes = [row[0]] if before is None else [row[0], before]
            for a, b, v, u in zip(row[:last], row[1 : last + 1], variances, uniforms, strict=False):
                root = math.sqrt(math.log(b / a) ** 2 - 2.0 * v * math.log(u))
                extremes.append(math.sqrt(a * b) * math.exp(0.5 * root * (1.0 if highest else -1.0)))
            extreme = max(extremes) if highest else min(extremes)
            if strike is None:
                paid = extreme - row[last] if option == "put" else row[last] - extreme
            else:
                paid = max((extreme - strike) * (1.0 if option == "call" else -1.0), 0.0)
            assert value == pytest.approx(paid * math.exp(-0.06 * expiry), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("strike", "option"), CONTRACTS)
@pytest.mark.parametrize("n_steps", [1, 7])
def test_payoff_has_no_bias_at_any_step(strike, option, n_steps):
    market = Market(number(100.0), number(0.08), number(0.04))
    before = torch.tensor([100.0, 112.0] if is_of_maximum(strike, option) else [100.0, 91.0], dtype=torch.float64)
    contract = Lookback(None if strike is None else number(strike), number(0.5), option, before)
    expected = lookback_formula(contract, BlackScholes(number(0.25)), market).value
    payoffs = contract.payoff(exact_paths(number(0.5), 100_000, market, 0.25, n_steps), market.discount)
    assert payoffs.shape == (2, 100_000)
    error = payoffs.std(dim=-1) / math.sqrt(payoffs.shape[-1])
    assert (error <= 0.05).all()
    assert ((payoffs.mean(dim=-1) - expected).abs() <= 4.0 * error).all()


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.1), (0.0, -0.3), (0.2, 0.2)])
def test_bridge_extremum_has_the_law_of_the_reflection_principle(start, end):
    """P(max > x) = exp(-2 (x - a)(x - b) / v): the quantile of U is the level that is exceeded with probability U."""
    uniform, variance = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), number(0.04)
    for of_maximum, sign in ((True, 1.0), (False, -1.0)):
        level = bridge_extremum(number(start), number(end), variance, uniform, of_maximum)
        assert (sign * (level - max(sign * start, sign * end) * sign) >= 0).all()
        exceeded = torch.exp(-2.0 * (level - start) * (level - end) / variance)
        torch.testing.assert_close(exceeded, uniform, rtol=1e-12, atol=1e-13)


def test_minimum_lies_below_and_maximum_above_all_points():
    market = Market(number(100.0))
    paths = exact_paths(number(1.0), 500, market, 0.3, n_steps=10)
    highest = Lookback(number(1e-6), number(1.0), "call").payoff(paths, torch.ones_like) + 1e-6
    lowest = 1e6 - Lookback(number(1e6), number(1.0), "put").payoff(paths, torch.ones_like)
    assert (highest >= paths.spot.amax(-1)).all()
    assert (lowest <= paths.spot.amin(-1)).all()


def test_batches_of_contract_and_simulation_broadcast():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    walk = exact_paths(times[1:], 40, Market(number(1.0)), 0.3)
    spots = torch.tensor([100.0, 104.0, 90.0], dtype=torch.float64)
    expiry = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    contract = Lookback(number(99.0), expiry, "call")
    paths = Paths(times, spots[:, None, None] * walk.spot, walk.variance, bridge_uniforms=walk.bridge_uniforms)
    values = contract.payoff(paths, lambda time: torch.exp(-0.05 * time))
    assert values.shape == (2, 3, 40)
    for row, column in itertools.product(range(2), range(3)):
        single = Lookback(number(99.0), expiry[row, 0], "call")
        one = Paths(times, spots[column] * walk.spot, walk.variance, bridge_uniforms=walk.bridge_uniforms)
        alone = single.payoff(one, lambda time: torch.exp(-0.05 * time))
        torch.testing.assert_close(values[row, column], alone, rtol=1e-13, atol=1e-13)


def test_pathwise_delta_and_vega_are_those_of_the_closed_form():
    spot, vol = number(100.0).requires_grad_(), number(0.25).requires_grad_()
    contract = Lookback(number(105.0), number(0.5), "call")
    exact = lookback_formula(contract, BlackScholes(vol), Market(spot, number(0.05))).value
    expected = torch.autograd.grad(exact, (spot, vol))
    n_paths = 50_000
    spots = torch.full((n_paths, 1), 100.0, dtype=torch.float64, requires_grad=True)
    vols = torch.full((n_paths, 1), 0.25, dtype=torch.float64, requires_grad=True)
    times = torch.linspace(0.0, 0.5, 5, dtype=torch.float64)
    generator, dt = torch.Generator().manual_seed(4), 0.125
    normals = torch.randn(n_paths, 4, generator=generator, dtype=torch.float64)
    moves = vols * math.sqrt(dt) * normals + (0.05 - 0.5 * vols**2) * dt
    path = spots * torch.cat([torch.ones(n_paths, 1, dtype=torch.float64), moves.cumsum(-1).exp()], dim=-1)
    uniforms = torch.rand(n_paths, 4, generator=generator, dtype=torch.float64).clamp(min=1e-16)
    paths = Paths(times, path, (vols**2 * dt).expand(-1, 4), bridge_uniforms=uniforms)
    payoffs = contract.payoff(paths, lambda time: torch.exp(-0.05 * time))
    for slopes, truth in zip(torch.autograd.grad(payoffs.sum(), (spots, vols)), expected, strict=True):
        error = slopes.std() / math.sqrt(n_paths)
        assert error <= 0.01 * truth
        assert abs(slopes.mean() - truth) <= 4.0 * error


def test_no_gradient_is_nan_for_still_paths():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    for v, (strike, option) in itertools.product((0.0, 1e-300, 0.01, 50.0), CONTRACTS):
        spot = torch.tensor([[100.0, 100.0, 100.0], [100.0, 1e6, 1e-6]], dtype=torch.float64).requires_grad_()
        variance = torch.full((2, 2), v, dtype=torch.float64).requires_grad_()
        uniforms = torch.tensor([[0.5, 1.0 - 1e-16], [1e-300, 0.999]], dtype=torch.float64)
        paths = Paths(times, spot, variance, bridge_uniforms=uniforms)
        values = Lookback(strike, number(1.0), option).payoff(paths, torch.ones_like)
        assert values.isfinite().all()
        for gradient in torch.autograd.grad(values.sum(), (spot, variance)):
            assert gradient.isfinite().all()


def test_payoff_refuses_what_it_misses_and_a_wrong_extremum():
    times, spot = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.full((3, 2), 100.0, dtype=torch.float64)
    variance, uniforms = torch.full((3, 1), 0.04, dtype=torch.float64), torch.full((3, 1), 0.5, dtype=torch.float64)
    contract = Lookback(None, number(1.0), "call")
    with pytest.raises(ValueError, match="needs the variance of the log price"):
        contract.payoff(Paths(times, spot, bridge_uniforms=uniforms), torch.ones_like)
    with pytest.raises(ValueError, match="needs `bridge_uniforms`, got None"):
        contract.payoff(Paths(times, spot, variance), torch.ones_like)
    paths = Paths(times, spot, variance, bridge_uniforms=uniforms)
    for strike, option, level in (
        (None, "call", 101.0),
        (90.0, "put", 101.0),
        (None, "put", 99.0),
        (90.0, "call", 99.0),
    ):
        with pytest.raises(ValueError, match=rf"`running_extremum` .* got {level:g} at a spot of 100"):
            Lookback(strike, 1.0, option, level).payoff(paths, torch.ones_like)
    assert contract.continuous
    assert contract.bridge_uniforms


def test_shifted_moves_the_expiry_alone():
    later = Lookback(None, 1.0, "put", 120.0).shifted(number(0.25))
    assert later.expiry.item() == 0.75
    assert later.strike is None
    assert later.running_extremum.item() == 120.0
    assert Lookback(95.0, np.array([1.0, 2.0]), "put").shifted(number(0.25)).dates.tolist() == [[0.75], [1.75]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0), "`strike` must be above 0, got 0"),
        ((float("nan"), 1.0), "`strike` must be finite"),
        ((None, 0.0), "`expiry` must be above 0, got 0"),
        ((None, float("inf")), "`expiry` must be finite"),
        ((None, 1.0, "straddle"), "`option` must be one of"),
        ((None, 1.0, "call", -5.0), "`running_extremum` must be above 0, got -5"),
        ((None, 1.0, "call", float("nan")), "`running_extremum` must be finite"),
        ((None, [1.0, 2.0], "call", [90.0, 91.0, 92.0]), r"`expiry` of shape \(2,\) and `running_extremum` of shape"),
    ],
)
def test_lookback_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Lookback(*arguments)
