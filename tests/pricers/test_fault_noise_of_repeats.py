"""Repeats of Sobol noise are independent in all they draw: points, what lies beyond them, bridge uniforms."""

import pytest
import torch

import pricers as pr
from pricers import noise as noise_module
from pricers.noise import BLOCK, TILE, Sobol, uniforms

DT = torch.full((8,), 0.125, dtype=torch.float64)


def assert_independent(one, other):
    """No correlation of a row beyond five of its deviations, 1 / sqrt(n)."""
    for a, b in zip(one.reshape(-1, TILE), other.reshape(-1, TILE), strict=True):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 5.0 / TILE**0.5


def test_uniforms_depend_on_all_of_their_address():
    def drawn(seed=1, repeat=0, start=0):
        return uniforms(seed, repeat, start, TILE, 3, DT).T

    base = drawn()
    assert torch.equal(base, drawn())
    assert_independent(base, drawn(repeat=1))
    assert_independent(base, drawn(seed=2))
    assert_independent(base, drawn(start=TILE))
    assert_independent(base, drawn(start=BLOCK))


@pytest.mark.parametrize("noise", ["sobol", "pseudo"])
def test_bridge_uniforms_of_a_chunk_are_those_of_its_address(noise):
    engine = pr.MonteCarlo(2 * TILE, n_steps=4, noise=noise, repeats=2, seed=1)
    sampler = engine.sampler(pr.Lookback(None, 1.0, "call"), pr.BlackScholes(0.2), pr.Market(100.0))
    base = sampler._uniforms(0, 0, TILE)
    assert_independent(base.T, sampler._uniforms(0, TILE, TILE).T)
    if noise == "sobol":
        assert_independent(base.T, sampler._uniforms(1, 0, TILE).T)


def test_dimensions_beyond_the_direction_numbers_depend_on_all_of_their_address(monkeypatch):
    monkeypatch.setattr(noise_module, "SOBOL_DIMENSIONS", 4)

    def drawn(seed=1, repeat=0, start=0):
        return Sobol(seed, 2).extra(repeat, start, TILE, DT, 1, 3)

    base = drawn()
    assert torch.equal(base, drawn())
    assert_independent(base, drawn(repeat=1))
    assert_independent(base, drawn(seed=2))
    assert_independent(base, drawn(start=TILE))
    # the rest of the steps and the extra rows are not the same numbers either
    steps = Sobol(1, 2)._rows(0, 0, TILE, DT, slice(4, 7))
    assert_independent(base, steps)


def test_steps_beyond_the_direction_numbers_differ_between_repeats(monkeypatch):
    monkeypatch.setattr(noise_module, "SOBOL_DIMENSIONS", 4)
    one, other = (Sobol(1, 2)._rows(repeat, 0, TILE, DT, slice(0, 8)) for repeat in (0, 1))
    assert_independent(one[4:], other[4:])
    assert not torch.equal(one[:4], other[:4])
