"""Standard errors by hand: the scatter of repeats, pairs as one draw, and the doubling of paths towards a target."""

import math

import pytest
import torch

import pricers as pr
from pricers.monte_carlo.statistics import controlled, student_factor, tile_moments

HESTON = pr.Heston(0.0175, 1.5768, 0.0398, 0.5751, -0.5711)
MARKET = pr.Market(100.0)


def moments(numbers, pairs=False):
    (found,) = tile_moments(torch.tensor(numbers, dtype=torch.float64), pairs)
    return found


def test_error_of_repeats_is_that_of_the_mean_of_their_means():
    repeats = [moments([[0.0, 2.0]]), moments([[1.0, 3.0]]), moments([[6.0, 6.0]])]  # means 1, 2 and 6
    value, error = controlled(repeats, None)
    assert value.item() == pytest.approx(3.0, rel=1e-14)
    assert error.item() == pytest.approx(student_factor(2) * math.sqrt((4.0 + 1.0 + 9.0) / 2.0 / 3.0), rel=1e-14)


def test_error_of_repeats_that_a_control_explains_is_what_it_leaves():
    x = torch.linspace(-1.0, 1.0, 500, dtype=torch.float64)
    shifts = (1.0, 2.0, 6.0, 3.0)
    repeats = [moments(torch.stack([shift + 1e3 * x, x]).tolist()) for shift in shifts]
    value, error = controlled(repeats, torch.zeros(1, dtype=torch.float64))
    assert value.item() == pytest.approx(3.0, rel=1e-9)
    assert error.item() == pytest.approx(student_factor(3) * math.sqrt((4.0 + 1.0 + 9.0 + 0.0) / 3.0 / 4.0), rel=1e-9)


def test_sobol_error_is_the_scatter_of_its_repeats():
    engine = pr.MonteCarlo(5 * 64, n_steps=2, noise="sobol", repeats=5, seed=1, controls=False, conditional=False)
    contract = pr.European(100.0, 1.0)
    sampler = engine.sampler(contract, HESTON, MARKET)
    means = torch.stack([sampler.values(repeat, 0, 64)[0].mean() for repeat in range(5)])
    found = engine.price(contract, HESTON, MARKET)
    assert found.value.item() == pytest.approx(means.mean().item(), rel=1e-12)
    assert found.std_error.item() == pytest.approx(student_factor(4) * math.sqrt(means.var().item() / 5.0), rel=1e-9)


def test_a_pair_is_one_draw():
    numbers = [[1.0, 2.0, 3.0, 7.0, 5.0, 0.0, 1.0, 1.0]]  # pairs: 3, 1, 2, 4
    found = moments(numbers, pairs=True)
    assert found.n == 4
    assert found.mean.item() == 2.5
    assert found.scatter.item() == 5.0
    assert moments(numbers).n == 8
    value, error = controlled([found], None)
    assert value.item() == 2.5
    assert error.item() == pytest.approx(math.sqrt(5.0 / 3.0 / 4.0), rel=1e-14)


def test_pairs_cancel_what_is_linear_in_the_noise():
    vol, n = 1e-4, 3000  # a last tile that is not whole
    antithetic, pseudo = (
        pr.MonteCarlo(n, seed=1, noise=noise, controls=False)
        .price(pr.European(50.0, 1.0), pr.BlackScholes(vol), MARKET)
        .std_error.item()
        for noise in ("antithetic", "pseudo")
    )
    assert pseudo == pytest.approx(100.0 * vol / math.sqrt(n), rel=0.1)
    # what is left of e^x beside its mirror image is x^2 / 2, whose deviation is vol^2 / sqrt(2)
    assert antithetic == pytest.approx(100.0 * vol**2 / math.sqrt(2.0) / math.sqrt(n / 2), rel=0.2)


def test_paths_double_until_the_target_is_met_and_no_longer(monkeypatch):
    spent = []
    run = pr.MonteCarlo._run

    def counted(self, instrument, model, market, n_paths):
        spent.append(n_paths)
        return run(self, instrument, model, market, n_paths)

    monkeypatch.setattr(pr.MonteCarlo, "_run", counted)
    contract = pr.European(100.0, 1.0)
    options = {"n_steps": 1, "seed": 3, "controls": False, "conditional": False, "repeats": 2}
    first = pr.MonteCarlo(2048, **options).price(contract, HESTON, MARKET).std_error.item()
    spent.clear()
    target = first / 2.4  # four times the paths give half the error, eight times 0.35 of it
    found = pr.MonteCarlo(2**20, target_std_error=target, **options).price(contract, HESTON, MARKET)
    assert spent == [2048, 4096, 8192, 16384]
    assert found.n_paths == 16384
    assert found.std_error.item() <= target
    assert not found.note
    spent.clear()
    assert pr.MonteCarlo(5000, target_std_error=target, **options).price(contract, HESTON, MARKET).note
    assert spent == [2048, 4096, 5000]
