"""P&L and costs of holdings against loops over members, paths, dates and instruments, and by their own axioms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfml.config import build_kind, to_dict
from qfml.errors import ConfigError, DataError
from qfml.hedging.costs import COSTS, FixedPerTrade, Proportional, Quadratic, check_costs, total_cost
from qfml.hedging.gains import gains
from qfml.hedging.paths import PathSet

EXAMPLES = [
    Proportional(0.003),
    Proportional((0.0, 0.02)),
    FixedPerTrade(0.7, smooth=0.05),
    FixedPerTrade((0.1, 0.0)),
    Quadratic(0.04),
    Quadratic((0.01, 0.2)),
]


def paths_of(n_paths=5, n_times=4, n_instruments=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    prices = 1 + torch.rand(n_paths, n_times, n_instruments, generator=generator, dtype=torch.float64)
    liability = torch.rand(n_paths, generator=generator, dtype=torch.float64)
    times = torch.arange(n_times, dtype=torch.float64) / 10
    names = tuple(f"instrument {k}" for k in range(n_instruments))
    return PathSet(times, prices, liability, prices, names, names)


def holdings_of(paths, n_members=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_members, len(paths), paths.n_steps, paths.n_instruments)
    holdings = torch.randn(shape, generator=generator, dtype=torch.float64)
    holdings[:, :, 1] = holdings[:, :, 0]  # a date without a trade
    return holdings


def cost_by_hand(cost, trade, price, k):
    (value,) = cost.settings.values()
    value = value[k] if isinstance(value, tuple) else value
    if isinstance(cost, Proportional):
        return value * abs(trade) * price
    return value * trade**2 * price if isinstance(cost, Quadratic) else value * (trade != 0)


@pytest.mark.parametrize("unwind", [False, True])
@pytest.mark.parametrize("costs", [[], *([cost] for cost in EXAMPLES), EXAMPLES], ids=str)
def test_gains_equal_a_loop(costs, unwind):
    paths = paths_of()
    holdings, levels = holdings_of(paths), [1.0, 0.5, 0.0]
    found = gains(holdings, paths, costs, cost_level=torch.tensor(levels), unwind=unwind)
    for m, level in enumerate(levels):
        for b in range(len(paths)):
            trading = cost = turnover = 0.0
            for k in range(2):
                before = 0.0
                for date in range(paths.n_steps + unwind):
                    price = float(paths.prices[b, date, k])
                    after = float(holdings[m, b, date, k]) if date < paths.n_steps else 0.0
                    cost += level * sum(cost_by_hand(each, after - before, price, k) for each in costs)
                    turnover += abs(after - before) * price
                    if date < paths.n_steps:
                        trading += after * (float(paths.prices[b, date + 1, k]) - price)
                    before = after
            expected = {"trading": trading, "cost": cost, "turnover": turnover}
            expected["pnl"] = trading - cost - float(paths.liability[b])
            for name, value in expected.items():
                assert float(getattr(found, name)[m, b]) == pytest.approx(value, abs=1e-12), name


def test_the_first_trade_is_charged_and_a_standing_position_is_not():
    paths = paths_of(n_instruments=1)
    found = gains(torch.ones(1, 5, 3, 1, dtype=torch.float64), paths, [Proportional(0.01), FixedPerTrade(2.0)])
    torch.testing.assert_close(found.cost[0], 2.0 + 0.01 * paths.prices[:, 0, 0])
    torch.testing.assert_close(found.turnover[0], paths.prices[:, 0, 0])


@pytest.mark.parametrize("costs", [[], [Proportional((0.01, 0.02)), Quadratic(0.3), FixedPerTrade(0.4, smooth=0.3)]])
def test_gradients_in_the_holdings(costs):
    paths = paths_of(n_paths=2)
    holdings = torch.randn(2, 2, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def pnl(held):
        return gains(held, paths, costs, cost_level=torch.tensor([1.0, 2.0]), unwind=True, smooth=True).pnl

    assert torch.autograd.gradcheck(pnl, holdings.requires_grad_())


def test_smoothed_amount_goes_to_the_exact_one_and_is_never_judged():
    trade, price = torch.tensor([[0.3], [0.0], [-1e-3]], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    exact = FixedPerTrade(0.7, smooth=1e-5).of(trade, price)
    assert exact.tolist() == [0.7, 0.0, 0.7]
    torch.testing.assert_close(FixedPerTrade(0.7, smooth=1e-5).smoothed(trade, price), exact)
    assert float(FixedPerTrade(1.0, smooth=0.3).smoothed(trade, price)[0]) == pytest.approx(1 - math.exp(-1))
    paths = paths_of()
    tiny = 1e-6 * holdings_of(paths)
    judged = gains(tiny, paths, [FixedPerTrade(0.5, smooth=0.1)]).cost
    torch.testing.assert_close(judged, torch.full_like(judged, 0.5 * 2 * 2))  # two trades in each of two instruments
    with pytest.raises(ConfigError, match=r"`smooth` of the cost `fixed_per_trade` must be given to train"):
        gains(tiny, paths, [FixedPerTrade(0.5)], smooth=True)


@pytest.mark.parametrize("cost", EXAMPLES, ids=str)
@given(buy=st.floats(-5, 5), scale=st.floats(0.1, 1))
def test_costs_are_symmetric_and_no_less_for_a_larger_trade(cost, buy, scale):
    trade, price = torch.tensor([buy, -0.5 * buy], dtype=torch.float64), torch.tensor([2.0, 3.0], dtype=torch.float64)
    assert float(cost.of(trade, price)) == float(cost.of(-trade, price)) >= 0
    assert float(cost.of(scale * trade, price)) <= float(cost.of(trade, price)) + 1e-15


@pytest.mark.parametrize("cost", EXAMPLES, ids=str)
def test_costs_come_back_from_their_settings(cost):
    assert build_kind(COSTS, to_dict(cost)) == cost


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "proportional", "rate": 1.0}, r"`rate` must be in \[0, 1\)"),
        ({"kind": "proportional", "rate": 10}, r"`rate` must be in \[0, 1\).*ten basis points, got 10"),
        ({"kind": "proportional", "rate": -1e-3}, r"`rate` must be in \[0, 1\)"),
        ({"kind": "proportional", "rate": [1e-3, math.nan]}, r"`rate` must be in \[0, 1\)"),
        ({"kind": "proportional", "rate": []}, r"`rate` must be in \[0, 1\)"),
        ({"kind": "fixed_per_trade", "amount": -1.0}, "`amount` must be at least 0 and finite"),
        ({"kind": "fixed_per_trade", "amount": math.inf}, "`amount` must be at least 0 and finite"),
        ({"kind": "fixed_per_trade", "amount": 1.0, "smooth": 0.0}, "`smooth` must be a trade above 0"),
        ({"kind": "quadratic", "impact": [0.1, -0.1]}, "`impact` must be at least 0 and finite"),
    ],
)
def test_costs_that_are_none_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_kind(COSTS, settings)


def test_costs_that_do_not_fit_are_refused():
    paths = paths_of()
    holdings = holdings_of(paths)
    with pytest.raises(ConfigError, match=r"`rate` of the cost `proportional` must be .* each of the 2 .* got 3"):
        gains(holdings, paths, [Proportional((0.1, 0.1, 0.1))])
    with pytest.raises(ConfigError, match=r"below 100 % of what is traded, got 120%"):
        gains(holdings, paths, [Proportional(0.6), Proportional((0.1, 0.6))])
    with pytest.raises(ConfigError, match=r"got 120% at a `cost_level` of 2"):
        gains(holdings, paths, [Proportional(0.6)], cost_level=[0.0, 1.0, 2.0])
    for level in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="`cost_level` must be at least 0"):
            gains(holdings, paths, [], cost_level=level)
    with pytest.raises(DataError, match=r"`cost_level` must be a number or one for each of the 3 members"):
        gains(holdings, paths, [], cost_level=[1.0, 2.0])
    with pytest.raises(DataError, match=r"`holdings` must have shape \(members, 5 paths, 3 periods, 2 instruments\)"):
        gains(holdings[:, :, :2], paths)
    check_costs(EXAMPLES, n_instruments=2)


def test_without_costs_nothing_is_paid():
    assert total_cost([], torch.ones(4, 3, 2), torch.ones(3, 2)).tolist() == torch.zeros(4, 3).tolist()
