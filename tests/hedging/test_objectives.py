"""Risk measures of P&L: published values, the axioms that each claims, duality, influence, gradients, prices."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from metrics.risk_axioms import (
    assert_cash_invariant,
    assert_convex,
    assert_monotone,
    assert_positively_homogeneous,
)
from references import (
    GAUSSIAN_EXPECTED_SHORTFALL,
    SAMPLE_ENTROPIC_RISK,
    SAMPLE_EXPECTED_SHORTFALL,
    SAMPLE_QUADRATIC_SHORTFALL,
)
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp, ndtri

from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging.objective_base import CertaintyEquivalent
from qfml.hedging.objectives import (
    OBJECTIVES,
    Entropic,
    ExpectedShortfall,
    ExponentialUtility,
    Isoelastic,
    MeanVariance,
    OptimizedCertaintyEquivalent,
    Quadratic,
    QuadraticShortfall,
    Spectral,
)

EXAMPLES = [
    Entropic(0.7),
    ExponentialUtility(0.7),
    ExpectedShortfall(0.3),
    ExpectedShortfall(1.0),
    Spectral((0.1, 0.6, 1.0), (0.2, 0.5, 0.3)),
    MeanVariance(0.7),
    Quadratic(),
    QuadraticShortfall(2.0),
    OptimizedCertaintyEquivalent("quadratic", 0.7),
    OptimizedCertaintyEquivalent("cubic", 0.7),
    OptimizedCertaintyEquivalent("exponential", 0.7),
    Isoelastic(30.0, 3.0),
    Isoelastic(30.0, 1.0),
    Isoelastic(30.0, 0.4),
]
WITH_LEVEL = [each for each in EXAMPLES if isinstance(each, CertaintyEquivalent)]
N = 17  # with the tails above, N times a tail is fractional
VALUES = arrays(np.float64, N, elements=st.floats(-10, 10, width=32))
ROUNDING = 1e-9


def stack_of(*samples):
    return torch.from_numpy(np.stack(samples))


def sample(n_paths=203, n_members=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_t(6, (n_members, n_paths)))


def of(objective):
    """The risk of one sample (n,) as a function."""
    return lambda pnl: float(objective.risk(torch.from_numpy(pnl)[None])[0])


def claiming(axiom):
    return [each for each in EXAMPLES if axiom in each.axioms]


def test_published_values():
    for published, objective in (
        (SAMPLE_ENTROPIC_RISK, Entropic(SAMPLE_ENTROPIC_RISK["risk_aversion"])),
        (SAMPLE_EXPECTED_SHORTFALL, ExpectedShortfall(SAMPLE_EXPECTED_SHORTFALL["tail"])),
        (SAMPLE_QUADRATIC_SHORTFALL, QuadraticShortfall(SAMPLE_QUADRATIC_SHORTFALL["scale"])),
    ):
        assert of(objective)(np.array(published["pnl"])) == pytest.approx(published["value"], abs=5e-5)


@pytest.mark.parametrize(("tail", "value"), GAUSSIAN_EXPECTED_SHORTFALL.items())
def test_shortfall_of_the_normal_law_in_bins_is_published(tail, value):
    ends = ndtri(np.linspace(0, 1, 1001))
    density = np.exp(-0.5 * ends**2) / math.sqrt(2 * math.pi)
    means_of_bins = -1000 * np.diff(density)
    assert of(ExpectedShortfall(tail))(means_of_bins) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("objective", claiming("monotone"), ids=str)
@given(pnl=VALUES, gain=VALUES)
@settings(max_examples=8)
def test_monotone(objective, pnl, gain):
    assert_monotone(of(objective), pnl, gain, ROUNDING)


@pytest.mark.parametrize("objective", claiming("convex"), ids=str)
@given(a=VALUES, b=VALUES, weight=st.floats(0, 1))
@settings(max_examples=8)
def test_convex(objective, a, b, weight):
    assert_convex(of(objective), a, b, weight, 100 * ROUNDING)


@pytest.mark.parametrize("objective", claiming("cash_invariant"), ids=str)
@given(pnl=VALUES, cash=st.floats(-10, 10))
@settings(max_examples=8)
def test_cash_invariant(objective, pnl, cash):
    assert_cash_invariant(of(objective), pnl, cash, 10 * ROUNDING)


@pytest.mark.parametrize("objective", claiming("homogeneous"), ids=str)
@given(pnl=VALUES, scale=st.floats(0.01, 10))
@settings(max_examples=8)
def test_positively_homogeneous(objective, pnl, scale):
    assert_positively_homogeneous(of(objective), pnl, scale, 10 * ROUNDING)


def test_no_measure_claims_less_than_it_fulfils():
    """The axioms that are not claimed fail on an example: the asserts can tell."""
    spread, even = np.array([100.0, 0.0]), np.array([0.0, 0.0])
    with pytest.raises(AssertionError):
        assert_monotone(of(MeanVariance(0.7)), even, spread, ROUNDING)
    with pytest.raises(AssertionError):
        assert_cash_invariant(of(Isoelastic(30.0, 3.0)), np.array([-10.0, 10.0]), 5.0, ROUNDING)
    for objective in (Entropic(0.7), OptimizedCertaintyEquivalent("quadratic", 0.7)):
        with pytest.raises(AssertionError):
            assert_positively_homogeneous(of(objective), np.array([-1.0, 1.0]), 2.0, ROUNDING)


def by_definition(objective, pnl):
    """The risk of a sample by scalar minimisation of its definition, or in closed form, in numpy."""
    if isinstance(objective, Entropic):
        return logsumexp(-objective.risk_aversion * pnl, b=1 / len(pnl)) / objective.risk_aversion
    if isinstance(objective, ExpectedShortfall):
        return min(z + np.maximum(-pnl - z, 0).mean() / objective.tail for z in -pnl)
    if isinstance(objective, Spectral):
        each = zip(objective.weights, objective.tails, strict=True)
        return sum(weight * by_definition(ExpectedShortfall(tail), pnl) for weight, tail in each)
    if isinstance(objective, MeanVariance):
        return -pnl.mean() + 0.5 * objective.risk_aversion * pnl.var()
    if isinstance(objective, Quadratic):
        return pnl.var()
    if isinstance(objective, Isoelastic):
        wealth, power = objective.wealth + pnl, 1 - objective.risk_aversion
        mean = np.exp(np.log(wealth).mean()) if power == 0 else (wealth**power).mean() ** (1 / power)
        return objective.wealth - mean
    if isinstance(objective, QuadraticShortfall):

        def at(w):
            return w + objective.scale * (np.maximum(-pnl - w, 0) ** 2).mean()
    else:
        strength = objective.risk_aversion
        loss = {
            "quadratic": lambda y: (np.maximum(1 + strength * y, 0) ** 2 - 1) / (2 * strength),
            "cubic": lambda y: (np.maximum(1 + strength * y, 0) ** 3 - 1) / (3 * strength),
            "exponential": lambda y: np.expm1(strength * y) / strength,
        }[objective.loss_name]

        def at(w):
            return w + loss(-pnl - w).mean()

    ends = -pnl.max() - 10, -pnl.min()
    return minimize_scalar(at, bounds=ends, method="bounded", options={"xatol": 1e-12}).fun


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_risk_is_its_definition(objective):
    pnl = sample()
    expected = [by_definition(objective, row.numpy()) for row in pnl]
    np.testing.assert_allclose(objective.risk(pnl).numpy(), expected, atol=3e-8)
    assert objective.risk(pnl.float()).dtype == torch.float64


@pytest.mark.parametrize("objective", WITH_LEVEL, ids=str)
def test_risk_is_the_least_mean_of_rows_over_the_level(objective):
    pnl = sample()
    risk, level = objective.risk(pnl), objective.best_level(pnl)
    torch.testing.assert_close(objective.rows(pnl, level).mean(1), risk, atol=1e-12, rtol=1e-12)
    for move in (-0.3, -1e-3, 1e-3, 0.3):
        assert bool((objective.rows(pnl, level + move).mean(1) >= risk - 1e-14).all())


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_influence_agrees_with_the_jackknife(objective):
    pnl = sample(n_paths=400, n_members=1)
    n = pnl.shape[1]
    without = torch.stack([pnl[0][torch.arange(n) != path] for path in range(n)])
    jackknife = (n - 1) * (objective.risk(pnl) - objective.risk(without))
    influence = objective.influence(pnl)[0]
    assert float(influence.mean()) == pytest.approx(0, abs=1e-12)
    assert float(objective.std_error(pnl)) == pytest.approx(float(influence.std()) / math.sqrt(n))
    assert float(influence.std()) == pytest.approx(float(jackknife.std()), rel=0.08)
    assert float(torch.corrcoef(torch.stack([influence, jackknife]))[0, 1]) > 0.98


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_gradients_of_the_value_against_differences(objective):
    pnl = sample(n_paths=9, n_members=2, seed=4).requires_grad_()
    (gradient,) = torch.autograd.grad(objective.value(pnl, objective.dials(pnl)).sum(), pnl)
    step, flat = 1e-5, pnl.detach()
    for member in range(2):
        for path in range(9):
            move = torch.zeros_like(flat)
            move[member, path] = step
            slope = (objective.risk(flat + move) - objective.risk(flat - move)).sum() / (2 * step)
            assert float(gradient[member, path]) == pytest.approx(float(slope), abs=3e-7)


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_a_sure_loss_has_its_own_risk_and_a_gradient(objective):
    pnl = torch.full((1, 8), -2.0, dtype=torch.float64, requires_grad=True)
    value = objective.value(pnl, objective.dials(pnl))
    (gradient,) = torch.autograd.grad(value.sum(), pnl)
    nothing = {Quadratic: -2.0, QuadraticShortfall: -1 / (4 * 2.0)}.get(
        type(objective), 0.0
    )  # the variance has no cash
    assert float(value.detach()) == pytest.approx(2.0 + nothing, abs=1e-12)
    assert float(gradient.sum()) == pytest.approx(0.0 if isinstance(objective, Quadratic) else -1.0, abs=1e-12)


@pytest.mark.parametrize("objective", [each for each in EXAMPLES if each.dial is not None], ids=str)
def test_a_setting_of_each_member_is_that_of_the_member_alone(objective):
    pnl = sample()
    own = getattr(objective, objective.dial)
    dials = [own, 0.5 * own, own]
    risk, influence = (
        objective.risk(pnl, torch.tensor(dials, dtype=torch.float64)),
        objective.influence(pnl, dials),
    )
    for m, dial in enumerate(dials):
        alone = build_kind(OBJECTIVES, to_dict(objective) | {objective.dial: dial})
        torch.testing.assert_close(risk[m : m + 1], alone.risk(pnl[m : m + 1]), atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(influence[m : m + 1], alone.influence(pnl[m : m + 1]), atol=1e-12, rtol=1e-12)


def test_the_same_risk_by_two_names():
    pnl = sample()
    for a, b in (
        (Entropic(0.7), OptimizedCertaintyEquivalent("exponential", 0.7)),
        (Entropic(0.7), ExponentialUtility(0.7)),
        (ExpectedShortfall(0.25), Spectral((0.25,), (1.0,))),
        (OptimizedCertaintyEquivalent("quadratic", 0.01), MeanVariance(0.01)),  # all slopes positive: the same
    ):
        torch.testing.assert_close(a.risk(pnl), b.risk(pnl), atol=1e-10, rtol=1e-10)


def test_large_losses_in_single_precision():
    pnl = torch.full((1, 1000), 5.0)
    pnl[0, 3] = -1e4
    assert float(Entropic(1.0).risk(pnl)) == pytest.approx(1e4 - math.log(1000), abs=1e-6)
    assert float(Entropic(100.0).risk(pnl)) == pytest.approx(1e4 - math.log(1000) / 100, abs=1e-6)
    for objective in EXAMPLES:
        if not isinstance(objective, Isoelastic):
            leaf = pnl.clone().requires_grad_()
            value = objective.value(leaf, objective.dials(leaf))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            assert bool(value.isfinite().all())
            assert bool(gradient.isfinite().all()), objective
            assert bool(objective.influence(pnl).isfinite().all())


def test_prices():
    pnl, before = sample(), 0.1 * sample(seed=9)
    for objective in claiming("cash_invariant"):
        price = objective.price(pnl, before)
        torch.testing.assert_close(price.value, objective.risk(pnl) - objective.risk(before))
        assert float(objective.price(torch.zeros(1, 5)).value) == 0
        torch.testing.assert_close(objective.price(pnl).std_error, objective.std_error(pnl))
        assert price.n_paths == 203
        torch.testing.assert_close(objective.price(pnl + 1.0).value, objective.price(pnl).value - 1.0)
    torch.testing.assert_close(Quadratic().price(pnl).value, -pnl.mean(1))


@pytest.mark.parametrize("risk_aversion", [0.4, 1.0, 3.0])
def test_isoelastic_price_leaves_the_trader_indifferent(risk_aversion):
    pnl, objective = sample(n_paths=400, n_members=1), Isoelastic(9.0, risk_aversion)
    price = objective.price(pnl)

    def of_sample(row):
        return brentq(lambda premium: by_definition(objective, row + premium), -5, 5, xtol=1e-12)

    row = pnl[0].numpy()
    assert float(price.value) == pytest.approx(of_sample(row), abs=1e-9)
    jackknife = np.array([of_sample(np.delete(row, path)) for path in range(400)])
    spread = jackknife.std(ddof=1) * 399 / math.sqrt(400)
    assert float(price.std_error) == pytest.approx(spread, rel=0.05)


def test_isoelastic_premium_pays_for_losses_above_the_wealth():
    pnl = sample(n_paths=400, n_members=1)
    price = Isoelastic(2.0, 3.0).price(pnl)
    assert 2.0 + float(pnl.min()) < 0 < 2.0 + float((pnl + price.value).min())
    assert by_definition(Isoelastic(2.0, 3.0), (pnl + price.value)[0].numpy()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_objectives_come_back_from_their_settings(objective):
    assert build_kind(OBJECTIVES, to_dict(objective)) == objective
    assert {type(each) for each in EXAMPLES} == set(OBJECTIVES.values())


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("objective", EXAMPLES, ids=str)
def test_infinite_losses_are_refused(objective, bad):
    pnl = sample(n_paths=8)
    pnl[1, 5] = bad
    for measure in (objective.risk, objective.influence, objective.price):
        with pytest.raises(DataError, match=r"member 1 has -?(inf|nan) on path 5|every loss must stay below"):
            measure(pnl)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "entropic", "risk_aversion": 0.0}, "`risk_aversion` must be positive"),
        ({"kind": "entropic", "risk_aversion": -1.0}, "`risk_aversion` must be positive"),
        ({"kind": "mean_variance", "risk_aversion": math.inf}, "`risk_aversion` must be positive"),
        ({"kind": "isoelastic", "wealth": 1.0, "risk_aversion": math.nan}, "`risk_aversion` must be positive"),
        ({"kind": "isoelastic", "wealth": 0.0, "risk_aversion": 1.0}, "`wealth` must be positive"),
        ({"kind": "expected_shortfall", "tail": 0.0}, r"`tail` must lie in \(0, 1\]"),
        ({"kind": "expected_shortfall", "tail": 95.0}, r"`tail` must lie in \(0, 1\]"),
        ({"kind": "spectral", "tails": [0.5, 2.0], "weights": [0.5, 0.5]}, r"`tails` must lie in \(0, 1\]"),
        ({"kind": "spectral", "tails": [0.5, 1.0], "weights": [0.5, 0.6]}, "`weights` must be positive with sum 1"),
        ({"kind": "spectral", "tails": [0.5, 1.0], "weights": [1.0]}, "`weights` must be one for each of the tails"),
        ({"kind": "quadratic_shortfall", "scale": 0.0}, "`scale` must be positive"),
        ({"kind": "oce", "loss_name": "cube", "risk_aversion": 1.0}, "`loss_name` must be one of quadratic, cubic"),
    ],
)
def test_settings_that_make_no_risk_measure_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_kind(OBJECTIVES, settings)


def test_aversions_that_do_not_fit_are_refused():
    pnl = sample()
    with pytest.raises(ConfigError, match="`risk_aversion` must be positive and finite, got 0"):
        Entropic(1.0).risk(pnl, aversion=[1.0, 0.0, 2.0])
    with pytest.raises(ConfigError, match=r"`aversion` must be one number for each of the 3 members, got shape \(2,\)"):
        Entropic(1.0).risk(pnl, aversion=[1.0, 2.0])
    with pytest.raises(ConfigError, match="the objective `quadratic` has no aversion"):
        Quadratic().risk(pnl, aversion=[1.0, 2.0, 3.0])
    with pytest.raises(DataError, match=r"every loss must stay below `wealth`, 1, .* got a loss of"):
        Isoelastic(1.0, 2.0).risk(pnl)


@pytest.mark.parametrize("aversion", [1.0, 50.0])
def test_rows_of_an_entropic_loss_are_finite_in_single_precision_however_steep(aversion):
    """Along the tangent from an exponent of 30 on: convex, and the same below."""
    objective = Entropic(aversion)
    pnl = -torch.linspace(-1.0, 200.0, 1001)[None] / aversion
    level = torch.zeros(1)
    leaf = pnl.clone().requires_grad_()
    rows = objective.rows(leaf, level)
    (slope,) = torch.autograd.grad(rows.sum(), leaf)
    assert rows.isfinite().all()
    assert (slope <= 0).all()
    assert (slope.diff() <= 0).all()  # losses rise along the row, and the loss is convex in them
    below = (-aversion * pnl[0]) < 30
    exact = torch.expm1((-aversion * pnl[0, below]).double()) / aversion
    torch.testing.assert_close(rows[0, below].double(), exact, rtol=1e-5, atol=1e-7)
