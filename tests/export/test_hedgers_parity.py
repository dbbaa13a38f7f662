"""Exported policies hold what `Hedger` holds: by points of every kind of policy, and replayed along paths."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pricers as pr
import qfml
from qfml.errors import ConfigError, DataError, UserError
from qfml.export import export_hedger, load_exported
from qfml.export.hedgers import _Graph
from qfml.export.policy_steps import decided
from qfml.hedging import (
    POLICIES,
    Attention,
    Band,
    Book,
    Correction,
    Entropic,
    FeedForward,
    Hedger,
    ModelMarket,
    Option,
    Policy,
    Proportional,
    Recurrent,
    Spot,
    TradingRules,
    deep_hedge,
)

STEPS, T = 5, 5 / 365
BOOK = Book(((1.0, pr.European(100.0, T)),))
HESTON = {"kind": "heston", "v0": 0.04, "kappa": 2.0, "theta": 0.05, "sigma": 0.5, "rho": -0.7}
RATES = {"spot": 100.0, "rate": 0.03, "dividend_yield": 0.01}
TWO = ModelMarket(
    HESTON,
    RATES,
    instruments=(Spot(), Option(100.0, 0.1)),
    n_steps=STEPS,
    horizon=T,
    information=("log_moneyness", "time_to_horizon", "vol", "prices"),
)
ONE = ModelMarket(
    {"kind": "black_scholes", "vol": 0.2},
    RATES,
    n_steps=STEPS,
    horizon=T,
    information=("log_moneyness", "time_to_horizon", "call_delta"),
)
SMALL = {"hidden": (8, 8)}
CASES = {
    "feed_forward": (FeedForward(**SMALL), TWO),
    "per_date": (FeedForward(**SMALL, per_date=True), TWO),
    "blind": (FeedForward(hidden=(8,), activation="silu", sees_holdings=False), ONE),
    "correction": (FeedForward(**SMALL, holding=Correction(("call_delta",)), activation="tanh"), ONE),
    "band_per_date": (FeedForward(**SMALL, holding=Band(("call_delta",)), per_date=True), ONE),
    "rules": (FeedForward(**SMALL, rules=TradingRules(min_holding=(0.0, None), lot=(0.1, None))), TWO),
    "gru": (Recurrent(hidden=8, holding=Band(("call_delta",))), ONE),
    "lstm": (Recurrent(cell="lstm", hidden=8, layers=2), TWO),
    "transformer": (Attention(width=8, heads=2, layers=2, hidden=8), TWO),
    "transformer_blind": (Attention(width=8, hidden=8, sees_holdings=False), ONE),
}


def hedged(name, **changes):
    policy, market = CASES[name]
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=1, batch_size=64, seed=1)
    settings = {"costs": (Proportional(1e-3),), "policy": policy, "trainer": trainer, "steps_per_epoch": 4}
    return deep_hedge(market, BOOK, Entropic(1.0), **settings | {"n_validation": 64, "seeds": (0, 1)} | changes)


def observed(hedger, n_paths):
    """Paths, and what is seen on each date of them, float64."""
    market = hedger.market
    paths = market.paths(n_paths, BOOK, seed=7, dtype=torch.float64)
    made = market.prepared(BOOK, torch.float64).simulation.draw(n_paths, seed=7, number=0).on(market.times)
    seen = {"spot": made.spot} | ({"variance": made.state["variance"]} if "variance" in made.state else {})
    for place, name in enumerate(paths.instrument_names[1:], 1):
        seen[name] = paths.prices[..., place] / market.simulated_market.discount(market.times)
    return paths, {name: seen[name].double() for name in hedger.quantities}


def replayed(model, hedger, seen, n_paths):
    """Holdings (B, L - 1, K) of a file, date by date."""
    names = hedger.sight.instruments
    held, state, found = np.zeros((n_paths, len(names))), None, []
    for date in range(STEPS):
        rows = {name: value[:, date].numpy() for name, value in seen.items()} | {"date": float(date)}
        rows |= {f"before {name}": held[:, place] for place, name in enumerate(names)}
        answer = model.predict(rows, state=state)
        held, state = answer["holdings"], answer.get("next_state")
        found.append(held)
    return np.stack(found, 1)


def test_every_policy_is_among_those_that_are_tried():
    assert {type(policy) for policy, _ in CASES.values()} == set(POLICIES.values())


@pytest.mark.parametrize("name", CASES)
def test_a_step_at_any_date_is_that_of_the_policy(name):
    hedger = hedged(name, seeds=(0,))
    graph = _Graph(hedger)
    points = graph.decided(graph.points(3000), 0)
    with torch.no_grad():
        outputs = graph.forward(points, graph.tensors(0))
    expected = graph.reference(points, 0)
    assert 2900 < int(expected["inside"].sum()) <= 3000
    assert int((~expected["inside"]).sum()) == 3000 // 9
    for (key, value), output in zip(expected.items(), outputs, strict=True):
        torch.testing.assert_close(output, value, rtol=0, atol=2e-6, equal_nan=True, msg=key)
    if graph.n_memory:
        assert outputs[2].shape == (len(points), graph.n_memory)


def exports_what_it_holds(name, folder, n_paths=2000):
    hedger = hedged(name)
    paths, seen = observed(hedger, n_paths)
    wanted = hedger.holdings(paths)
    exports = export_hedger(hedger, [folder / f"{place}.onnx" for place in (0, 1)], config_hash="abc")
    for member, export in enumerate(exports):
        assert export.parity.n_points >= 10_000
        assert export.parity.n_unknown >= 1000
        assert export.parity.largest < 2e-6
        model = load_exported(export.path)
        found = replayed(model, hedger, seen, n_paths)
        np.testing.assert_allclose(found, wanted[member], rtol=0, atol=1e-5)
        held, state = torch.zeros(n_paths, len(hedger.sight.instruments)), ()
        for date in range(STEPS):
            now = {key: value[:, date] for key, value in seen.items()}
            held, state = hedger.hedge(now, held, date, member, state)
            torch.testing.assert_close(held, wanted[member, :, date], rtol=0, atol=1e-6)
            np.testing.assert_allclose(found[:, date], held, rtol=0, atol=1e-6)
    return hedger, model


def test_a_file_replayed_along_paths_holds_what_the_policy_holds(tmp_path):
    hedger, model = exports_what_it_holds("feed_forward", tmp_path)
    about, call = model.metadata, "call 100 0.1"
    assert model.input_names == ("spot", "variance", call, "date", "before spot", f"before {call}")
    assert model.units["variance"] == "instantaneous variance, per year, decimal"
    assert (about["kind"], about["config_hash"], about["strike"]) == ("hedging", "abc", 100.0)
    assert about["trading_dates"] == TWO.times.tolist()
    assert about["costs"][0]["kind"] == "proportional"
    assert about["member"] == {"number": 1, "seed": 1, "aversion": 1.0, "cost_level": 1.0}
    row = {"spot": 100.0, "variance": 0.04, call: 2.0, "date": 0, "before spot": 0, f"before {call}": 0}
    for change in ({"date": 5}, {"date": -1}, {"date": 0.5}, {"spot": 0.0}, {"variance": -0.01}):
        flagged = model.predict(row | change, errors="flag")
        assert not flagged["inside"][0]
        assert np.isnan(flagged["holdings"]).all()
        with pytest.raises(DataError, match=r"what cannot be hedged.*0 to 4"):
            model.predict(row | change)
    with pytest.raises(DataError, match="`spot` is not a finite number"):
        model.predict(row | {"spot": np.nan})
    with pytest.raises(DataError, match="`state` is for a policy that remembers"):
        model.predict(row, state=np.zeros((1, 3)))
    with pytest.raises(UserError, match="a file for each of 2 policies, got 1"):
        export_hedger(hedger, tmp_path / "model.onnx")


def test_a_policy_that_remembers_has_its_memory_as_input_and_output(tmp_path):
    _, model = exports_what_it_holds("gru", tmp_path)
    assert model.metadata["state"] == 8
    row = {"spot": 100.0, "date": 1, "before spot": 0.5}
    with pytest.raises(DataError, match="`state` must be given after the first date, row 0"):
        model.predict(row)
    for state, told in ((np.zeros((1, 7)), "shape .1, 8., got shape .1, 7."), ("none", "must be numbers")):
        with pytest.raises(DataError, match=told):
            model.predict(row, state=state)
    first = row | {"date": 0, "before spot": 0.0}
    left_out, zeros = model.predict(first), model.predict(first, state=np.zeros((1, 8)))
    np.testing.assert_array_equal(left_out["holdings"], zeros["holdings"])


def test_a_band_around_the_delta_of_several_options_is_exported(tmp_path):
    book = Book(((2.0, pr.European(100.0, T)), (-3.0, pr.European(101.0, 2 / 365, "put"))))
    market = replace(ONE, information=("time_to_horizon", "book_delta"))
    trainer = qfml.Trainer(max_epochs=1, batch_size=64, seed=1)
    settings = {"trainer": trainer, "steps_per_epoch": 2, "n_validation": 64}
    policy = FeedForward(hidden=(8,), holding=Band(("book_delta",)))
    hedger = deep_hedge(market, book, Entropic(1.0), policy=policy, **settings)
    assert list(hedger.quantities) == ["spot"]
    (export,) = export_hedger(hedger, tmp_path / "model.onnx")
    assert export.parity.n_points >= 10_000
    assert export.parity.largest < 2e-6
    paths = hedger.paths(200, seed=7)
    spot = paths.prices[..., 0].double() * market.simulated_market.growth(market.times)
    found = replayed(load_exported(export.path), hedger, {"spot": spot}, 200)
    np.testing.assert_allclose(found, hedger.holdings(paths)[0], rtol=0, atol=1e-4)  # of prices in single precision


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("feed_forward", "gru", "rules")])
def test_every_policy_replayed_holds_what_it_holds(name, tmp_path):
    exports_what_it_holds(name, tmp_path)


@pytest.mark.slow
def test_lots_replayed_are_those_of_the_policy(tmp_path):
    """Rounding decides where two lots are equally near: paths that come so near there are left out."""
    hedger = hedged("rules")
    paths, seen = observed(hedger, 500)
    free = replace(hedger.policy, rules=TradingRules())
    own = {name: value[None] for name, value in hedger.fits[0].named_parameters().items()}
    held, wanted, clear = torch.zeros(500, 2), [], torch.ones(500, dtype=torch.bool)
    for date in range(STEPS):
        wish = free.step(own, paths.features[None, :, date], held[None], date)[0][0].detach()
        clear &= decided(hedger.rules, wish)
        held = hedger.rules.of(wish)
        wanted.append(held)
    assert int(clear.sum()) > 450
    (export,) = export_hedger(hedger, tmp_path / "model.onnx", members=[0])
    assert export.parity.n_points >= 10_000
    found = replayed(load_exported(export.path), hedger, seen, 500)
    np.testing.assert_allclose(found[clear], torch.stack(wanted, 1)[clear], rtol=0, atol=1e-6)


def test_what_cannot_be_exported_says_why():
    hedger = hedged("feed_forward", seeds=(0,))

    class Elsewhere:
        """A market of one's own, which tells no more than it must."""

        kind = "elsewhere"

        def __getattr__(self, name):
            if name == "sight":
                raise AttributeError(name)
            return getattr(TWO, name)

    with pytest.raises(ConfigError, match="market of kind 'elsewhere' does not tell"):
        _Graph(replace(hedger, market=Elsewhere()))

    class Other(Policy):
        kind = "other"
        init, step = Recurrent.init, Recurrent.step

    other = Other(feature_names=hedger.policy.feature_names, n_instruments=2)
    with pytest.raises(UserError, match="policy of kind 'other' cannot be exported, those of kind feed_forward"):
        _Graph(replace(hedger, members=(replace(hedger.members[0], network=other),)))


def test_a_hedger_saves_and_loads_itself(tmp_path):
    hedger = hedged("gru", seeds=(0,))
    hedger.save(tmp_path / "saved")
    again = Hedger.load(tmp_path / "saved")
    paths = hedger.paths(32, seed=5)
    assert torch.equal(again.holdings(paths), hedger.holdings(paths))
    assert again.quantities == hedger.quantities
