"""Standard errors of randomised Sobol points: Student's law, slopes of the repeats, coverage over many seeds."""

import numpy as np
import pytest
import torch
from scipy import stats

import pricers as pr
from pricers.monte_carlo.statistics import Moments, controlled, pooled, student_factor

MARKET = pr.Market(100.0)
SEEDS = 200
TWO = 2.0 * stats.norm.sf(2.0)  # what lies beyond two standard errors, if they are what they say


def repeats_of(means, n=4096, seed=0):
    """Moments of repeats with these means, `repeats rows`; on the paths payoff and controls are independent."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for mean in torch.as_tensor(means):
        rows = torch.randn(mean.shape[-1], n, generator=generator, dtype=torch.float64)
        rows = rows - rows.mean(-1, keepdim=True)
        scatter, quartic = rows @ rows.T, rows.square().square().sum(-1)
        found.append(Moments(n, mean, scatter, quartic))
    return found


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 8, 15, 63, 500])
def test_the_factor_is_half_the_quantile_of_student(freedom):
    exact = 0.5 * stats.t.ppf(stats.norm.cdf(2.0), freedom)
    assert student_factor(freedom) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("n_controls", [0, 1, 3])
def test_repeats_are_a_linear_regression(n_controls):
    rng = np.random.default_rng(n_controls)
    controls = rng.normal(size=(16, n_controls)) + 0.3
    payoff = 2.0 + controls @ np.arange(10.0, n_controls + 10.0) + rng.normal(size=16)
    known = np.full(n_controls, 0.1)
    design = np.column_stack([np.ones(16), controls - known])
    solution, _, _, _ = np.linalg.lstsq(design, payoff, rcond=None)
    freedom = 16 - 1 - n_controls
    spread = np.sum((payoff - design @ solution) ** 2) / freedom * np.linalg.inv(design.T @ design)[0, 0]
    means = torch.as_tensor(np.column_stack([payoff, controls]))
    value, error = controlled(repeats_of(means), torch.as_tensor(known) if n_controls else None)
    assert value.item() == pytest.approx(solution[0], rel=1e-12)
    assert error.item() == pytest.approx(np.sqrt(spread) * student_factor(freedom), rel=1e-11)


def test_few_repeats_take_their_slopes_from_the_paths():
    means = torch.as_tensor(np.random.default_rng(1).normal(size=(9, 2)))
    value, error = controlled(repeats_of(means), torch.zeros(1, dtype=torch.float64))
    weight = torch.stack([m.scatter for m in repeats_of(means)]).sum(0)
    weight = weight + 4096 * (means - means.mean(0)).T @ (means - means.mean(0))
    adjusted = means[:, 0] - weight[0, 1] / weight[1, 1] * means[:, 1]
    assert value.item() == pytest.approx(adjusted.mean().item(), rel=1e-12)
    assert error.item() == pytest.approx(adjusted.std().item() / 3.0 * student_factor(8), rel=1e-12)


def test_a_slope_that_explains_little_is_not_taken_from_the_repeats():
    """It would cost a degree of freedom for nothing: the mean of the repeats stays what the paths make it."""
    means = torch.as_tensor(np.random.default_rng(3).normal(size=(16, 2)))
    value, error = controlled(repeats_of(means), torch.zeros(1, dtype=torch.float64))
    total = pooled(repeats_of(means)).scatter
    adjusted = means[:, 0] - total[0, 1] / total[1, 1] * means[:, 1]
    assert value.item() == pytest.approx(adjusted.mean().item(), rel=1e-12)
    assert error.item() == pytest.approx(adjusted.std().item() / 4.0 * student_factor(15), rel=1e-12)


def test_what_is_constant_or_takes_few_values_fits_no_line():
    rng = np.random.default_rng(2)
    payoff = torch.as_tensor(rng.normal(size=16))
    constant = 5.0 + 1e-15 * torch.as_tensor(rng.normal(size=16))
    value, _ = controlled(repeats_of(torch.stack([payoff, constant], -1)), torch.tensor([5.0 + 1e-14]).double())
    assert value.item() == pytest.approx(payoff.mean().item(), abs=1e-12)
    hits = torch.zeros(16, dtype=torch.float64)
    hits[3] = 1.0
    driver = torch.as_tensor(rng.normal(size=16))
    known = torch.zeros(1, dtype=torch.float64)
    rare, error = controlled(repeats_of(torch.stack([hits, driver], -1)), known)
    # by the slope of the paths, which is next to nothing here
    assert rare.item() == pytest.approx(hits.mean().item(), abs=0.02)
    assert error.item() == pytest.approx(hits.std().item() / 4.0 * student_factor(15), rel=0.2)


def deviations(contract, model, **options):
    """(value - truth) / error, and the error itself, for many seeds."""
    exact = pr.price(contract, model, MARKET).value
    found = [pr.MonteCarlo(noise="sobol", seed=seed, **options).price(contract, model, MARKET) for seed in range(SEEDS)]
    error = torch.stack([estimate.value - exact for estimate in found])
    return error / torch.stack([estimate.std_error for estimate in found]), error


HESTON = pr.Heston(0.04, 1.5, 0.06, 0.5, -0.7)
CASES = [
    pytest.param(pr.European(100.0, 1.0), pr.BlackScholes(1.0), {"n_paths": 4096}, id="heavy tail"),
    pytest.param(pr.European(200.0, 1.0), pr.BlackScholes(0.5), {"n_paths": 4096}, id="far out of the money"),
    pytest.param(
        pr.European(100.0, 1.0), pr.Merton(0.3, 0.4, -0.1, 0.5), {"n_paths": 4096}, id="jumps", marks=pytest.mark.slow
    ),
    pytest.param(
        pr.European(100.0, 1.0),
        pr.BlackScholes(1.0),
        {"n_paths": 16384, "n_steps": 16},
        id="heavy tail in steps",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        pr.ForwardStart(1.0, 0.5, 1.0),
        HESTON,
        {"n_paths": 4096, "scheme": "exact"},
        id="Heston",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("contract", "model", "options"), CASES)
def test_two_standard_errors_cover_what_they_promise(contract, model, options):
    """With the slopes of the paths and without Student's factor 11 to 13 % of heavy-tailed cases lay beyond."""
    score, _ = deviations(contract, model, **options)
    beyond = int((score.abs() > 2.0).sum())
    assert beyond <= stats.binom.ppf(0.999, SEEDS, TWO)
    assert (score.abs() > 1.0).sum() >= stats.binom.ppf(0.001, SEEDS, 0.15)  # not by errors that are far too wide


@pytest.mark.slow
def test_a_long_tail_without_control_is_as_bad_as_it_is_said_to_be():
    score, _ = deviations(pr.European(100.0, 1.0), pr.BlackScholes(1.0), n_paths=4096, controls=False)
    beyond = score.abs() > 2.0
    assert beyond.sum() <= stats.binom.ppf(0.999, SEEDS, 1 / 8)
    assert (score[beyond] < 0.0).double().mean() > 0.9  # repeats that missed the tail


@pytest.mark.slow
def test_slopes_of_the_repeats_take_the_tail_away():
    """Measured: two hundred times the accuracy, where the slopes of the paths gave none."""
    _, controlled_error = deviations(pr.European(100.0, 1.0), pr.BlackScholes(1.0), n_paths=4096)
    _, plain = deviations(pr.European(100.0, 1.0), pr.BlackScholes(1.0), n_paths=4096, controls=False)
    assert controlled_error.square().mean().sqrt() < 0.02 * plain.square().mean().sqrt()
