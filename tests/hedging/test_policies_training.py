"""Training of each kind of policy: bits of stack and resume, what it learns, half precision and compiled."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

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

BAND, LOTS = Band(("delta",)), TradingRules(0.0, lot=0.1)
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
    several = members(SEVERAL[name], 2)
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


@pytest.mark.parametrize("kind", ["recurrent", pytest.param("transformer", marks=pytest.mark.slow)])
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


HALVES = {
    "feed_forward": FeedForward(hidden=(8, 8)),
    "recurrent": Recurrent(hidden=8, checkpoint=True),
    "transformer": Attention(width=8, hidden=8),
}


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_a_precision_is_that_of_the_products_alone(kind, precision):
    """Holdings, and so P&L, costs and objective, have all 24 bits; the training ends where that of fp32 does."""
    policy = replace(HALVES[kind], feature_names=NAMES)
    loss = loss_of(*LOSSES["entropic"], paths_of(0))
    (full,), (half,) = (
        train_policies(members(policy, 1), loss, data(), trainer(max_epochs=2, precision=one))
        for one in ("fp32", precision)
    )
    assert half.status == "finished"
    assert not same(full, half)
    assert half.best_val_loss == pytest.approx(full.best_val_loss, rel=2e-3)
    paths, own = paths_of(7), {name: value[None] for name, value in half.named_parameters().items()}
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast("cpu", dtype):
        output = policy.forward(own, paths.features[None])
    assert output.dtype == torch.float32
    assert float((output[..., :-1] != output[..., :-1].to(dtype).float()).float().mean()) > 0.9
    exact = policy.forward(own, paths.features[None])
    assert 0 < float((output - exact).abs().max()) < 0.05


SEEN_THROUGH = """
import json, sys, torch
from dataclasses import replace
from hedging.small_training import NAMES, paths_of
from qfml.hedging import Attention, Band, FeedForward, Recurrent, TradingRules
found = {}
several = {
    "feed_forward": FeedForward(hidden=(4,), truncate=2),
    "recurrent": Recurrent(hidden=4, holding=Band(("delta",)), rules=TradingRules(0.0, 1.0, 0.1), checkpoint=True),
    "transformer": Attention(width=8, hidden=4, sees_holdings=False, truncate=2),
}
for kind in sys.argv[1:]:
    policy = several[kind]
    policy = replace(policy, feature_names=NAMES)
    drawn = policy.init(3, 4, torch.Generator().manual_seed(0), 4)
    leaves = {name: torch.stack([value, value]).requires_grad_() for name, value in drawn.items()}
    x = paths_of(3).features[:, :4].expand(2, -1, -1, -1)
    compiled = torch.compile(policy.forward, backend="aot_eager", fullgraph=True)
    outputs = [one(leaves, x) for one in (policy.forward, compiled)]
    slopes = [torch.autograd.grad(output.square().sum(), list(leaves.values())) for output in outputs]
    found[kind] = [float((one - two).abs().max()) for one, two in zip(*slopes)]
print(json.dumps(found))
"""
# SGD, since AdamW makes whole steps of gradients that are rounding alone, such as those of the keys' biases
COMPILED = """
import json, sys, torch
from dataclasses import replace
import qfml
from hedging.small_training import LOSSES, NAMES, data, members, paths_of, trainer
from qfml.hedging import Attention, FeedForward, Recurrent
from qfml.hedging.loss import loss_of
from qfml.hedging.training import train_policies
found, loss = {}, loss_of(*LOSSES["entropic"], paths_of(0))
modes, forward = [], torch.compile
torch.compile = lambda *args, **options: modes.append(options["mode"]) or forward(*args, **options)
settings = {"optimizer": qfml.SGD(lr=1.0)}
for policy in (FeedForward(hidden=(4,)), Recurrent(hidden=4), Attention(width=8, hidden=4)):
    several = [replace(member, lr=None) for member in members(replace(policy, feature_names=NAMES), 2)]
    start, eager, compiled = (
        train_policies(several, loss, data(), trainer(max_epochs=2, compile=mode, **settings | limits))
        for mode, limits in ((None, {"max_steps": 1, "optimizer": qfml.SGD(lr=1e-9)}), (None, {}), ("default", {}))
    )
    apart = [float((a.parameters - b.parameters).abs().max()) for a, b in zip(eager, compiled)]
    moved = [float((a.parameters - b.parameters).abs().max()) for a, b in zip(eager, start)]
    found[policy.kind] = [max(apart), min(moved)]
print(json.dumps([modes, found]))
"""


def differences(script, *words):
    """In a process without the checks of annotations, which torch.compile cannot see through."""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    environment = os.environ | {"JAXTYPING_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_compiler_sees_through_a_walk():
    """As one graph, with the same gradients: holding and trading rules, pieces made again."""
    found = differences(SEEN_THROUGH, "recurrent")
    assert max(found["recurrent"]) < 1e-5


@pytest.mark.slow
def test_a_compiler_sees_through_every_policy():
    found = differences(SEEN_THROUGH, *POLICIES)
    assert set(found) == set(POLICIES)
    assert max(max(each) for each in found.values()) < 1e-5


@pytest.mark.slow
def test_compiled_training_is_within_1e_5_of_the_eager_one():
    modes, found = differences(COMPILED)
    assert modes == ["default"] * 3
    assert set(found) == set(POLICIES)
    for apart, moved in found.values():
        assert apart < 1e-5 < 1e-3 < moved
