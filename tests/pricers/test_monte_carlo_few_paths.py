"""Values that a handful of paths decide: no error of 0 beside a wrong number, and a note that says so."""

import pytest
import torch

import pricers as pr
from pricers.monte_carlo.statistics import pooled, tile_moments

MARKET = pr.Market(100.0, 0.02, 0.01)
BLACK_SCHOLES = pr.BlackScholes(0.2)
FAR = pr.Digital(122.0, 0.1)  # some eight of ten thousand paths pay


def simulated(instrument, n_paths, seed, **settings):
    return pr.price(instrument, BLACK_SCHOLES, MARKET, pr.MonteCarlo(n_paths, seed=seed, **settings))


def test_samples_that_decide_are_a_third_of_normals_and_the_hits_of_a_rare_event():
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(2**16, generator=generator, dtype=torch.float64)
    rare = torch.zeros_like(normal)
    rare[::8192] = 1.0
    moments = pooled(tile_moments(torch.stack([normal, rare, torch.ones_like(normal)]), pairs=False))
    normals, hits, constant = moments.deciding.tolist()
    assert normals == pytest.approx(2**16 / 3, rel=0.02)  # 4 standard errors of a fourth moment
    assert hits == pytest.approx(8.0, rel=0.01)  # but for the squares of the tiles' means
    assert constant == 0.0


def test_a_rare_payoff_has_an_error_wherever_it_is_hit():
    exact = pr.price(FAR, BLACK_SCHOLES, MARKET).value.item()
    missed = 0
    for seed in range(60):
        estimate = simulated(FAR, 2048, seed)
        assert "decide" in estimate.note or "pay the same" in estimate.note
        if estimate.value.item() == 0.0:
            missed += 1  # nothing was hit, which the note says
            continue
        assert abs(estimate.value.item() - exact) <= 4 * estimate.std_error.item()
    assert missed < 30  # the chance of no hit in 2,048 paths is a fifth


@pytest.mark.parametrize("n_paths", [2, 3, 5])
@pytest.mark.parametrize("instrument", [pr.European(100.0, 1.0), pr.Asian(100.0, [0.5, 1.0])])
def test_few_paths_are_not_explained_away_by_controls(n_paths, instrument):
    with_controls, without = (simulated(instrument, n_paths, 1, controls=flag) for flag in (True, False))
    assert with_controls.value.item() == without.value.item()
    assert with_controls.std_error.item() == without.std_error.item()
    assert with_controls.note


def test_a_target_is_not_met_by_paths_that_all_pay_nothing():
    estimate = simulated(pr.Digital(130.0, 0.1), 2**17, 1, target_std_error=1e-9)
    assert estimate.n_paths == 2**17
    assert "pay the same" in estimate.note


def test_many_paths_bring_no_note_and_keep_their_controls():
    plain = simulated(pr.European(100.0, 1.0), 2**14, 1, controls=False)
    controlled = simulated(pr.European(100.0, 1.0), 2**14, 1)
    assert not plain.note
    assert not controlled.note
    assert controlled.std_error < 0.6 * plain.std_error


def test_antithetic_paths_need_two_pairs():
    with pytest.raises(ValueError, match="two pairs"):
        pr.MonteCarlo(2, noise="antithetic", seed=1)
