"""Longstaff-Schwartz: fresh paths for the value, other noise in each block, and the errors of both bounds by hand."""

import math

import pytest
import torch

import pricers as pr
from pricers.exercise import engine as engine_module
from pricers.noise import BLOCK, TILE

PUT = pr.Bermudan(100.0, [0.25, 0.5, 0.75, 1.0], "put")
MODEL = pr.BlackScholes(0.25)
MARKET = pr.Market(100.0, rate=0.06)


def test_value_of_a_fitted_rule_is_no_more_than_that_of_the_best():
    """Fitted to 12 paths, four coefficients earn much on these paths, and less than the best rule on others."""
    best = pr.FiniteDifference().price(PUT, MODEL, MARKET).value.item()
    found = torch.stack(
        [pr.LongstaffSchwartz(12, n_steps=1, seed=seed).price(PUT, MODEL, MARKET).value for seed in range(36)]
    )
    assert found.mean().item() < best + 2.0 * found.std().item() / 6.0
    assert found.mean().item() > 0.5 * best


def test_fit_and_value_have_noise_of_their_own(monkeypatch):
    seeds = {}
    for name in ("fit", "follow"):
        method = getattr(engine_module.Problem, name)

        def noted(self, *args, method=method, name=name):
            seeds[name] = args[-1]
            return method(self, *args)

        monkeypatch.setattr(engine_module.Problem, name, noted)
    pr.LongstaffSchwartz(64, n_steps=1, seed=3).price(PUT, MODEL, MARKET)
    assert len(set(seeds.values())) == len(seeds) == 2


def test_each_block_of_paths_has_its_own_noise():
    engine = pr.LongstaffSchwartz(256, n_steps=1, seed=3)
    problem = engine._checked(PUT, MODEL, MARKET)
    values = problem.follow(problem.fit(256, 1), 2 * BLOCK + 100, 2)
    first, second, rest = values.split([BLOCK, BLOCK, 100])
    assert not torch.equal(first[:100], rest)
    assert not torch.equal(second[:100], rest)
    # of independent samples: normal with deviation 1 / sqrt(16,384)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 5.0 / BLOCK**0.5


def test_a_walk_begins_at_the_address_of_its_first_path():
    walk = pr.LongstaffSchwartz(2, n_steps=1, seed=3)._checked(PUT, MODEL, MARKET).walk
    whole = next(iter(walk.onward(walk.start(2 * TILE), 0, 7))).spot
    later = next(iter(walk.onward(walk.start(TILE), 0, 7, TILE))).spot
    assert torch.equal(whole[TILE:], later)
    assert not torch.equal(whole[:TILE], later)


def test_errors_of_both_bounds_by_hand(monkeypatch):
    values = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64)  # mean 4, variance 20 / 3
    gaps = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)  # mean 1.5, variance 1.75
    monkeypatch.setattr(engine_module.Problem, "follow", lambda *_: values)
    monkeypatch.setattr(engine_module.Problem, "dual", lambda *_: gaps)
    engine = pr.LongstaffSchwartz(4, n_steps=1, seed=3, n_outer=3, n_inner=2)
    lower, upper = engine.bounds(PUT, MODEL, MARKET)
    assert lower.value.item() == 4.0
    assert lower.std_error.item() == pytest.approx(math.sqrt(20.0 / 3.0 / 4.0), rel=1e-14)
    assert upper.value.item() == 5.5
    assert upper.std_error.item() == pytest.approx(math.sqrt(20.0 / 3.0 / 4.0 + 1.75 / 3.0), rel=1e-14)
    found = engine.price(PUT, MODEL, MARKET)
    assert (found.value.item(), found.error_bound.item()) == (4.0, 1.5)
    assert found.std_error.item() == lower.std_error.item()
