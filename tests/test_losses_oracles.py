"""Losses against torch.nn.functional, a loop over periods and assets, and finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfml.errors import UserError
from qfml.losses import (
    BCE,
    LOSSES,
    MAE,
    MSE,
    CrossEntropy,
    EntropicRisk,
    ExpectedShortfall,
    Focal,
    Huber,
    Loss,
    MeanVariance,
    NegativeSharpe,
    Panel,
    Pinball,
    PnLLoss,
    Quantiles,
    Twin,
    WeightedBCE,
)

F = torch.nn.functional


def pinball_by_hand(output, y):
    return torch.where(y >= output, 0.3 * (y - output), 0.7 * (output - y))


def weighted_bce_by_torch(output, y):
    weight = torch.tensor(2.5, dtype=output.dtype)
    return F.binary_cross_entropy_with_logits(output, y, reduction="none", pos_weight=weight)


def focal_by_hand(output, y):
    q = torch.sigmoid(output)
    return -y * (1 - q) ** 1.7 * torch.log(q) - (1 - y) * q**1.7 * torch.log(1 - q)


ADDITIVE = {
    "mse": (MSE(), lambda output, y: F.mse_loss(output, y, reduction="none")),
    "huber": (Huber(delta=0.7), lambda output, y: F.huber_loss(output, y, reduction="none", delta=0.7)),
    "mae": (MAE(), lambda output, y: F.l1_loss(output, y, reduction="none")),
    "pinball": (Pinball(level=0.3), pinball_by_hand),
    "weighted_bce": (WeightedBCE(class_weight=(1.0, 2.5)), weighted_bce_by_torch),
    "focal": (Focal(gamma=1.7), focal_by_hand),
    "bce": (BCE(), lambda output, y: F.binary_cross_entropy_with_logits(output, y, reduction="none")),
}
EXAMPLES = {
    **{name: loss for name, (loss, _) in ADDITIVE.items()},
    "negative_sharpe": NegativeSharpe(cost_bps=10.0),
    "expected_shortfall": ExpectedShortfall(cost_bps=10.0, tail=0.23),
    "entropic_risk": EntropicRisk(cost_bps=10.0, risk_aversion=30.0),
    "mean_variance": MeanVariance(cost_bps=10.0, risk_aversion=5.0),
    "cross_entropy": CrossEntropy(n_classes=3, class_weight=(1.0, 2.0, 0.5)),
    "quantiles": Quantiles(levels=(0.1, 0.5, 0.9)),
    "twin": Twin(label_scale=2.0, gradient_scale=(0.5, 3.0)),
}


def rows(shape=(4, 50), dtype=torch.float32, seed=0):
    """Outputs, labels in [0, 1] and weights, some of which are zero."""
    generator = torch.Generator().manual_seed(seed)
    output = 3 * torch.randn(shape, generator=generator, dtype=dtype)
    y = torch.rand(shape, generator=generator, dtype=dtype).round(decimals=1)
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    return output, y, torch.where(weight < 0.3, 0, weight)


@pytest.mark.parametrize("name", ADDITIVE)
def test_additive_losses_equal_torchs_weighted_by_hand(name):
    loss, of_row = ADDITIVE[name]
    output, y, weight = rows()
    got = loss(output, y, weight)
    for member in range(4):
        kept = weight[member] > 0
        each = of_row(output[member][kept].double(), y[member][kept].double())
        expected = np.average(each.numpy(), weights=weight[member][kept].double().numpy())
        assert float(got[member]) == pytest.approx(expected, rel=1e-5)  # sums of 50 float32 values


@pytest.mark.parametrize("name", ADDITIVE)
def test_gradients_of_additive_losses_equal_torchs(name):
    loss, of_row = ADDITIVE[name]
    output, y, weight = (t.double() for t in rows())
    output.requires_grad_(True)
    (got,) = torch.autograd.grad(loss(output, y, weight).sum(), output)
    expected_loss = ((of_row(output, y) * weight).sum(1) / weight.sum(1)).sum()
    (expected,) = torch.autograd.grad(expected_loss, output)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
    assert bool((got[weight == 0] == 0).all())


@pytest.mark.parametrize("name", ADDITIVE)
def test_rows_of_weight_zero_and_the_scale_of_weights_change_nothing(name):
    loss, _ = ADDITIVE[name]
    output, y, weight = rows(dtype=torch.float64)
    filled = torch.where(weight == 0, 1e6, output)
    assert torch.equal(loss(filled, y, weight), loss(output, y, weight))
    torch.testing.assert_close(loss(output, y, 7 * weight), loss(output, y, weight), rtol=1e-14, atol=0)
    nothing = loss(output, y, torch.zeros_like(weight))
    assert torch.equal(nothing, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_are_finite_and_right(dtype):
    logit = torch.tensor([[-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30]], dtype=dtype)
    one = torch.ones_like(logit)
    for label in (0.0, 1.0):
        for column in range(logit.shape[1]):
            output = logit[:, column : column + 1].clone().requires_grad_(True)
            loss = BCE()(output, one[:, :1] * label, one[:, :1])
            (gradient,) = torch.autograd.grad(loss.sum(), output)
            wrong = float(logit[0, column]) * (-1 if label else 1)  # how far the logit is on the wrong side
            assert float(loss.detach()) == pytest.approx(max(wrong, 0) if wrong else math.log(2), rel=1e-6, abs=1e-6)
            expected = 0.5 - label if wrong == 0 else (wrong > 0) * (1 - 2 * label)
            assert float(gradient) == pytest.approx(expected, abs=1e-6)
    probability = BCE().prediction(logit)
    torch.testing.assert_close(probability, torch.sigmoid(logit), rtol=1e-6, atol=1e-7)
    assert bool(((probability >= 0) & (probability <= 1)).all())


@pytest.mark.parametrize("width", [5, 37, 50, 333])
@pytest.mark.parametrize("name", LOSSES)
def test_a_member_comes_out_the_same_wherever_it_lies_in_the_stack(name, width):
    # vectorised kernels may treat the last elements of a buffer differently from the others
    loss, members = EXAMPLES[name], 7
    output, y, weight = rows((members, width))
    if loss.n_outputs > 1:
        output, y = torch.stack([output, output.flip(1), -output], dim=-1), (3 * y).floor().clamp_max(2)
    if loss.differential:
        output, y = torch.stack([output, output.flip(1), -output], dim=-1), torch.stack([y, -y, y], dim=-1)
    y = y / 100 if isinstance(loss, PnLLoss) else y
    panel = Panel(torch.arange(width).expand(members, width), (torch.arange(width) == 0).expand(members, width))

    def value_and_gradient(own):
        x = output[own].clone().requires_grad_(True)
        value = loss(x, y[own], weight[own], Panel(panel.period[own], panel.first[own]))
        slopes = torch.autograd.grad(value.sum(), x)[0]
        return value, slopes, loss.prediction(output[own].clone())

    whole = value_and_gradient(slice(0, members))
    for size in (1, 3):
        for start in range(members - size + 1):
            own = slice(start, start + size)
            for part, expected in zip(value_and_gradient(own), whole):
                assert torch.equal(part, expected[own])


def sharpe_by_loop(output, y, weight, period, first, cost_bps):
    """Minus the Sharpe ratio of one member, period by period and asset by asset."""
    pnl, n_assets, before = {}, {}, 0.0
    for o, r, w, t, opening in zip(output, y, weight, period, first, strict=True):
        position = math.tanh(o)
        before = 0.0 if opening else before
        if w:
            pnl[t] = pnl.get(t, 0.0) + position * r - cost_bps / 1e4 * abs(position - before)
            n_assets[t] = n_assets.get(t, 0) + 1
        before = position
    of_period = np.array([total / max(n_assets.values()) for total in pnl.values()])
    return -of_period.mean() / math.sqrt(of_period.var(ddof=1) + 1e-12)


@st.composite
def ragged_panels(draw):
    """Rows of 1 to 4 assets, each with some of 3 to 8 periods, sorted by asset then time; some rows weigh nothing."""
    n_periods = draw(st.integers(3, 8))
    assets = [sorted(draw(st.sets(st.integers(0, n_periods - 1), min_size=1))) for _ in range(draw(st.integers(0, 3)))]
    assets.insert(draw(st.integers(0, len(assets))), list(range(n_periods)))  # one has them all
    period = np.concatenate(assets)
    first = np.concatenate([np.arange(len(own)) == 0 for own in assets])
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    weight = (rng.random(len(period)) < draw(st.sampled_from([0.7, 1.0]))).astype(float)
    complete = len(assets) - 1 if len(assets[-1]) == n_periods else [len(own) for own in assets].index(n_periods)
    start = sum(len(own) for own in assets[:complete])
    weight[start : start + 2] = 1  # at least two periods count
    return period, first, weight, rng


@given(ragged_panels(), st.sampled_from([0.0, 1.0, 50.0, 9_999.0]))
def test_negative_sharpe_equals_a_loop_over_periods_and_assets(panel, cost_bps):
    period, first, weight, rng = panel
    members = 3  # the panel is the same, outputs and returns are not
    output, y = rng.standard_normal((2, members, len(period)))
    y *= 0.02
    stacked = [torch.from_numpy(np.tile(part, (members, 1))) for part in (period, first, weight)]
    got = NegativeSharpe(cost_bps=cost_bps)(
        torch.from_numpy(output), torch.from_numpy(y), stacked[2], Panel(stacked[0], stacked[1])
    )
    expected = [sharpe_by_loop(output[m], y[m], weight, period, first, cost_bps) for m in range(members)]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_negative_sharpe_of_members_with_panels_of_their_own():
    rng = np.random.default_rng(0)
    period = np.array([[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 2, 3, 1, 2]])
    first = np.array([[1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 1, 0]], dtype=bool)
    output, y = rng.standard_normal((2, 2, 8))
    panel = Panel(torch.from_numpy(period), torch.from_numpy(first))
    got = NegativeSharpe(cost_bps=5.0)(torch.from_numpy(output), torch.from_numpy(y), torch.ones(2, 8).double(), panel)
    for m in range(2):
        expected = sharpe_by_loop(output[m], y[m], np.ones(8), period[m], first[m], 5.0)
        assert float(got[m]) == pytest.approx(expected, rel=1e-9)


def test_negative_sharpe_of_one_asset_in_closed_form():
    # positions +-p, returns chosen: P&L p*(0.01, 0.03, 0.02), one opening trade
    p = math.tanh(0.5)
    y = torch.tensor([[0.01, 0.03, 0.02]], dtype=torch.float64)
    panel = Panel(torch.arange(3)[None], torch.tensor([[True, False, False]]))
    output, one = torch.full((1, 3), 0.5, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    free = NegativeSharpe(cost_bps=0.0)(output, y, one, panel)
    assert float(free) == pytest.approx(-0.02 / 0.01, rel=1e-6)
    pnl = np.array([p * 0.01 - 0.001 * p, p * 0.03, p * 0.02])
    costly = NegativeSharpe(cost_bps=10.0)(output, y, one, panel)
    assert float(costly) == pytest.approx(-pnl.mean() / pnl.std(ddof=1), rel=1e-6)


def test_gradient_of_negative_sharpe_by_finite_differences():
    rng = np.random.default_rng(1)
    period = np.array([0, 1, 2, 3, 4, 0, 2, 3, 1, 2, 3, 4])
    first = np.isin(np.arange(12), [0, 5, 8])
    output, y = rng.standard_normal((2, 1, 12))
    panel = Panel(torch.from_numpy(period[None]), torch.from_numpy(first[None]))
    loss = NegativeSharpe(cost_bps=20.0)
    weight = torch.ones(1, 12, dtype=torch.float64)

    def value(x):
        return loss(x, torch.from_numpy(0.01 * y), weight, panel)

    x = torch.from_numpy(output).requires_grad_(True)
    (got,) = torch.autograd.grad(value(x).sum(), x)
    step = 1e-6
    for i in range(12):
        bump = torch.zeros_like(x)
        bump[0, i] = step
        difference = float((value(x + bump) - value(x - bump)).detach()) / (2 * step)
        assert float(got[0, i]) == pytest.approx(difference, rel=1e-6, abs=1e-8)  # central: error of order step^2


def test_a_flat_book_has_sharpe_zero_and_a_finite_gradient():
    output = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    panel = Panel(torch.arange(4)[None], torch.tensor([[True, False, False, False]]))
    y = torch.tensor([[0.01, -0.02, 0.03, 0.0]], dtype=torch.float64)
    loss = NegativeSharpe(cost_bps=0.0)(output, y, torch.ones_like(y), panel)
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss.sum(), output)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("name", LOSSES)
def test_every_registered_loss_keeps_the_contract(name):
    loss = EXAMPLES[name]
    assert isinstance(loss, Loss)
    assert type(loss) is LOSSES[name]
    assert loss.kind == name
    output = torch.linspace(-3, 3, 7)[None]
    y = torch.full((1, 7), 0.5 if loss.kind != "cross_entropy" else 1.0)
    if loss.n_outputs > 1 or loss.differential:
        output = torch.stack([torch.zeros(1, 7), output, torch.zeros(1, 7)], dim=-1)
    if loss.differential:
        y = y[..., None].expand(1, 7, 3)
    panel = Panel(torch.arange(7)[None], torch.arange(7)[None] == 0)
    assert loss(output, y, torch.ones(1, 7), panel).shape == (1,)
    prediction = loss.prediction(output)
    assert prediction.shape == output.shape
    if loss.kind == "cross_entropy":
        prediction = prediction[..., 1]
    if loss.kind in ("quantiles", "twin"):
        prediction = prediction.sum(-1)
    assert bool((prediction.diff() > 0).all()), "a prediction grows with the output"
    loss.check_labels(y)
    assert hash(loss) == hash(EXAMPLES[name])


def test_predictions():
    output = torch.linspace(-4, 4, 33, dtype=torch.float64)
    assert torch.equal(MSE().prediction(output), output)
    assert torch.equal(Huber(delta=1.0).prediction(output), output)
    torch.testing.assert_close(BCE().prediction(output), torch.sigmoid(output), rtol=1e-12, atol=0)
    torch.testing.assert_close(NegativeSharpe(cost_bps=0.0).prediction(output), torch.tanh(output), rtol=1e-12, atol=0)


def test_labels_are_checked():
    for labels in ([0.0, 1.0, 1.1], [-0.1, 0.0], [-1.0, 1.0]):
        with pytest.raises(UserError, match=r"`bce` needs labels in \[0, 1\], got .* to .*: use a label of task"):
            BCE().check_labels(torch.tensor(labels))
    with pytest.raises(UserError, match=r"`negative_sharpe` needs simple returns >= -1 as labels, got -1\.5"):
        NegativeSharpe(cost_bps=0.0).check_labels(torch.tensor([0.1, -1.5]))
    BCE().check_labels(torch.tensor([0.0, 0.3, 1.0]))
    NegativeSharpe(cost_bps=0.0).check_labels(torch.tensor([-1.0, 3.0]))
    MSE().check_labels(torch.tensor([-1e9, 1e9]))
    Huber(delta=1.0).check_labels(torch.tensor([-1e9, 1e9]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Huber(delta=0.0), "`delta` must be positive, in units of the label, got 0.0"),
        (lambda: Huber(delta=math.nan), "`delta` must be positive"),
        (lambda: NegativeSharpe(cost_bps=-1.0), r"`cost_bps` must lie in \[0, 10000\) basis points, got -1.0"),
        (lambda: NegativeSharpe(cost_bps=1e4), "`cost_bps` must lie in"),
        (lambda: NegativeSharpe(cost_bps=math.nan), "`cost_bps` must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_what_is_dangerous_to_default_has_no_default():
    with pytest.raises(TypeError, match="delta"):
        Huber()
    with pytest.raises(TypeError, match="cost_bps"):
        NegativeSharpe()


def test_negative_sharpe_says_what_it_needs():
    one = torch.ones(1, 1)
    with pytest.raises(UserError, match="needs the whole sample in time order: train with batch_size=None"):
        NegativeSharpe(cost_bps=0.0)(one, one, one)
    with pytest.raises(UserError, match="needs rows of at least 2 periods, got 1"):
        NegativeSharpe(cost_bps=0.0)(one, one, one, Panel(torch.zeros(1, 1, dtype=torch.int64), one > 0))
