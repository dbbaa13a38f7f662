"""Multilevel: levels are independent, all of them are in the error, and the remaining bias is a geometric series."""

import math

import pytest
import torch

import pricers as pr
from pricers.monte_carlo import multilevel
from pricers.monte_carlo.multilevel import Level, _halved, _remaining_bias
from pricers.monte_carlo.statistics import tile_moments
from pricers.noise import TILE

HESTON = pr.Heston(v0=0.04, kappa=4.0, theta=0.25, sigma=1.0, rho=-0.5)
MARKET = pr.Market(100.0, rate=0.05)
CALL = pr.European(100.0, 1.0)


def sampler():
    return pr.MultilevelMonteCarlo(accuracy=1.0, seed=1)._engine().sampler(CALL, HESTON, MARKET)


ANY = sampler()  # of a level of which only the moments matter


def test_levels_share_no_noise():
    engine = pr.MultilevelMonteCarlo(accuracy=1.0, seed=1)
    same = sampler()
    first, second, again = (engine._corrections(Level(k, same, None), 0, TILE)[0] for k in (0, 1, 0))
    assert torch.equal(first, again)
    # of independent samples: normal with deviation 1 / sqrt(1024)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 5.0 / TILE**0.5


def test_corrections_beyond_the_first_level_share_no_noise():
    engine = pr.MultilevelMonteCarlo(accuracy=1.0, seed=1, conditional=False)
    coarse = engine._engine().sampler(CALL, HESTON, MARKET)
    fine = _halved(coarse)
    one, other = (engine._corrections(Level(k, fine, coarse), 0, TILE)[0] for k in (1, 2))
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 5.0 / TILE**0.5


def test_value_and_error_add_up_all_levels(monkeypatch):
    seen = []

    def kept(levels):
        seen.append(list(levels))
        return _remaining_bias(levels)

    monkeypatch.setattr(multilevel, "_remaining_bias", kept)
    found = pr.MultilevelMonteCarlo(accuracy=0.5, seed=4, scheme="euler").price(CALL, HESTON, MARKET)
    moments = [level.moments for level in seen[-1]]
    assert len(moments) >= 3
    variances = [m.scatter[0, 0].item() / (m.n - 1) / m.n for m in moments]
    assert found.std_error.item() == pytest.approx(math.sqrt(sum(variances)), rel=1e-12)
    assert found.std_error.item() > 1.0001 * math.sqrt(variances[0])
    assert found.value.item() == pytest.approx(sum(m.mean[0].item() for m in moments), rel=1e-12)
    assert found.n_paths == sum(m.n for m in moments)


def level(mean, spread=0.0, n=100):
    """A level of `n` corrections, half of them `spread` above and half below the mean."""
    shift = torch.tensor([spread, -spread], dtype=torch.float64).repeat(n // 2)
    (moments,) = tile_moments((mean + shift)[None], pairs=False)
    return Level(0, ANY, None, moments)


@pytest.mark.parametrize("ratio", [2.0**0.5, 2.0, 3.0, 4.0])
def test_remaining_bias_is_the_rest_of_a_geometric_series(ratio):
    corrections = [0.8 / ratio**k for k in range(60)]
    found = _remaining_bias([level(c) for c in corrections[:5]])
    assert found.item() == pytest.approx(sum(corrections[5:]), rel=1e-8)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("before", "last", "expected"),
    [
        (0.2, 0.2, 0.2 / (2.0**0.5 - 1.0)),  # no decay: an order of 1/2 is assumed
        (0.2, 0.4, 0.4 / (2.0**0.5 - 1.0)),
        (8.0, 0.5, 0.5 / 3.0),  # no order above 2, and no more than the last correction where that is certain
        (0.6, 0.2, 0.2 / 2.0),
    ],
)
def test_remaining_bias_by_hand(sign, before, last, expected):
    found = _remaining_bias([level(5.0), level(before), level(sign * last)])
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_correction_lost_in_noise_counts_with_two_standard_errors():
    error = (100 / 99) ** 0.5 / 10.0  # of 100 numbers that are 1 above or below their mean
    found = _remaining_bias([level(5.0), level(4.0), level(0.01, spread=1.0)])
    assert found.item() == pytest.approx((0.01 + 2.0 * error) / 3.0, rel=1e-9)


def test_two_levels_do_not_tell_the_bias():
    assert _remaining_bias([level(1.0), level(0.1)]).item() == math.inf
