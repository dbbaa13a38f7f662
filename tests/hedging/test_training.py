"""Training of policies: the same bits alone, in a stack, on any number of threads and after a resume."""

from dataclasses import replace

import pytest
import torch
from hedging.small_training import BANDS, LOSSES, NAMES, POLICY, StopsAfter, data, members, paths_of, same, trainer

from pricers import parallel
from qfml.errors import ConfigError, DataError, Interrupted
from qfml.hedging.costs import Proportional
from qfml.hedging.loss import labels_of, loss_of, unpacked
from qfml.hedging.objectives import Entropic, ExpectedShortfall
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import FeedForward
from qfml.hedging.training import PathData, PathMember, train_policies


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("policy", [POLICY, BANDS], ids=["direct", "band"])
def test_a_member_of_a_stack_equals_solo_to_the_last_bit(name, policy):
    objective, costs = LOSSES[name]
    loss = loss_of(objective, costs, paths_of(0))
    stacked = train_policies(members(policy), loss, data(), trainer())
    for member, fit in zip(members(policy), stacked, strict=True):
        (alone,) = train_policies([member], loss, data(), trainer())
        assert same(alone, fit)
    assert not same(stacked[0], stacked[1])


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_any_number_of_threads_gives_the_same_bits(activation, monkeypatch):
    """Of batches that fill several pieces of matrices that are large enough to be spread."""
    policy = FeedForward(hidden=(32, 32), feature_names=NAMES, activation=activation)
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    wide = PathData(lambda step: paths_of(step, 2064), paths_of(10**6, 256), 2, "call")
    settings = trainer(batch_size=2064, micro_batch_size=None)
    seen = []
    monkeypatch.setattr(
        "qfml.engine.backward.all_threads", lambda threads: seen.append(threads) or parallel.all_threads(threads)
    )
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(train_policies(members(policy, n=3), loss, wide, settings))
            found.append(train_policies(members(policy, n=3)[:1], loss, wide, settings))
        finally:
            torch.set_num_threads(1)
    assert set(seen) == {1, 2, 3}
    assert all(same(fits[0], found[0][0]) for fits in found)
    assert all(same(one, other) for one, other in zip(found[2], found[0], strict=True))


def test_a_training_that_is_resumed_has_the_bits_of_an_uninterrupted_one(tmp_path):
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    whole = train_policies(members(), loss, data(), trainer())
    settings = {"checkpoint_dir": tmp_path / "checkpoints"}
    with pytest.raises(Interrupted):
        train_policies(members(), loss, data(), trainer(checkpoint_seconds=0.0), callbacks=[StopsAfter(2)], **settings)
    resumed = train_policies(members(), loss, data(), trainer(checkpoint_seconds=0.0), resume=True, **settings)
    assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))


def test_the_loss_is_that_of_gains_and_objective():
    """A step of two paths by hand: holdings 1 and 2 of one instrument, costs doubled by the member's level."""
    prices = torch.tensor([[1.0, 1.1, 1.0], [1.0, 0.9, 0.8]])[..., None]
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    paths = PathSet(times, prices, torch.tensor([0.05, 0.0]), prices, ("spot",), ("spot",))
    loss = loss_of(ExpectedShortfall(1.0), [Proportional(0.01)], paths)
    labels = unpacked(labels_of(paths, torch.tensor([[0.5, 2.0, 0.3, 10.0]])), 1)
    output = torch.tensor([1.0, 2.0, 0.01]).expand(1, 2, 3)
    # trading .1 - .2 and -.1 - .2; trades of 1 and 1; liability
    expected = [-0.1 - 2 * 0.01 * (1.0 + 1.1) - 0.05, -0.3 - 2 * 0.01 * (1.0 + 0.9)]
    torch.testing.assert_close(loss.pnl(output, labels)[0], torch.tensor(expected))
    rows = loss.rows(output, labels_of(paths, torch.tensor([[0.5, 2.0, 0.3, 10.0]])))
    level = 0.3 + 10.0 * 0.01  # in units of `scale` from `centre`, and the tail is the member's
    torch.testing.assert_close(rows[0], torch.tensor([level + max(-pnl - level, 0.0) / 0.5 for pnl in expected]))


def test_training_lowers_the_risk_below_that_of_no_hedge_and_towards_the_truth():
    """Without costs the frictionless optimum is known: nearly the Black-Scholes delta at every date."""
    loss = loss_of(Entropic(50.0), [], paths_of(0))
    draw = PathData(lambda number: paths_of(number, 1024), paths_of(10**6, 4096), 50, "call")
    settings = {"batch_size": 1024, "max_epochs": 6, "micro_batch_size": None}
    (fit,) = train_policies([PathMember(POLICY, centre=0.01, scale=0.01)], loss, draw, trainer(**settings))
    fresh = paths_of(10**7, 4096)
    delta = fresh.features[:, :-1, 2]
    held = POLICY.holdings({n: v[None] for n, v in fit.named_parameters().items()}, fresh.features[None])[0, ..., 0]

    def risk(holdings):
        pnl = (holdings * fresh.prices[..., 0].diff(dim=1)).sum(1) - fresh.liability
        return float(Entropic(50.0).risk(pnl[None])[0])

    unhedged, by_delta = risk(torch.zeros_like(delta)), risk(delta)
    assert by_delta < unhedged - 1e-3
    assert abs(risk(held) - by_delta) < 0.05 * (unhedged - by_delta)


def test_what_cannot_be_trained_is_refused():
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    with pytest.raises(ConfigError, match="multiple of 16, got 50"):
        train_policies(members(), loss, data(), trainer(batch_size=50))
    with pytest.raises(ConfigError, match="risk_aversion"):
        train_policies([PathMember(POLICY, aversion=0.0)], loss, data(), trainer())
    spectral = loss_of(*LOSSES["spectral"], paths_of(0))
    with pytest.raises(ConfigError, match="has no aversion"):
        train_policies([PathMember(POLICY, aversion=1.0)], spectral, data(), trainer())
    with pytest.raises(ConfigError, match="100 %"):
        train_policies([PathMember(POLICY, cost_level=2000.0)], loss, data(), trainer())


def shifted(number, n_paths=64):
    """Another world: other paths of the same shape."""
    return paths_of(number + 10**8, n_paths)


def worlds(steps_per_epoch=4):
    draws = [paths_of, shifted]
    return PathData(draws, [draw(10**6, 256) for draw in draws], steps_per_epoch, "two worlds")


def test_members_of_several_worlds_have_the_bits_that_they_have_alone_in_their_own():
    """Each sees the paths of its world and no others, in training and in validation."""
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    everyone = [replace(member, world=world) for world in (0, 1) for member in members(n=2)]
    stack = train_policies(everyone, loss, worlds(), trainer(patience=1))
    for member, fit in zip(everyone, stack, strict=True):
        own = PathData(paths_of, paths_of(10**6, 256), 4, "call")
        if member.world:
            own = PathData(shifted, shifted(10**6, 256), 4, "call")
        (alone,) = train_policies([replace(member, world=0)], loss, own, trainer(patience=1))
        assert same(alone, fit)
    assert not same(stack[0], stack[2])


def test_worlds_that_cannot_be_stacked_are_refused():
    with pytest.raises(DataError, match="same number, 256, world 1 has 128"):
        PathData([paths_of, shifted], [paths_of(1, 256), shifted(1, 128)], 4, "unequal")
    other = replace(paths_of(1, 256), feature_names=("moneyness", "time_left", "vega"))
    with pytest.raises(DataError, match="same features"):
        PathData([paths_of, shifted], [paths_of(1, 256), other], 4, "unequal")
