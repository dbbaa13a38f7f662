"""Policies: what each of them may see, one date at a time, gradients written out, cut off and made again."""

import itertools
from dataclasses import replace

import pytest
import torch

from qfml.errors import ConfigError
from qfml.hedging.holding import Band, Correction, Direct
from qfml.hedging.policies import POLICIES, Attention, FeedForward, Recurrent
from qfml.hedging.rules import TradingRules

NAMES, L, PATHS, MEMBERS = ("hedge", "time_left", "other_hedge"), 6, 16, 3
RULES = {
    "direct": (Direct(), 1, TradingRules()),
    "limited": (Direct(limits=(-1.0, 2.0)), 2, TradingRules()),
    "correction": (Correction(("hedge",)), 1, TradingRules()),
    "band": (Band(("hedge",)), 1, TradingRules()),
    "band of two": (Band(("hedge", "other_hedge")), 2, TradingRules()),
    "direct in lots": (Direct(limits=(-2.0, 2.0)), 1, TradingRules(lot=0.05)),
    "band under rules": (Band(("hedge", "other_hedge")), 2, TradingRules((-0.5, None), (0.8, 0.4), (None, 0.02))),
}
SEVERAL = {
    "feed-forward": FeedForward(hidden=(8, 6)),
    "feed-forward by date": FeedForward(hidden=(8, 6), per_date=True, activation="gelu"),
    "gru": Recurrent(hidden=6),
    "lstm of two layers": Recurrent(hidden=4, cell="lstm", layers=2),
    "transformer": Attention(width=8, hidden=8, layers=2),
    "transformer that does not see its holdings": Attention(width=8, hidden=8, layers=2, sees_holdings=False),
}
ALL = list(itertools.product(SEVERAL, RULES))
CASES = list(itertools.product(RULES, (False, True), (False, True), ("relu", "tanh")))


def under(policy, rule):
    """The policy with a rule for its holdings, for these features."""
    holding, n_instruments, rules = RULES[rule]
    return replace(policy, holding=holding, n_instruments=n_instruments, rules=rules, feature_names=NAMES)


def drawn(policy, members=MEMBERS):
    n_outputs = (L - 1) * policy.n_instruments + 1
    each = [policy.init(len(NAMES), L, torch.Generator().manual_seed(seed), n_outputs) for seed in range(members)]
    return {name: torch.stack([one[name] for one in each]).double() for name in each[0]}


def features(seed=0, members=MEMBERS, paths=PATHS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, paths, L, len(NAMES), dtype=torch.float64, generator=generator)


def gradients(output, leaves):
    slope = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * slope).sum(), list(leaves.values()))


def leaves_of(policy):
    return {name: value.requires_grad_() for name, value in drawn(policy).items()}


@pytest.mark.parametrize(("rule", "per_date", "sees_holdings", "activation"), CASES)
def test_the_written_gradient_is_autograds(rule, per_date, sees_holdings, activation):
    written = FeedForward(hidden=(8, 6), per_date=per_date, sees_holdings=sees_holdings, activation=activation)
    policy = under(written, rule)
    parameters, x = drawn(policy), features()
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    output = policy.forward(leaves, x)
    slope = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((output * slope).sum(), list(leaves.values()))
    written, pull = policy.pullback(parameters, x)
    torch.testing.assert_close(written, output.detach(), rtol=0, atol=1e-12)
    for name, found, own in zip(leaves, pull(slope), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("paths", [1, 17, 512, 513, 1100])
def test_the_written_gradient_is_autograds_of_any_number_of_paths(paths):
    """Pieces of a walk are equally long, with rows of nothing behind the last path; a room is taken over by others."""
    policy = under(FeedForward(hidden=(8, 6)), "band of two")
    parameters = drawn(policy)
    for seed in (0, 1):
        x = features(seed, paths=paths)
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        output = policy.forward(leaves, x)
        expected = torch.autograd.grad(output.square().sum(), list(leaves.values()))
        written, pull = policy.pullback(parameters, x)
        for found, own in zip(pull(2 * written), expected, strict=True):
            torch.testing.assert_close(found, own, rtol=1e-10, atol=1e-10)


def test_every_policy_is_among_those_that_are_tried():
    assert {policy.kind for policy in SEVERAL.values()} == set(POLICIES)


@pytest.mark.parametrize(("name", "rule"), ALL)
def test_a_policy_sees_nothing_of_later_dates(name, rule):
    """Whatever is changed after a date leaves the holdings up to that date as they were; the date itself moves them."""
    policy = under(SEVERAL[name], rule)
    parameters, x = drawn(policy), features()
    before = policy.holdings(parameters, x)
    for date in range(L - 1):
        changed = x.clone()
        changed[:, :, date + 1 :] = features(2)[:, :, date + 1 :]
        assert torch.equal(policy.holdings(parameters, changed)[:, :, : date + 1], before[:, :, : date + 1])
        changed[:, :, date] = features(3)[:, :, date]
        moved = policy.holdings(parameters, changed)[:, :, date] != before[:, :, date]
        assert moved.any()


@pytest.mark.parametrize("name", SEVERAL)
def test_what_a_policy_remembers_is_what_it_has_seen(name):
    """Holdings are no way to remember here: the last ones depend on the first date if the policy has a state."""
    policy = replace(under(SEVERAL[name], "direct"), sees_holdings=False)
    parameters, x = drawn(policy), features()
    changed = x.clone()
    changed[:, :, 0] = features(2)[:, :, 0]
    same = torch.equal(policy.holdings(parameters, changed)[:, :, -1], policy.holdings(parameters, x)[:, :, -1])
    assert same == isinstance(policy, FeedForward)


@pytest.mark.parametrize(("name", "rule"), ALL)
def test_one_date_at_a_time_gives_the_same_holdings(name, rule):
    policy = under(SEVERAL[name], rule)
    parameters, x = drawn(policy), features()
    whole = policy.forward(parameters, x)[..., :-1].unflatten(-1, (L - 1, -1))
    if isinstance(policy, FeedForward) and policy.writes_gradient:
        torch.testing.assert_close(policy.pullback(parameters, x)[0][..., :-1].unflatten(-1, (L - 1, -1)), whole)
    held = torch.zeros(MEMBERS, PATHS, policy.n_instruments, dtype=torch.float64)
    state = policy.start(x[:, :, 0])
    for date in range(L - 1):
        assert [tuple(part.shape) for part in state] == policy.state_shapes(MEMBERS, PATHS, date)
        held, state = policy.step(parameters, x[:, :, date], held, date, state)
        torch.testing.assert_close(held, whole[:, :, date], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("rule", ["direct", "band under rules"])
@pytest.mark.parametrize("truncate", [None, 2])
def test_what_is_walked_again_has_the_same_gradient(name, rule, truncate):
    """The holdings to the last bit; the gradients are added up in another order."""
    policy = replace(under(SEVERAL[name], rule), truncate=truncate)
    again = replace(policy, checkpoint=True)
    leaves, x = leaves_of(policy), features()
    output, other = policy.forward(leaves, x), again.forward(leaves, x)
    torch.testing.assert_close(other, output, rtol=0, atol=1e-12)
    for found, expected in zip(gradients(other, leaves), gradients(output, leaves), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def cut_by_hand(policy, parameters, x, truncate):
    """The walk, with all that is carried on taken as given at every so many dates."""
    held = torch.zeros(MEMBERS, PATHS, policy.n_instruments, dtype=torch.float64)
    state, found = policy.start(x[:, :, 0]), []
    for date in range(L - 1):
        if date % truncate == 0:
            held, state = held.detach(), tuple(part.detach() for part in state)
        held, state = policy.step(parameters, x[:, :, date], held, date, state)
        found.append(held)
    return torch.cat([*found, parameters["level"][:, None].expand(-1, PATHS, -1)], -1)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("rule", ["direct", "band under rules"])
@pytest.mark.parametrize("truncate", [1, 2, 3, L])
def test_a_gradient_ends_after_so_many_dates(name, rule, truncate):
    whole = under(SEVERAL[name], rule)
    policy = replace(whole, truncate=truncate)
    leaves, x = leaves_of(policy), features()
    output, expected = policy.forward(leaves, x), cut_by_hand(policy, leaves, x, truncate)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)  # the holdings stay what they are
    own, full = gradients(output, leaves), gradients(whole.forward(leaves, x), leaves)
    for found, by_hand in zip(own, gradients(expected, leaves), strict=True):
        torch.testing.assert_close(found, by_hand, rtol=1e-10, atol=1e-12)
    if isinstance(policy, FeedForward) and policy.writes_gradient:
        slope = torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        by_graph = torch.autograd.grad((policy.forward(leaves, x) * slope).sum(), list(leaves.values()))
        pulled = policy.pullback({key: leaf.detach() for key, leaf in leaves.items()}, x)[1](slope)
        for found, expected in zip(pulled, by_graph, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    as_whole = all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(own, full, strict=True))
    assert as_whole == (truncate >= L)


def test_pieces_end_where_gradients_do_and_are_roots_long():
    policy = replace(SEVERAL["gru"], checkpoint=True)
    assert policy.pieces(10) == [(0, 4), (4, 8), (8, 10)]
    assert replace(policy, truncate=6).pieces(10) == [(0, 4), (4, 6), (6, 10)]
    assert replace(policy, truncate=6, checkpoint=False).pieces(10) == [(0, 6), (6, 10)]
    assert replace(policy, checkpoint=False).pieces(10) == [(0, 10)]


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
        (lambda: FeedForward(holding=Band(("delta", "vega")), feature_names=("delta", "vega")), "for each of 1 "),
        (lambda: Recurrent(cell="rnn"), "`cell` must be one of gru, lstm, got 'rnn'"),
        (lambda: Recurrent(hidden=0), "`hidden`"),
        (lambda: Attention(width=12), "multiple of 4 x `heads` = 8, got 12: take 16"),
        (lambda: FeedForward(truncate=0), "`truncate` must be a number of dates, at least 1, got 0"),
        (lambda: Recurrent(truncate=True), "`truncate`"),
        (lambda: Recurrent(rules=TradingRules(lot=(1.0, 2.0)), feature_names=("delta",)), "each of 1 instrument"),
        (lambda: Band(()), "`hedge` must name a feature"),
        (lambda: Correction(()), "`hedge` must name a feature"),
        (lambda: Direct(limits=(1.0, 0.0)), "low < high"),
    ],
)
def test_policies_that_cannot_be_are_refused(make, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        make()
