"""Losses of the P&L against loops over periods and assets, other implementations, and the axioms of risk measures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from qfml import metrics
from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, UserError
from qfml.losses import LOSSES, EntropicRisk, ExpectedShortfall, MeanVariance, NegativeSharpe, Panel
from qfml.losses.sample import entropic_risk, expected_shortfall, mean_and_variance, pnl_after_costs

EXAMPLES = [
    NegativeSharpe(cost_bps=7.0),
    ExpectedShortfall(cost_bps=7.0, tail=0.3),
    ExpectedShortfall(cost_bps=7.0, tail=1.0),
    EntropicRisk(cost_bps=7.0, risk_aversion=40.0),
    MeanVariance(cost_bps=7.0, risk_aversion=12.0),
]


def pnl_by_loop(output, y, weight, period, first, cost_bps):
    """P&L of each period that has rows: one row, one trade at a time."""
    pnl, assets, before = {}, {}, 0.0
    for o, r, w, t, opening in zip(output, y, weight, period, first, strict=True):
        before = 0.0 if opening else before
        position = math.tanh(o)
        if w > 0:
            pnl[t] = pnl.get(t, 0.0) + w * (position * r - cost_bps / 1e4 * abs(position - before))
            assets[t] = assets.get(t, 0.0) + w
        before = position
    return np.array([pnl[t] / max(assets.values()) for t in sorted(pnl)])


def worst_share(pnl, tail):
    """Mean loss of the worst share: the minimum over the kinks of the formula of Rockafellar and Uryasev."""
    return min(z + np.maximum(-pnl - z, 0).mean() / tail for z in -pnl)


def value_by_numpy(loss, pnl):
    if isinstance(loss, ExpectedShortfall):
        return worst_share(pnl, loss.tail)
    if isinstance(loss, EntropicRisk):
        return logsumexp(-loss.risk_aversion * pnl, b=1 / len(pnl)) / loss.risk_aversion
    if isinstance(loss, MeanVariance):
        return -pnl.mean() + loss.risk_aversion / 2 * pnl.var(ddof=1)
    return -pnl.mean() / math.sqrt(pnl.var(ddof=1) + 1e-12)


def ragged_panel(rng, n_periods, n_assets):
    """Period and first row of assets that each miss some periods; the first asset has them all."""
    own = [np.arange(n_periods)]
    own += [np.flatnonzero(rng.random(n_periods) < 0.6) for _ in range(n_assets - 1)]
    return np.concatenate(own), np.concatenate([np.arange(len(each)) == 0 for each in own])


@pytest.mark.parametrize("loss", EXAMPLES, ids=str)
@pytest.mark.parametrize(("n_periods", "n_assets"), [(2, 1), (9, 1), (10, 3), (30, 5)])
def test_losses_equal_a_loop_over_periods_and_assets(loss, n_periods, n_assets):
    rng = np.random.default_rng(n_periods)
    members = 3
    period, first = ragged_panel(rng, n_periods, n_assets)
    output, y = rng.standard_normal((2, members, len(period)))
    y *= 0.02
    weight = rng.uniform(0.5, 2, len(period)) * (rng.random(len(period)) < 0.8)
    weight[:2] = 1  # at least two periods count
    stacked = [torch.from_numpy(np.tile(part, (members, 1))) for part in (period, first, weight)]
    got = loss(torch.from_numpy(output), torch.from_numpy(y), stacked[2], Panel(stacked[0], stacked[1]))
    for m in range(members):
        pnl = pnl_by_loop(output[m], y[m], weight, period, first, loss.cost_bps)
        assert float(got[m]) == pytest.approx(value_by_numpy(loss, pnl), rel=1e-10, abs=1e-13)


def test_turnover_is_paid_in_proportion():
    # one asset, positions p, p, -p: trades of p, 0 and 2 p
    p, cost_bps = math.tanh(0.7), 25.0
    output = torch.tensor([[0.7, 0.7, -0.7]], dtype=torch.float64)
    panel = Panel(torch.arange(3)[None], torch.tensor([[True, False, False]]))
    y = torch.zeros_like(output)
    pnl, used = pnl_after_costs(torch.tanh(output), y, torch.ones_like(y), panel, cost_bps)
    np.testing.assert_allclose(pnl[0].numpy(), [-0.0025 * p, 0, -0.0050 * p], rtol=1e-12, atol=1e-18)
    assert bool((used == 1).all())
    costs = np.array([0.0025 * p, 0, 0.0050 * p])
    loss = MeanVariance(cost_bps=cost_bps, risk_aversion=3.0)(output, y, torch.ones_like(y), panel)
    assert float(loss) == pytest.approx(costs.mean() + 1.5 * costs.var(ddof=1), rel=1e-12)


@pytest.mark.parametrize("loss", EXAMPLES, ids=str)
def test_rows_that_only_fill_up_change_nothing(loss):
    rng = np.random.default_rng(3)
    period, first = ragged_panel(rng, 8, 3)
    n, filled = len(period), 11
    output, y = rng.standard_normal((2, 1, n + filled))
    whole = np.concatenate([period, np.zeros(filled, dtype=period.dtype)])
    opening = np.concatenate([first, np.ones(filled, dtype=bool)])
    weight = np.concatenate([np.ones(n), np.zeros(filled)])

    def value_and_slope(stop):
        x = torch.from_numpy(output[:, :stop]).requires_grad_(True)
        panel = Panel(torch.from_numpy(whole[None, :stop]), torch.from_numpy(opening[None, :stop]))
        value = loss(x, torch.from_numpy(y[:, :stop]), torch.from_numpy(weight[None, :stop]), panel)
        return value, torch.autograd.grad(value.sum(), x)[0]

    value, slope = value_and_slope(n)
    with_fill, slope_with_fill = value_and_slope(n + filled)
    assert torch.equal(value, with_fill)
    assert torch.equal(slope, slope_with_fill[:, :n])
    assert bool((slope_with_fill[:, n:] == 0).all())


@pytest.mark.parametrize("loss", EXAMPLES, ids=str)
def test_gradients_by_finite_differences(loss):
    rng = np.random.default_rng(4)
    period, first = ragged_panel(rng, 7, 3)
    panel = Panel(*(torch.from_numpy(np.tile(part, (2, 1))) for part in (period, first)))
    output, y = (torch.from_numpy(part) for part in rng.standard_normal((2, 2, len(period))))
    weight = torch.ones_like(y)
    weight[:, 3] = 0
    assert torch.autograd.gradcheck(lambda x: loss(x, 0.02 * y, weight, panel), (output.requires_grad_(True),))


# --- the measures themselves ---------------------------------------------------------------------------------------


def one(measure, pnl, **settings):
    """A measure of one series whose periods all count."""
    pnl = torch.as_tensor(np.asarray(pnl, dtype=float))[None]
    return float(measure(pnl, torch.ones_like(pnl), **settings))


def mean_variance(pnl, used, risk_aversion):
    return MeanVariance(cost_bps=0.0, risk_aversion=risk_aversion).of_pnl(pnl, used)


MEASURES = {
    "expected shortfall": lambda pnl: one(expected_shortfall, pnl, tail=0.37),
    "entropic risk": lambda pnl: one(entropic_risk, pnl, risk_aversion=2.5),
    "mean-variance": lambda pnl: one(mean_variance, pnl, risk_aversion=2.5),
}
COHERENT, CONVEX = ["expected shortfall"], ["expected shortfall", "entropic risk"]
numbers = st.floats(-3, 3).map(lambda x: round(x, 6))
pairs = st.integers(2, 12).flatmap(lambda n: st.tuples(*[st.lists(numbers, min_size=n, max_size=n)] * 2)).map(np.array)
CLOSE = 1e-11  # rounding of sums of a dozen numbers of size 10


@pytest.mark.parametrize("name", MEASURES)
@given(pairs, numbers)
def test_cash_invariance(name, pair, cash):
    assert MEASURES[name](pair[0] + cash) == pytest.approx(MEASURES[name](pair[0]) - cash, abs=CLOSE)


@pytest.mark.parametrize("name", CONVEX)
@given(pairs)
def test_monotonicity(name, pair):
    more = pair[0] + np.abs(pair[1])
    assert MEASURES[name](more) <= MEASURES[name](pair[0]) + CLOSE


def test_mean_variance_is_not_monotone():
    assert MEASURES["mean-variance"]([0.0, 5.0]) > MEASURES["mean-variance"]([0.0, 0.0])


@pytest.mark.parametrize("name", MEASURES)
@given(pairs, st.floats(0, 1))
def test_convexity(name, pair, share):
    mixed = MEASURES[name](share * pair[0] + (1 - share) * pair[1])
    assert mixed <= share * MEASURES[name](pair[0]) + (1 - share) * MEASURES[name](pair[1]) + CLOSE


@pytest.mark.parametrize("name", COHERENT)
@given(pairs, st.floats(0.01, 5))
def test_positive_homogeneity_and_subadditivity(name, pair, scale):
    a, b = MEASURES[name](pair[0]), MEASURES[name](pair[1])
    assert MEASURES[name](scale * pair[0]) == pytest.approx(scale * a, abs=CLOSE)
    assert MEASURES[name](pair.sum(0)) <= a + b + CLOSE


@pytest.mark.parametrize("name", MEASURES)
@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_periods_does_not_matter(name, pair, random):
    shuffled = list(pair[0])
    random.shuffle(shuffled)
    assert MEASURES[name](shuffled) == pytest.approx(MEASURES[name](pair[0]), abs=CLOSE)


@given(pairs, st.floats(0.001, 1))
def test_expected_shortfall_equals_the_metric_and_its_variational_form(pair, tail):
    got = one(expected_shortfall, pair[0], tail=tail)
    assert got == pytest.approx(metrics.expected_shortfall(pair[0], tail=tail), abs=CLOSE)
    assert got == pytest.approx(worst_share(pair[0], tail), abs=1e-9)  # rounding is divided by the tail


@given(pairs, st.floats(0.01, 20))
def test_entropic_risk_lies_between_mean_and_worst_and_grows_with_risk_aversion(pair, aversion):
    low, high = (one(entropic_risk, pair[0], risk_aversion=a) for a in (aversion, 2 * aversion))
    assert -pair[0].mean() - CLOSE <= low <= high + CLOSE
    assert high <= -pair[0].min() + CLOSE


def test_periods_that_do_not_count_change_nothing():
    rng = np.random.default_rng(5)
    pnl, junk = torch.from_numpy(rng.standard_normal((2, 9))), torch.tensor([[-50.0], [50.0]], dtype=torch.float64)
    one_each = torch.ones_like(pnl)
    for measure, settings in ((expected_shortfall, {"tail": 0.4}), (entropic_risk, {"risk_aversion": 3.0})):
        alone = measure(pnl, one_each, **settings)
        with_junk = measure(torch.cat([junk, pnl], 1), torch.cat([0 * junk, one_each], 1), **settings)
        torch.testing.assert_close(with_junk, alone, rtol=1e-14, atol=0)
    for a, b in zip(
        mean_and_variance(pnl, one_each),
        mean_and_variance(torch.cat([pnl, junk], 1), torch.cat([one_each, 0 * junk], 1)),
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=0)


def test_entropic_risk_neither_overflows_nor_loses_digits_in_single_precision():
    rng = np.random.default_rng(6)
    pnl = (0.01 * rng.standard_normal((1, 500))).astype(np.float32)
    for aversion in (1e-3, 1.0, 1e3, 1e6):
        got = entropic_risk(torch.from_numpy(pnl), torch.ones(1, 500), risk_aversion=aversion)
        assert got.dtype == torch.float32
        expected = logsumexp(-aversion * pnl[0].astype(float), b=1 / 500) / aversion
        assert float(got) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tail", [0.05, 0.051, 0.5, 1.0])
def test_gradient_of_expected_shortfall_is_the_share_of_each_period_in_the_tail(tail):
    pnl = torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.0]] * 4).reshape(1, 20) + 1e-3 * torch.arange(20)
    pnl.requires_grad_(True)
    (slope,) = torch.autograd.grad(expected_shortfall(pnl, torch.ones(1, 20), tail).sum(), pnl)
    expected, left = np.zeros(20), 20 * tail
    for i in np.argsort(pnl.detach().numpy()[0]):
        expected[i] = -min(1.0, max(left, 0.0)) / (20 * tail)
        left -= 1
    np.testing.assert_allclose(slope[0].numpy(), expected, rtol=1e-5, atol=1e-6)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", EXAMPLES, ids=str)
def test_a_loss_of_the_pnl_says_what_it_needs(loss):
    single = torch.ones(1, 1)
    with pytest.raises(UserError, match=f"`{loss.kind}` needs the whole sample in time order: train with batch_size"):
        loss(single, single, single)
    with pytest.raises(UserError, match=rf"`{loss.kind}` needs simple returns >= -1 as labels, got -1\.5"):
        loss.check_labels(torch.tensor([0.1, -1.5]))
    panel = Panel(torch.zeros(1, 1, dtype=torch.int64), single > 0)
    if isinstance(loss, (NegativeSharpe, MeanVariance)):
        with pytest.raises(UserError, match=f"`{loss.kind}` needs rows of at least 2 periods, got 1"):
            loss(single, single, single, panel)
    else:
        expected = -math.tanh(1) + 7e-4 * math.tanh(1)  # of one period each measure is minus its P&L
        assert float(loss(single, single, single, panel)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("tail", [0.0, -0.1, 1.01, 95.0, math.nan])
def test_a_tail_is_a_probability(tail):
    with pytest.raises(UserError, match=r"`tail` must lie in \(0, 1\], 0.05 for the worst 5 % of periods, got"):
        ExpectedShortfall(cost_bps=0.0, tail=tail)


@pytest.mark.parametrize("cls", [EntropicRisk, MeanVariance])
@pytest.mark.parametrize("risk_aversion", [0.0, -1.0, math.inf, math.nan])
def test_risk_aversion_is_positive(cls, risk_aversion):
    with pytest.raises(UserError, match="`risk_aversion` must be positive and finite, per unit of P&L, got"):
        cls(cost_bps=0.0, risk_aversion=risk_aversion)


@pytest.mark.parametrize("loss", EXAMPLES, ids=str)
def test_costs_are_checked_and_never_defaulted(loss):
    settings = to_dict(loss)
    assert build_kind(LOSSES, settings) == loss
    with pytest.raises(ConfigError, match=r"`cost_bps` must lie in \[0, 10000\) basis points, got -1.0"):
        build_kind(LOSSES, {**settings, "cost_bps": -1.0})
    with pytest.raises(ConfigError, match="needs `cost_bps`"):
        build_kind(LOSSES, {name: value for name, value in settings.items() if name != "cost_bps"})
