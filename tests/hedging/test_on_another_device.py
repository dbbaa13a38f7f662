"""Paths are made on the device of the training, and nothing on the way mixes that device with the CPU.

Without a GPU the other device is pretended (`elsewhere`): its numbers are those of the CPU, so that results must agree
to the last bit, or to rounding where tensors lie differently.
"""

import numpy as np
import pytest
import torch
from elsewhere import There, pretended

import pricers as pr
import qfml
from qfml.hedging import (
    Band,
    Book,
    BootstrappedReturns,
    DriftRemoved,
    Entropic,
    ExpectedShortfall,
    FeedForward,
    FixedPerTrade,
    ModelMarket,
    Option,
    Proportional,
    Quadratic,
    RecordedPaths,
    Spot,
    TradingRules,
    VarianceSwapHedge,
    deep_hedge,
)
from qfml.hedging.policies import POLICIES

HORIZON = 8 / 365
CALL = Book(((1.0, pr.European(100.0, HORIZON)),))
TODAY = pr.Market(100.0, rate=0.03, dividend_yield=0.01)
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.04, sigma=0.5, rho=-0.7)
MODELS = {
    "black_scholes": pr.BlackScholes(0.2),
    "heston": HESTON,
    "bates": pr.Bates(v0=0.04, kappa=2.0, theta=0.04, sigma=0.5, rho=-0.7, intensity=0.3, jump_mean=-0.1, jump_std=0.1),
    "merton": pr.Merton(vol=0.2, intensity=0.3, jump_mean=-0.1, jump_std=0.1),
    "sabr": pr.SABR(alpha=0.2, beta=1.0, rho=-0.3, nu=0.5),
    "rough_bergomi": pr.RoughBergomi(xi=0.04, eta=1.9, hurst=0.1, rho=-0.7),
    "rough_heston": pr.RoughHeston(v0=0.04, kappa=2.0, theta=0.04, sigma=0.3, rho=-0.7, hurst=0.1),
}
CONTRACTS = {
    "barrier": pr.Barrier(100.0, HORIZON, 99.0, kind="down-out", option="call"),
    "barrier on dates": pr.Barrier(
        100.0, HORIZON, 99.0, kind="down-in", option="call", monitoring=[HORIZON / 2, HORIZON]
    ),
    "asian": pr.Asian(100.0, [HORIZON / 2, HORIZON], option="call"),
    "continuous asian": pr.Asian(100.0, "continuous", option="call", expiry=HORIZON),
    "lookback": pr.Lookback(None, HORIZON, option="call"),
    "variance swap": pr.VarianceSwap(0.04, HORIZON),
    "digital": pr.Digital(100.0, HORIZON, option="put"),
}


def market(model=MODELS["black_scholes"], **changes):
    settings = {"n_steps": 4, "horizon": HORIZON, "information": ("log_moneyness", "time_to_horizon", "call_delta")}
    return ModelMarket(model, TODAY, **settings | changes)


def compare(source, book, monkeypatch, n_paths=16):
    here = source.paths(n_paths, book, seed=1)
    with pretended(monkeypatch) as device:
        there = source.paths(n_paths, book, seed=1, device=device)
        for name in ("prices", "liability", "features"):
            made = getattr(there, name)
            assert isinstance(made, There), name
            torch.testing.assert_close(made.here, getattr(here, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_paths_of_every_model_are_made_there(model, monkeypatch):
    seen = ("log_moneyness", "time_to_horizon", "call_delta", "book_delta", "vol")
    compare(market(MODELS[model], information=seen), CALL, monkeypatch)


@pytest.mark.parametrize("model", ["black_scholes", "heston", "merton"])
def test_prices_of_the_instruments_are_made_there(model, monkeypatch):
    traded = (Spot(), Option(100.0, 2 * HORIZON), Option(98.0, HORIZON, "put"), VarianceSwapHedge(HORIZON))
    compare(market(MODELS[model], instruments=traded, information=("prices",), drift=0.1), CALL, monkeypatch)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_books_are_seen_and_paid_there(contract, monkeypatch):
    book = Book(((2.0, CONTRACTS[contract]), (-1.0, pr.European(100.0, HORIZON))))
    compare(market(information=("log_moneyness", *book.observable_names)), book, monkeypatch)


def test_recorded_resampled_and_driftless_paths_go_there(monkeypatch):
    record = 100.0 * np.exp(np.random.default_rng(0).normal(0.0, 0.01, (64, 5)).cumsum(1))
    record /= record[:, :1] / 100.0
    days = BootstrappedReturns(
        {"kind": "arch", "name": "sp500"}, n_steps=5, block_length=2, keep_drift=False, periods_per_year=365.0
    )
    compare(RecordedPaths(array=record, times=np.arange(5) * HORIZON / 4), CALL, monkeypatch, None)
    compare(days, Book(((1.0, pr.European(1.0, 5 / 365)),)), monkeypatch)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=2, batch_size=256, seed=1)
    small = {"steps_per_epoch": 50, "n_validation": 64, "n_measured": 4096}
    compare(DriftRemoved(market(drift=0.1), trainer, **small), CALL, monkeypatch)


TRAININGS = {
    "a stack": {"seeds": (0, 1), "aversions": (1.0, 10.0)},
    "a band and all costs": {
        "policy": FeedForward(hidden=(8,), holding=Band(("call_delta",)), sees_holdings=False),
        "costs": (Proportional(1e-3), FixedPerTrade(1e-4, 1e-3), Quadratic(0.1)),
        "cost_levels": (0.5, 1.0),
        "unwind": True,
    },
    "the exact form": {"exact": True},
    "expected shortfall": {"objective": ExpectedShortfall(0.5)},
    "limits and lots": {"rules": TradingRules(-1.0, 1.0, lot=0.1)},
    "an option": {"market": market(instruments=(Spot(), Option(100.0, 2 * HORIZON)), information=("prices", "vol"))},
    "a long horizon": {"policy": FeedForward(hidden=(8,), checkpoint=True)},
    **{kind: {"policy": made()} for kind, made in POLICIES.items()},
}


def trained(device, changes):
    trainer = qfml.Trainer(
        optimizer=qfml.AdamW(lr=3e-3), max_epochs=2, batch_size=32, seed=1, clip_norm=1.0, device=device
    )
    settings = {"market": market(), "book": CALL, "objective": Entropic(0.1), "n_validation": 32, "steps_per_epoch": 2}
    hedger = deep_hedge(**settings | {"policy": FeedForward(hidden=(8,)), "trainer": trainer} | changes)
    return torch.stack([fit.parameters for fit in hedger.fits])


@pytest.mark.parametrize("training", TRAININGS)
def test_training_stays_there(training, monkeypatch):
    here = trained("cpu", TRAININGS[training])
    with pretended(monkeypatch) as device:
        there = trained(device, TRAININGS[training])
    torch.testing.assert_close(there.here, here, rtol=0, atol=1e-6)


def test_the_paths_of_a_step_are_made_there_and_not_moved(monkeypatch):
    asked = []
    paths = ModelMarket.paths

    def watched(self, n_paths, book, seed, number=0, dtype=torch.float32, device="cpu"):
        asked.append((number < 2**40, str(device)))
        return paths(self, n_paths, book, seed, number, dtype, device)

    monkeypatch.setattr(ModelMarket, "paths", watched)
    with pretended(monkeypatch) as device:
        trained(device, {})
    assert asked.count((True, device)) == 4  # steps
    assert {where for step, where in asked if not step} == {"cpu"}  # the paths that epochs are judged on, once


def test_the_pretended_device_refuses_what_a_gpu_refuses(monkeypatch):
    with pretended(monkeypatch) as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert (there + 1.0).device.type == device
        assert (there * torch.tensor(2.0)).sum().item() == 6.0  # a scalar may come from the CPU
        for mixed in (
            lambda: there + here,
            lambda: torch.stack([there, here]),
            lambda: here.index_select(0, there.long()),
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()
        torch.testing.assert_close((there + here.to(device)).cpu(), torch.full((3,), 2.0))
        assert there[torch.tensor([0, 1])].shape == (2,)  # indices may


@pytest.mark.gpu
def test_a_gpu_finds_the_price_of_the_cpu(device):
    """Its normals are others, so that the two differ by the noise of 256 steps and of the judgement."""
    settings = {"steps_per_epoch": 128, "n_validation": 4096}
    prices = []
    for where in ("cpu", str(device)):
        trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=3e-3), max_epochs=2, batch_size=1024, seed=1, device=where)
        hedger = deep_hedge(
            market(), CALL, Entropic(0.1), policy=FeedForward(hidden=(16,)), trainer=trainer, **settings
        )
        prices.append(float(hedger.price(hedger.paths(2**14, seed=2)).value))
    assert prices[1] == pytest.approx(prices[0], rel=0.02)
