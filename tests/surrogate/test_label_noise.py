"""Weights of simulated labels: what they are made of, and that they keep luck and heavy tails out of what is learnt."""

from dataclasses import replace

import pytest
import threadpoolctl
import torch

from qfml.engine import Cosine, Muon, Trainer
from qfml.networks import MLP
from qfml.surrogate.box import Range
from qfml.surrogate.fitting import fit_surrogate
from qfml.surrogate.labels import LabelTable
from qfml.surrogate.noise import smoothed_variance
from qfml.surrogate.problem import Problem
from qfml.surrogate.target import Target
from qfml.surrogate.training import SurrogateTraining, training_data

CALLS = Problem(
    model={"kind": "black_scholes"},
    instrument={"kind": "european", "expiry": 1.0, "option": "call"},
    market={"spot": 1.0},
    box={"vol": Range(0.1, 0.4), "strike": Range(0.7, 1.3)},
    target="price",
)
TRAINING = SurrogateTraining(
    trainer=Trainer(max_epochs=40, batch_size=256, optimizer=Muon(lr=1e-2, weight_decay=0.0), schedule=Cosine()),
    network=MLP(hidden=(24, 24), activation="silu"),
    n_seeds=1,
    validation_share=0.1,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def points(n, seed=1):
    place = torch.rand(n, 2, generator=generator(seed), dtype=torch.float64)
    return torch.stack([0.1 + 0.3 * place[:, 0], 0.7 + 0.6 * place[:, 1]], 1)


def table_of(rows, value, std_error, gradient=None, gradient_std_error=None):
    law = torch.arange(len(rows))
    return LabelTable(
        CALLS.inputs, rows, value, std_error, gradient, gradient_std_error, law, CALLS, "hash", left_out={}
    )


def test_the_variance_of_a_place_is_that_of_its_neighbours_and_not_the_own():
    place = 2 * torch.rand(5000, 3, generator=generator(1), dtype=torch.float64) - 1
    truth = torch.exp(2 * place[:, 0] - place[:, 1] * place[:, 2])
    own = truth * torch.randn(16, 5000, generator=generator(2), dtype=torch.float64).square().mean(0)
    found = smoothed_variance(place, own)
    assert float((found / truth).log().std()) < 0.5 * float((own / truth).log().std())
    lucky = own.clone()
    lucky[7] = 0.0  # no path of this label reached its payoff
    assert 0.8 < float(smoothed_variance(place, lucky)[7] / found[7]) < 1.05


def test_the_variance_does_not_depend_on_the_number_of_threads():
    place = torch.rand(20_000, 4, generator=generator(1), dtype=torch.float64)
    own = torch.rand(20_000, generator=generator(2), dtype=torch.float64)
    found = []
    for n in (1, 2):
        with threadpoolctl.threadpool_limits(n):
            found.append(smoothed_variance(place, own))
    assert torch.equal(*found)


def test_few_labels_share_their_mean_variance_and_none_is_zero():
    place = torch.rand(10, 2, dtype=torch.float64, generator=generator(1))
    assert torch.equal(smoothed_variance(place, torch.full((10,), 4.0).double()), torch.full((10,), 4.0).double())
    assert bool((smoothed_variance(place, torch.zeros(10).double()) > 0).all())
    assert bool((smoothed_variance(place.repeat(20, 1), torch.zeros(200).double()) > 0).all())


@pytest.mark.slow
def test_lucky_labels_do_not_pull_the_surrogate():
    """Labels whose own standard error goes with their value: one path in three of 8 pays, the others nothing."""
    rows = points(8000)
    exact = CALLS.exact(rows)
    pays = (torch.rand(8, 8000, generator=generator(3), dtype=torch.float64) < 1 / 3).double()
    paths = 3 * pays * exact
    table = table_of(rows, paths.mean(0), paths.std(0) / 8**0.5)
    fresh = points(500, seed=9)
    error = fit_surrogate(CALLS, table, TRAINING).unchecked_values(fresh) - CALLS.exact(fresh)
    share = float(error.mean() / CALLS.exact(fresh).mean())
    by_own = 1 / (table.std_error.square() + table.std_error.square().mean())
    pulled = float(((table.value - exact) * by_own).sum() / (exact * by_own).sum())
    assert pulled < -0.05  # what weights by the labels' own errors would learn
    assert abs(share) < 0.03


def test_derivatives_count_by_their_noise_in_the_features():
    rows = points(4000)
    leaf = rows.clone().requires_grad_()
    (slopes,) = torch.autograd.grad(CALLS.exact(leaf).sum(), leaf)
    noise = torch.tensor([0.5, 0.02]).double() * (1 + rows[:, :1])
    table = table_of(rows, CALLS.exact(rows), torch.full((4000,), 0.01).double(), slopes, noise)
    ds = training_data(CALLS, table, Target(CALLS, "linear", 0.2), TRAINING)
    assert ds.label_gradient is None
    ds = training_data(CALLS, table, Target(CALLS, "linear", 0.2), replace(TRAINING, twin=1.0))
    learnt = (noise * torch.tensor([0.15, 0.3]).double() / 0.2).square()  # half a range moves a feature by 1
    expected = (learnt + learnt.median(0).values).reciprocal() * (2 * (0.01 / 0.2) ** 2)
    ratio = ds.label_gradient_weight.double() / expected
    assert float(ratio.min()) > 0.93
    assert float(ratio.max()) < 1.07


def test_a_derivative_that_is_known_to_be_noisy_counts_little():
    """Its own standard error names it, whatever is typical of its place; no noise at all is finite still."""
    rows = points(2000)
    slopes = torch.ones_like(rows)
    noise = torch.tensor([0.1, 0.1]).double().expand(2000, 2).clone()
    noise[5, 0] = 100.0
    noise[:, 1] = 0.0
    std_error = torch.full((2000,), 0.01).double()
    target = Target(CALLS, "linear", 1.0)
    table = table_of(rows, CALLS.exact(rows), std_error, slopes, noise)
    share = training_data(CALLS, table, target, replace(TRAINING, twin=1.0)).label_gradient_weight.double()
    typical = float(share[:, 0].median())
    assert float(share[5, 0]) == pytest.approx(typical * 2 * (3.0 * 0.1 / 100.0) ** 2, rel=0.1)
    assert bool(share.isfinite().all())
    exact = table_of(rows, CALLS.exact(rows), 0 * std_error, slopes, 0 * noise)
    assert training_data(CALLS, exact, target, replace(TRAINING, twin=1.0)).label_gradient_weight is None


@pytest.mark.slow
def test_derivatives_with_heavy_tails_still_help():
    """One derivative in fifteen is a hundred times noisier: unweighted they spoil what values tell.

    On average over five draws of the noise, by networks that are trained to the end: fewer steps leave a bias that no
    weight takes away.
    """
    n = 1500
    rows, fresh = points(n), points(500, seed=9)
    leaf = rows.clone().requires_grad_()
    exact = CALLS.exact(leaf)
    (slopes,) = torch.autograd.grad(exact.sum(), leaf)
    error = torch.tensor([0.03, 0.015]).double().expand(n, 2).clone()
    error[(rows[:, 0] < 0.12)] *= 100.0
    std_error = torch.full((n,), 0.02).double()
    trainer = replace(TRAINING.trainer, max_epochs=600)

    def rmse(table, twin):
        settings = replace(TRAINING, twin=twin, trainer=trainer, validation_share=0.3)
        found = fit_surrogate(CALLS, table, settings).unchecked_values(fresh)
        return float((found - CALLS.exact(fresh)).square().mean().sqrt())

    sums = torch.zeros(3)
    for seed in (4, 14, 24, 34, 44):
        value = exact.detach() + 0.02 * torch.randn(n, generator=generator(seed), dtype=torch.float64)
        noisy = slopes + error * torch.randn(n, 2, generator=generator(seed + 1), dtype=torch.float64)
        values_alone = rmse(table_of(rows, value, std_error), None)
        weighted = rmse(table_of(rows, value, std_error, noisy, error), 1.0)
        unweighted = rmse(table_of(rows, value, std_error, noisy), 1.0)
        sums += torch.tensor([values_alone, weighted, unweighted])
    values_alone, weighted, unweighted = sums.tolist()
    assert weighted < 0.6 * values_alone
    assert weighted < 0.6 * unweighted
