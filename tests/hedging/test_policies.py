"""Policies: their written-out gradients, what they may see, and one date at a time."""

import itertools

import pytest
import torch

from qfml.errors import ConfigError
from qfml.hedging.holding import Band, Correction, Direct
from qfml.hedging.policies import FeedForward

NAMES, L, PATHS, MEMBERS = ("hedge", "time_left", "other_hedge"), 6, 16, 3
RULES = {
    "direct": (Direct(), 1),
    "limited": (Direct(limits=(-1.0, 2.0)), 2),
    "correction": (Correction(("hedge",)), 1),
    "band": (Band(("hedge",)), 1),
    "band of two": (Band(("hedge", "other_hedge")), 2),
}
CASES = list(itertools.product(RULES, (False, True), (False, True), ("relu", "tanh")))


def policy_of(rule, per_date=False, sees_holdings=True, activation="relu"):
    holding, n_instruments = RULES[rule]
    return FeedForward(
        hidden=(8, 6),
        activation=activation,
        holding=holding,
        per_date=per_date,
        sees_holdings=sees_holdings,
        feature_names=NAMES,
        n_instruments=n_instruments,
    )


def drawn(policy, members=MEMBERS):
    n_outputs = (L - 1) * policy.n_instruments + 1
    each = [policy.init(len(NAMES), L, torch.Generator().manual_seed(seed), n_outputs) for seed in range(members)]
    return {name: torch.stack([one[name] for one in each]).double() for name in each[0]}


def features(seed=0, members=MEMBERS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, PATHS, L, len(NAMES), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("rule", "per_date", "sees_holdings", "activation"), CASES)
def test_the_written_gradient_is_autograds(rule, per_date, sees_holdings, activation):
    policy = policy_of(rule, per_date, sees_holdings, activation)
    parameters, x = drawn(policy), features()
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    output = policy.forward(leaves, x)
    slope = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((output * slope).sum(), list(leaves.values()))
    written, pull = policy.pullback(parameters, x)
    torch.testing.assert_close(written, output.detach(), rtol=0, atol=1e-12)
    for name, found, own in zip(leaves, pull(slope), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("rule", RULES)
def test_a_policy_sees_nothing_of_later_dates(rule):
    """Whatever is changed after a date leaves the holdings up to that date as they were; the date itself moves them."""
    policy = policy_of(rule)
    parameters, x = drawn(policy), features()
    before = policy.holdings(parameters, x)
    for date in range(L - 1):
        changed = x.clone()
        changed[:, :, date + 1 :] = features(2)[:, :, date + 1 :]
        assert torch.equal(policy.holdings(parameters, changed)[:, :, : date + 1], before[:, :, : date + 1])
        changed[:, :, date] = features(3)[:, :, date]
        moved = policy.holdings(parameters, changed)[:, :, date] != before[:, :, date]
        assert moved.any()


@pytest.mark.parametrize(("rule", "per_date"), list(itertools.product(RULES, (False, True))))
def test_one_date_at_a_time_gives_the_same_holdings(rule, per_date):
    policy = policy_of(rule, per_date)
    parameters, x = drawn(policy), features()
    whole = policy.pullback(parameters, x)[0][..., :-1].unflatten(-1, (L - 1, -1))
    held = torch.zeros(MEMBERS, PATHS, policy.n_instruments, dtype=torch.float64)
    for date in range(L - 1):
        held, _ = policy.step(parameters, x[:, :, date], held, date)
        torch.testing.assert_close(held, whole[:, :, date], rtol=0, atol=1e-13)


def test_holdings_by_hand():
    """One unit, one hidden layer: relu(2 x + before) times 3, minus 1."""
    policy = FeedForward(hidden=(1,), feature_names=("x",))
    parameters = {
        "layer0_weight": torch.tensor([[[[2.0], [1.0]]]]),
        "layer0_bias": torch.zeros(1, 1, 1),
        "head_weight": torch.tensor([[[[3.0]]]]),
        "head_bias": torch.tensor([[[-1.0]]]),
        "level": torch.tensor([[0.25]]),
    }
    x = torch.tensor([[[[0.5], [-1.0], [9.0]]]])
    # first max(2 * .5 + 0, 0) * 3 - 1 = 2, then max(-2 + 2, 0) * 3 - 1 = -1; the last date is not traded on
    assert policy.forward(parameters, x).tolist() == [[[2.0, -1.0, 0.25]]]


def test_a_band_moves_no_further_than_its_nearer_end():
    band = Band(("hedge",))
    hedge, raw = torch.full((4, 1), 0.5), torch.tensor([[0.1, 0.2]]).expand(4, 2)
    before = torch.tensor([[0.0], [0.45], [0.69], [1.0]])
    torch.testing.assert_close(band.of(raw, before, hedge), torch.tensor([[0.4], [0.45], [0.69], [0.7]]))
    crossed = band.of(torch.tensor([[-20.0, 0.0]]), torch.tensor([[0.1]]), torch.tensor([[0.5]]))
    torch.testing.assert_close(crossed, torch.tensor([[0.6]]))  # low .7 above high .5: their mean


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeedForward(hidden=()), "hidden"),
        (lambda: FeedForward(holding=Band(("gamma",)), feature_names=("delta",)), "`gamma`, and the features are"),
        (lambda: FeedForward(holding=Band(("delta", "vega"))), "for each of 1 instrument"),
        (lambda: Band(()), "`hedge` must name a feature"),
        (lambda: Correction(()), "`hedge` must name a feature"),
        (lambda: Direct(limits=(1.0, 0.0)), "low < high"),
    ],
)
def test_policies_that_cannot_be_are_refused(make, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        make()
