"""What training minimises: P&L by a loop in plain Python, costs at unwinding and fixed ones included, and their say."""

import math

import pytest
import torch

import pricers as pr
import qfml
from qfml.hedging import (
    Book,
    Entropic,
    ExpectedShortfall,
    FeedForward,
    FixedPerTrade,
    ModelMarket,
    PathSet,
    Proportional,
    Quadratic,
    deep_hedge,
    gains,
)
from qfml.hedging.loss import labels_of, loss_of, unpacked

RATE, AMOUNT, SMOOTH, IMPACT = (0.01, 0.02), 0.03, 0.1, 0.004
COSTS = (Proportional(RATE), FixedPerTrade(AMOUNT, smooth=SMOOTH), Quadratic(IMPACT))
LEVELS = (0.5, 2.0)
N_PATHS, N_DATES, N_INSTRUMENTS = 6, 4, 2


def paths():
    draw = torch.Generator().manual_seed(1)
    prices = 1.0 + 0.1 * torch.rand(N_PATHS, N_DATES, N_INSTRUMENTS, generator=draw)
    liability, features = torch.rand(N_PATHS, generator=draw), torch.rand(N_PATHS, N_DATES, 1, generator=draw)
    times = torch.arange(N_DATES, dtype=torch.float64)
    return PathSet(times, prices, liability, features, ("spot", "option"), ("x",))


def holdings():
    held = torch.randn(2, N_PATHS, N_DATES - 1, N_INSTRUMENTS, generator=torch.Generator().manual_seed(2))
    held[:, 0, 1] = held[:, 0, 0]  # a date without a trade, which costs nothing
    held[:, 1, -1] = 0.0  # nothing is left to sell
    return held


def by_a_loop(made, held, level, unwind, smooth):
    found = []
    for path in range(N_PATHS):
        total = -float(made.liability[path])
        for place in range(N_INSTRUMENTS):
            price = [float(made.prices[path, date, place]) for date in range(N_DATES)]
            own = [float(held[path, date, place]) for date in range(N_DATES - 1)]
            total += sum(own[date] * (price[date + 1] - price[date]) for date in range(N_DATES - 1))
            trades = [now - before for before, now in zip([0.0, *own], [*own, 0.0 if unwind else own[-1]], strict=True)]
            for date, trade in enumerate(trades):
                total -= level * RATE[place] * abs(trade) * price[date]
                total -= level * IMPACT * trade**2 * price[date]
                fixed = 1.0 - math.exp(-((trade / SMOOTH) ** 2)) if smooth else float(trade != 0.0)
                total -= level * AMOUNT * fixed
        found.append(total)
    return found


@pytest.mark.parametrize("unwind", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_the_pnl_that_is_trained_on_is_that_of_a_loop(unwind, exact):
    made, held = paths(), holdings()
    loss = loss_of(ExpectedShortfall(0.5), COSTS, made, unwind=unwind, exact=exact)
    labels = labels_of(made, torch.tensor([[0.5, level, 0.0, 1.0] for level in LEVELS]))
    level = torch.zeros(2, N_PATHS, 1 if exact else loss.n_outputs - loss.n_holdings)
    output = torch.cat([held.flatten(2), level], -1)
    for smooth in (True, False):
        found = loss.pnl(output, unpacked(labels, N_INSTRUMENTS), smooth=smooth)
        for member, own in enumerate(LEVELS):
            wanted = by_a_loop(made, held[member], own, unwind, smooth)
            torch.testing.assert_close(found[member], torch.tensor(wanted), rtol=0, atol=2e-6)
    judged = gains(held, made, COSTS, torch.tensor(LEVELS), unwind).pnl  # which is never smooth
    torch.testing.assert_close(judged, found, rtol=0, atol=2e-6)
    # what is minimised is the smooth one
    trained = torch.tensor([by_a_loop(made, held[member], own, unwind, True) for member, own in enumerate(LEVELS)])
    if exact:
        value = loss(output, labels, torch.ones(2, N_PATHS))
        torch.testing.assert_close(value, -trained.sort(1).values[:, : N_PATHS // 2].mean(1), rtol=0, atol=2e-6)
    else:
        rows = (-trained).clamp_min(0.0) / 0.5  # at a level of 0
        torch.testing.assert_close(loss.rows(output, labels), rows, rtol=0, atol=4e-6)


def trained(**changes):
    market = ModelMarket(pr.BlackScholes(0.2), pr.Market(1.0), n_steps=3, horizon=30 / 365)
    trainer = qfml.Trainer(optimizer=qfml.AdamW(lr=1e-2), max_epochs=2, batch_size=512, seed=1)
    settings = {"policy": FeedForward(hidden=(16,)), "trainer": trainer, "n_validation": 1024, "steps_per_epoch": 60}
    book = Book(((1.0, pr.European(0.9, 30 / 365)),))  # in the money: it is held to the end
    return deep_hedge(market, book, Entropic(30.0), **settings | changes)


def test_a_policy_that_must_sell_at_a_cost_holds_less_at_the_end():
    costs = {"costs": (Proportional(0.01),)}
    kept, sold = trained(**costs), trained(**costs, unwind=True)
    fresh = kept.paths(2048, seed=2)
    assert float(sold.holdings(fresh)[..., -1, 0].mean()) < 0.9 * float(kept.holdings(fresh)[..., -1, 0].mean())
    assert float(sold.price(fresh).value) < float(
        kept.loss.objective.price(gains(kept.holdings(fresh), fresh, kept.loss.costs, 1.0, True).pnl).value
    )


def test_a_policy_that_pays_for_each_trade_trades_less():
    free, paying = trained(), trained(costs=(FixedPerTrade(0.02, smooth=0.1),))
    fresh = free.paths(2048, seed=2)

    def traded(hedger):
        held = hedger.holdings(fresh)[..., 0]
        return float((held.diff(dim=-1).abs() > 0.05).float().mean())

    assert traded(paying) < 0.5 * traded(free)
