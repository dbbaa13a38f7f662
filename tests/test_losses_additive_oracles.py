"""Losses of a row against scikit-learn, the formulas of the papers, and what their minimum must mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from sklearn.metrics import mean_pinball_loss

from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, UserError
from qfml.losses import BCE, LOSSES, MAE, Additive, Focal, Pinball, WeightedBCE

SMOOTH = [WeightedBCE(class_weight=(0.4, 3.0)), Focal(gamma=2.0), Focal(gamma=0.5), Focal(gamma=0.0)]
KINKED = [MAE(), Pinball(level=0.05), Pinball(level=0.5), Pinball(level=0.9)]


@pytest.mark.parametrize("level", [0.01, 0.25, 0.5, 0.975])
def test_pinball_equals_scikit_learns(level):
    rng = np.random.default_rng(0)
    output, y, weight = rng.standard_normal((2, 3, 40)), None, rng.uniform(0, 2, (3, 40))
    output, y = output
    got = Pinball(level=level)(*map(torch.from_numpy, (output, y, weight)))
    for member in range(3):
        expected = mean_pinball_loss(y[member], output[member], alpha=level, sample_weight=weight[member])
        assert float(got[member]) == pytest.approx(expected, rel=1e-13)


@given(
    st.floats(0.02, 0.98),
    st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=1, max_size=30),
)
def test_the_minimum_of_pinball_is_the_quantile(level, labels):
    # piecewise linear with kinks at the labels: the best of these is the minimum
    y = torch.tensor(labels, dtype=torch.float64)
    candidates = y[:, None]
    losses = Pinball(level=level)(candidates.expand(-1, len(y)), y.expand(len(y), -1), torch.ones(len(y), len(y)))
    quantile = np.quantile(labels, level, method="inverted_cdf")
    at_quantile = Pinball(level=level)(torch.full_like(y, quantile)[None], y[None], torch.ones(1, len(y)))
    assert float(at_quantile) <= float(losses.min()) * (1 + 1e-12) + 1e-12


def test_the_median_minimises_the_absolute_error_which_is_twice_the_pinball_loss_of_the_middle():
    rng = np.random.default_rng(1)
    output, y, weight = (torch.from_numpy(part) for part in rng.uniform(0, 1, (3, 2, 31)))
    torch.testing.assert_close(MAE()(output, y, weight), 2 * Pinball(level=0.5)(output, y, weight), rtol=1e-14, atol=0)
    at = torch.stack([torch.full((31,), float(y[0].median())), y[0].mean().expand(31)])
    median, mean = MAE()(at, y[:1].expand(2, -1), torch.ones(2, 31))
    assert median < mean


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal_is_the_formula_of_the_paper(gamma):
    output = np.linspace(-6, 6, 49)
    for label in (0, 1):
        q = 1 / (1 + np.exp(-output))
        of_label = q if label else 1 - q  # p_t of the paper
        expected = -((1 - of_label) ** gamma) * np.log(of_label)
        y = torch.full((1, 49), float(label), dtype=torch.float64)
        got = Focal(gamma=gamma).rows(torch.from_numpy(output)[None], y)[0]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-11)


def test_focal_without_focus_and_equal_class_weights_are_cross_entropy():
    rng = np.random.default_rng(2)
    output, y = (torch.from_numpy(part) for part in rng.uniform(0, 1, (2, 3, 20)))
    plain = BCE().rows(4 * output, y)
    torch.testing.assert_close(Focal(gamma=0.0).rows(4 * output, y), plain, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(WeightedBCE(class_weight=(1.0, 1.0)).rows(4 * output, y), plain, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(WeightedBCE(class_weight=(3.0, 3.0)).rows(4 * output, y), 3 * plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", SMOOTH, ids=str)
@pytest.mark.parametrize("frequency", [0.003, 0.2, 0.5, 0.9, 0.999])
def test_at_the_minimum_the_prediction_is_the_frequency_of_label_1(loss, frequency):
    # one free output for all rows: `frequency` of these have label 1
    y = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([[1 - frequency, frequency]], dtype=torch.float64)

    def slope(at):
        output = torch.full((1, 2), at, dtype=torch.float64, requires_grad=True)
        return float(torch.autograd.grad(loss(output, y, weight).sum(), output)[0].sum())

    best = brentq(slope, -30, 30, xtol=1e-14, rtol=1e-14)
    minimum = minimize_scalar(lambda at: float(loss(torch.full_like(y, at), y, weight)), (-3, 3))
    assert best == pytest.approx(minimum.x, abs=1e-5)  # a minimum is known to the root of the precision
    predicted = loss.prediction(torch.tensor([best], dtype=torch.float64))
    assert float(predicted) == pytest.approx(frequency, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", SMOOTH, ids=str)
def test_extreme_logits_stay_finite(loss, dtype):
    logit = torch.tensor([[-1e30, -1e4, -100.0, -40.0, 0.0, 40.0, 100.0, 1e4, 1e30]], dtype=dtype)
    of_0, of_1 = loss.class_weight if isinstance(loss, WeightedBCE) else (1.0, 1.0)
    for label in (0.0, 1.0):
        output = logit.clone().requires_grad_(True)
        losses = loss.rows(output, torch.full_like(logit, label))
        (slope,) = torch.autograd.grad(losses.sum(), output)
        assert bool(torch.isfinite(losses).all())
        assert bool(torch.isfinite(slope).all())
        # far on the wrong side a loss is linear in the logit, far on the right side it is gone
        wrong = slice(None, 4) if label else slice(5, None)
        right = slice(5, None) if label else slice(None, 4)
        scale = of_1 if label else of_0
        torch.testing.assert_close(losses[:, wrong].detach(), scale * logit[:, wrong].abs(), rtol=1e-6, atol=0)
        torch.testing.assert_close(slope[:, wrong], scale * logit[:, wrong].sign(), rtol=1e-6, atol=0)
        assert bool((losses[:, right].abs() < 1e-15).all())
        assert bool((slope[:, right].abs() < 1e-15).all())
    probability = loss.prediction(logit)[0]
    assert bool(((probability >= 0) & (probability <= 1)).all())
    assert bool((probability.diff() >= 0).all())
    assert float(probability[0]) == 0
    assert float(probability[-1]) == 1


@pytest.mark.parametrize("loss", SMOOTH + KINKED, ids=str)
def test_gradients_by_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(3, 17, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 17, generator=generator, dtype=torch.float64)
    weight = torch.rand(3, 17, generator=generator, dtype=torch.float64)
    assert float((output - y).detach().abs().min()) > 1e-4  # away from the kinks
    assert torch.autograd.gradcheck(lambda x: loss(x, y, weight), (output,), eps=1e-6)


@pytest.mark.parametrize("loss", KINKED, ids=str)
def test_the_slope_at_a_kink_lies_between_its_sides(loss):
    output = torch.zeros(1, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(output, torch.zeros(1, 1), torch.ones(1, 1)).sum(), output)
    above, below = (float(loss.rows(torch.full((1, 1), at), torch.zeros(1, 1))) for at in (1.0, -1.0))
    assert -below <= float(slope) <= above


@pytest.mark.parametrize("loss", SMOOTH, ids=str)
def test_labels_outside_of_0_to_1_are_refused(loss):
    with pytest.raises(UserError, match=rf"`{loss.kind}` needs labels in \[0, 1\], got -1 to 1: use a label of task"):
        loss.check_labels(torch.tensor([-1.0, 1.0]))
    loss.check_labels(torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("loss", KINKED, ids=str)
def test_any_label_has_a_median_and_a_quantile(loss):
    y = torch.tensor([-1e9, 0.0, 1e9])
    loss.check_labels(y)
    assert torch.equal(loss.prediction(y), y)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 95.0, math.nan])
def test_a_level_is_a_probability(level):
    with pytest.raises(UserError, match=r"`level` must lie in \(0, 1\), 0.5 for the median, got"):
        Pinball(level=level)


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_gamma_is_not_negative(gamma):
    with pytest.raises(UserError, match="`gamma` must be a number >= 0, got"):
        Focal(gamma=gamma)


@pytest.mark.parametrize(
    "weights", [(0.0, 1.0), (1.0, -2.0), (1.0, math.inf), (math.nan, 1.0), (1.0,), (1.0, 2.0, 3.0)]
)
def test_class_weights_are_two_positive_numbers(weights):
    with pytest.raises(UserError, match="`class_weight` must be two positive numbers"):
        WeightedBCE(class_weight=weights)


@pytest.mark.parametrize("loss", SMOOTH + KINKED, ids=str)
def test_a_config_brings_back_the_same_loss(loss):
    assert isinstance(loss, Additive)
    assert build_kind(LOSSES, to_dict(loss)) == loss


def test_a_config_needs_what_has_no_default():
    for kind, setting in (("pinball", "level"), ("focal", "gamma"), ("weighted_bce", "class_weight")):
        with pytest.raises(ConfigError, match=f"needs `{setting}`"):
            build_kind(LOSSES, {"kind": kind})
    assert build_kind(LOSSES, {"kind": "weighted_bce", "class_weight": [1.0, 9.0]}) == WeightedBCE((1.0, 9.0))
