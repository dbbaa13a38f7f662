"""Labels of implied vols under rough Bergomi: published values, limits, scatter, and what rows of a law share."""

import math

import pytest
import torch

import pricers as pr
from qfml.errors import DataError
from qfml.surrogate.box import Range
from qfml.surrogate.problem import Problem
from qfml.surrogate.rough_bergomi_labels import smile_labels
from qfml.surrogate.simulated_labels import simulated_labels

BOX = {
    "xi": Range(0.01, 0.16),
    "eta": Range(0.5, 3.0),
    "hurst": Range(0.03, 0.5),
    "rho": Range(-0.95, -0.1),
    "expiry": Range("7D", 2.0),
    "log_moneyness": Range(-0.5, 0.3),
}
PROBLEM = Problem({"kind": "rough_bergomi"}, {"kind": "european", "option": "call"}, {"spot": 100.0, "rate": 0.03}, BOX)


def rows_of(*laws):
    """Rows of inputs: each law with two expiries of three strikes."""
    smiles = [(*law, expiry, k) for law in laws for expiry in (0.25, 0.5) for k in (-0.15, 0.0, 0.08)]
    return torch.tensor(smiles, dtype=torch.float64)


def test_published_smile():
    """McCrickerd and Pakkanen (2018), table 2; the right wing at 3,000 steps, 0.2 points below it."""
    wanted = torch.tensor([0.2961, 0.2061, 0.1553], dtype=torch.float64)
    model = pr.RoughBergomi(xi=0.235**2, eta=1.9, hurst=0.07, rho=-0.9)
    moneyness = torch.tensor([-0.1787, 0.0, 0.1041], dtype=torch.float64)
    vol, error = smile_labels(model, moneyness, torch.full_like(moneyness, 0.25), 2**15, 100, seed=1)
    assert error.max() < 0.0025
    assert ((vol - wanted).abs() < 3 * error + 5e-4).all()
    # without the extrapolation the wing would be 0.0055 too high
    assert vol[2] - wanted[2] < 0.004


def test_without_vol_of_variance_the_vol_is_the_root_of_the_variance():
    curve = pr.ForwardVarianceCurve([0.0, 0.5, 1.0], [0.04, 0.09, 0.05])
    moneyness = torch.tensor([-0.2, 0.0, 0.2, 0.1], dtype=torch.float64)
    expiry = torch.tensor([1.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    model = pr.RoughBergomi(curve, eta=1e-4, hurst=0.3, rho=-0.5)
    vol, error = smile_labels(model, moneyness, expiry, 2**12, 40, seed=1)
    wanted = torch.tensor([math.sqrt(0.0675)] * 3 + [math.sqrt(0.065)], dtype=torch.float64)
    assert error.max() < 1e-3
    assert ((vol - wanted).abs() < 4 * error).all()


def test_the_vol_is_the_engines_up_to_its_steps():
    """The mixed estimate of `pricers` on 400 steps has no extrapolation, and other noise."""
    model = pr.RoughBergomi(xi=0.05, eta=1.5, hurst=0.3, rho=-0.6)
    moneyness = torch.tensor([-0.2, 0.0, 0.15], dtype=torch.float64)
    price = pr.turbocharged_price(model, moneyness, [0.5], n_paths=2**12, n_steps=400, seed=5)
    calls = pr.implied_vol(price.value[0, 1:], 1.0, moneyness[1:].exp(), 0.5)
    puts = pr.implied_vol(price.value[0, :1], 1.0, moneyness[:1].exp(), 0.5, option="put")
    wanted = torch.cat([puts, calls])
    vol, error = smile_labels(model, moneyness, torch.full_like(moneyness, 0.5), 2**13, 50, seed=1)
    assert ((vol - wanted).abs() < 5 * error + 3e-4).all()


def test_rows_of_a_law_share_noise_and_laws_do_not():
    law = (0.05, 1.5, 0.1, -0.7)
    # 40 draws of the same smile: a hair in xi makes laws of their own
    rows = rows_of(*[(0.05 * (1.0 + 1e-9 * i), *law[1:]) for i in range(40)])
    labels = simulated_labels(PROBLEM, rows, 256, 20, seed=2, gradients=False)
    vols, errors = labels.value.reshape(40, 6), labels.std_error.reshape(40, 6)
    torch.testing.assert_close(errors.square().mean(0).sqrt(), vols.std(0), rtol=0.4, atol=0.0)
    centred = vols - vols.mean(0)
    assert torch.corrcoef(centred.T)[0, 1] > 0.5  # strikes of a law
    following = (centred[1:] * centred[:-1]).mean(0) / centred.square().mean(0)
    assert (following.abs() < 4 / math.sqrt(39)).all()
    again = simulated_labels(PROBLEM, rows[120:240], 256, 20, seed=2, gradients=False, first_row=120)
    torch.testing.assert_close(again.value, labels.value[120:240], rtol=1e-6, atol=1e-7)


def test_what_is_not_labelled_is_told():
    rows = rows_of((0.05, 1.5, 0.1, -0.7))
    with pytest.raises(DataError, match="without gradients"):
        simulated_labels(PROBLEM, rows, 64, 10, seed=1, gradients=True)
    with pytest.raises(DataError, match="must be even"):
        simulated_labels(PROBLEM, rows, 64, 11, seed=1, gradients=False)
    box = {"vol": Range(0.1, 0.4), "expiry": BOX["expiry"], "log_moneyness": BOX["log_moneyness"]}
    flat = Problem({"kind": "black_scholes"}, {"kind": "european"}, {"spot": 1.0}, box)
    with pytest.raises(DataError, match="not under BlackScholes"):
        simulated_labels(flat, rows[:, 3:6].abs() + 0.01, 64, 10, seed=1, gradients=False)
    assert simulated_labels(PROBLEM, rows[:0], 64, 10, seed=1, gradients=False).value.shape == (0,)
    far = torch.tensor([[0.01, 0.5, 0.1, -0.7, 0.02, 0.3]], dtype=torch.float64)  # 21 standard deviations out
    found = simulated_labels(PROBLEM, far, 64, 10, seed=1, gradients=False)
    assert bool(found.value.isnan().all())
    assert bool(found.std_error.isnan().all())
