"""Training of each kind of policy: bits of stack and resume, what it learns, half precision and compiled."""

from dataclasses import replace

import pytest
import torch
from hedging.small_training import LOSSES, NAMES, StopsAfter, data, members, paths_of, same, trainer

import qfml
from qfml.errors import Interrupted
from qfml.hedging.holding import Band
from qfml.hedging.loss import loss_of
from qfml.hedging.objectives import Entropic
from qfml.hedging.policies import POLICIES, Attention, FeedForward, Recurrent
from qfml.hedging.rules import TradingRules
from qfml.hedging.training import PathData, PathMember, train_policies

BAND = Band(("delta",))
# odd widths, for the bits of a product depend on where its matrices begin
SEVERAL = {
    "feed-forward of gelu": FeedForward(hidden=(5, 7), activation="gelu"),
    "feed-forward by date, walked again": FeedForward(hidden=(5,), per_date=True, checkpoint=True, holding=BAND),
    "gru": Recurrent(hidden=7),
    "lstm, truncated": Recurrent(hidden=5, cell="lstm", layers=2, truncate=2, holding=BAND),
    "transformer": Attention(width=8, hidden=7, checkpoint=True),
    "transformer that does not see": Attention(
        width=8, hidden=7, sees_holdings=False, rules=TradingRules(0.0, lot=0.1)
    ),
}
SEVERAL = {name: replace(policy, feature_names=NAMES) for name, policy in SEVERAL.items()}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_member_of_a_stack_equals_solo_to_the_last_bit(name):
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    several = members(SEVERAL[name])
    stacked = train_policies(several, loss, data(), trainer(max_epochs=2))
    for member, fit in zip(several, stacked, strict=True):
        (alone,) = train_policies([member], loss, data(), trainer(max_epochs=2))
        assert same(alone, fit)
    assert not same(stacked[0], stacked[1])


@pytest.mark.parametrize("name", SEVERAL)
def test_a_training_that_is_resumed_has_the_bits_of_an_uninterrupted_one(name, tmp_path):
    loss, two = loss_of(*LOSSES["entropic"], paths_of(0)), members(SEVERAL[name], 2)
    whole = train_policies(two, loss, data(), trainer(max_epochs=2))
    settings, often = {"checkpoint_dir": tmp_path / "kept"}, trainer(max_epochs=2, checkpoint_seconds=0.0)
    with pytest.raises(Interrupted):
        train_policies(two, loss, data(), often, callbacks=[StopsAfter(1)], **settings)
    resumed = train_policies(two, loss, data(), often, resume=True, **settings)
    assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))


LEARNERS = {
    "feed_forward": FeedForward(hidden=(8, 8), activation="silu"),
    "recurrent": Recurrent(hidden=8),
    "transformer": Attention(width=8, hidden=16, sees_holdings=False),
}


def learned(policy, paths, objective, epochs=4):
    """Trained on paths by number; P&L and risk on fresh ones."""
    policy = replace(policy, feature_names=NAMES)
    loss = loss_of(objective, [], paths(0, 16))
    drawn = PathData(lambda number: paths(number, 512), paths(10**6, 1024), 40, "call")
    settings = trainer(batch_size=512, max_epochs=epochs, micro_batch_size=None, optimizer=qfml.AdamW(lr=1e-2))
    (fit,) = train_policies([PathMember(policy, centre=0.01, scale=0.01)], loss, drawn, settings)
    fresh = paths(10**7, 4096)
    held = policy.holdings({n: v[None] for n, v in fit.named_parameters().items()}, fresh.features[None])[0]
    return risk_of(held[..., 0], fresh, objective), fresh


def risk_of(held, paths, objective):
    pnl = (held * paths.prices[..., 0].diff(dim=1)).sum(1) - paths.liability
    return float(objective.risk(pnl[None])[0])


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_comes_near_the_optimum(kind):
    """Without costs it is known: nearly the delta of Black and Scholes at every date."""
    objective = Entropic(50.0)
    risk, fresh = learned(LEARNERS[kind], paths_of, objective)
    delta = fresh.features[:, :-1, 2]
    unhedged, by_delta = (risk_of(held, fresh, objective) for held in (torch.zeros_like(delta), delta))
    assert by_delta < unhedged - 1e-3
    assert abs(risk - by_delta) < 0.05 * (unhedged - by_delta)


def remembered_paths(number, n_paths=512):
    """What is owed is the change of the spot from date 1 on, in the direction of the move until date 1."""
    paths = paths_of(number, n_paths)
    spot = paths.prices[..., 0]
    return replace(paths, liability=(spot[:, 1] - spot[:, 0]).sign() * (spot[:, -1] - spot[:, 1]))


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
def test_a_policy_with_a_memory_hedges_what_only_memory_can(kind):
    """Held from date 1 on: the sign of the first move. A feed-forward policy that does not see its holdings cannot."""
    objective = Entropic(50.0)
    risk, fresh = learned(replace(LEARNERS[kind], sees_holdings=False), remembered_paths, objective, epochs=6)
    by_memory = (fresh.prices[:, 1, 0] - fresh.prices[:, 0, 0]).sign()[:, None].expand(-1, 5).clone()
    by_memory[:, 0] = 0.0
    assert risk_of(by_memory, fresh, objective) == pytest.approx(0.0, abs=1e-6)
    unhedged = risk_of(torch.zeros_like(by_memory), fresh, objective)
    blind, _ = learned(replace(LEARNERS["feed_forward"], sees_holdings=False), remembered_paths, objective, epochs=2)
    assert risk < 0.2 * unhedged
    assert blind > 0.4 * unhedged
