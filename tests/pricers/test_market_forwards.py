"""Forwards, discount factors and curves against their definitions, and time grids against brute force."""

import math
from itertools import pairwise

import pytest
import torch
from references_dax import DAYS, SPOT, ZERO_RATES

import pricers as pr
from pricers.paths import Paths, merged_dates, time_grid


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def linear(times, rates, time):
    """Linear between the nodes and flat outside, in plain Python."""
    if time <= times[0]:
        return rates[0]
    for (t0, t1), (r0, r1) in zip(pairwise(times), pairwise(rates)):
        if time <= t1:
            return r0 + (r1 - r0) * (time - t0) / (t1 - t0)
    return rates[-1]


TIMES, RATES = [0.1, 0.5, 1.0, 3.0], [0.03, 0.035, 0.02, 0.04]


def test_flat_rates_give_the_textbook_forward():
    market = pr.Market(spot=[90.0, 110.0], rate=0.05, dividend_yield=0.02)
    time = number([[0.5], [2.0], [7.0]])
    torch.testing.assert_close(market.forward(time), market.spot * torch.exp(0.03 * time), rtol=1e-15, atol=0)
    torch.testing.assert_close(market.discount(time), torch.exp(-0.05 * time), rtol=1e-15, atol=0)
    assert market.batch_shape() == (2,)


@pytest.mark.parametrize("time", [0.0, 0.05, 0.1, 0.3, 0.5, 0.99, 1.0, 2.0, 3.0, 10.0])
def test_a_curve_is_linear_in_the_zero_rate_and_flat_outside(time):
    curve = pr.ZeroCurve(TIMES, RATES)
    assert curve.zero_rate(number(time)).item() == pytest.approx(linear(TIMES, RATES, time), rel=1e-14)
    market = pr.Market(100.0, curve, pr.ZeroCurve([1.0], [0.01]))
    assert market.discount(number(time)).item() == pytest.approx(
        math.exp(-linear(TIMES, RATES, time) * time), rel=1e-14
    )
    expected = 100.0 * math.exp((linear(TIMES, RATES, time) - 0.01) * time)
    assert market.forward(number(time)).item() == pytest.approx(expected, rel=1e-14)


def test_a_batch_of_curves_is_each_of_them():
    rates = number([[0.01, 0.02, 0.03, 0.04], [0.05, 0.04, 0.03, 0.02]])
    time = number([[0.05], [0.7], [5.0]])
    batch = pr.ZeroCurve(TIMES, rates)
    assert batch.batch_shape == (2,)
    found = batch.zero_rate(time)
    assert found.shape == (3, 2)
    for index in range(2):
        torch.testing.assert_close(found[:, index], pr.ZeroCurve(TIMES, rates[index]).zero_rate(time[:, 0]))
    assert pr.Market(100.0, batch).forward(number(1.0)).shape == (2,)


def test_the_gradient_of_a_discount_factor_goes_to_the_two_nodes_beside_it():
    rates = number(RATES).requires_grad_()
    (slope,) = torch.autograd.grad(pr.ZeroCurve(TIMES, rates).integral(number(0.7)), rates)
    torch.testing.assert_close(slope, number([0.0, 0.6 * 0.7, 0.4 * 0.7, 0.0]))


@pytest.mark.parametrize("curve_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("time_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batched", [False, True])
def test_curves_promote_like_any_other_number(curve_dtype, time_dtype, batched):
    rates = number([RATES, RATES] if batched else RATES, curve_dtype)
    curve = pr.ZeroCurve(number(TIMES, curve_dtype), rates)
    time = number([0.3, 0.7], time_dtype)
    assert curve.zero_rate(time).dtype == torch.promote_types(curve_dtype, time_dtype)
    torch.testing.assert_close(
        curve.zero_rate(time).double().reshape(-1, 2)[0],
        number([linear(TIMES, RATES, 0.3), linear(TIMES, RATES, 0.7)]),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("elapsed", [0.0, 0.05, 0.1, 0.3, 0.75, 2.0, 5.0])
@pytest.mark.parametrize("batched", [False, True])
def test_a_market_rolled_forward_keeps_its_forward_rates(elapsed, batched):
    rates = number([RATES, RATES[::-1]]) if batched else number(RATES)
    market = pr.Market(100.0, pr.ZeroCurve(TIMES, rates), pr.ZeroCurve([0.2, 4.0], [0.01, 0.03]))
    later = market.shifted(number(elapsed))
    for time in (0.01, 0.25, 0.6, 1.0, 2.5, 8.0):
        end, start = number(elapsed + time), number(elapsed)
        wanted = market.discount(end) / market.discount(start)
        torch.testing.assert_close(later.discount(number(time)), wanted, rtol=1e-13, atol=0)
        wanted = 100.0 * market.forward(end) / market.forward(start)
        torch.testing.assert_close(later.forward(number(time)), wanted, rtol=1e-13, atol=0)
        twice = market.shifted(0.4 * start).shifted(0.6 * start)
        torch.testing.assert_close(twice.discount(number(time)), later.discount(number(time)), rtol=1e-13, atol=0)
    assert torch.equal(later.spot, market.spot)


def test_flat_markets_stay_as_they_are_when_time_passes():
    market = pr.Market(100.0, 0.03, 0.01)
    later = market.shifted(number(0.5))
    assert torch.equal(later.forward(number(1.0)), market.forward(number(1.0)))


def test_cash_dividends_come_off_the_forward_with_interest():
    market = pr.Market(100.0, 0.05, 0.0, pr.CashDividends(times=[0.25, 0.75], amounts=[2.0, 3.0]))
    for time, paid in ((0.2, ()), (0.25, ((0.25, 2.0),)), (1.0, ((0.25, 2.0), (0.75, 3.0)))):
        # who sells forward today holds the stock, and the dividends with interest from their dates
        wanted = 100.0 * math.exp(0.05 * time) - sum(cash * math.exp(0.05 * (time - day)) for day, cash in paid)
        assert market.forward(number(time)).item() == pytest.approx(wanted, rel=1e-14)
    later = market.shifted(number(0.1))
    torch.testing.assert_close(later.dividends.times, number([0.15, 0.65]))


def test_zero_rates_of_the_dax_are_given_back_at_their_nodes():
    times = [days / 365 for days in DAYS]
    market = pr.Market(SPOT, pr.ZeroCurve([0.0, *times], [ZERO_RATES[0], *ZERO_RATES]))
    for time, rate in zip(times, ZERO_RATES):
        assert market.discount(number(time)).item() == pytest.approx(math.exp(-rate * time), rel=1e-14)
        assert market.forward(number(time)).item() == pytest.approx(SPOT * math.exp(rate * time), rel=1e-14)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pr.Market(0.0), ["`spot`", "above 0", "got 0"]),
        (lambda: pr.Market(-1.0), ["`spot`", "got -1"]),
        (lambda: pr.Market(math.nan), ["`spot`", "nan"]),
        (lambda: pr.Market([100.0, math.inf]), ["`spot`", "inf", "index 1"]),
        (lambda: pr.Market(100.0, math.nan), ["`rate`", "nan"]),
        (lambda: pr.Market(100.0, "3 %"), ["`rate`", "'3 %'"]),
        (lambda: pr.Market(100.0, None), ["`rate`", "None"]),
        (lambda: pr.Market(100.0, 0.0, math.inf), ["`dividend_yield`", "inf"]),
        (lambda: pr.ZeroCurve([1.0, 0.5], [0.01, 0.02]), ["`times`", "ascend", "0.5"]),
        (lambda: pr.ZeroCurve([0.5, 0.5], [0.01, 0.02]), ["`times`", "ascend"]),
        (lambda: pr.ZeroCurve([-0.5, 0.5], [0.01, 0.02]), ["`times`", "-0.5"]),
        (lambda: pr.ZeroCurve([], []), ["`times`", "at least one"]),
        (lambda: pr.ZeroCurve([0.5, 1.0], [0.01]), ["`rates`", "(1,)", "(2,)"]),
        (lambda: pr.ZeroCurve([0.5, 1.0], 0.01), ["`rates`", "()"]),
        (lambda: pr.ZeroCurve([[0.5, 1.0]], [0.01, 0.02]), ["`times`", "(1, 2)"]),
        (lambda: pr.ZeroCurve([0.5, math.nan], [0.01, 0.02]), ["`times`", "nan"]),
        (lambda: pr.CashDividends([0.5], [-1.0]), ["`amounts`", "-1"]),
        (lambda: pr.CashDividends([0.0], [1.0]), ["`times`", "got 0"]),
        (lambda: pr.CashDividends([0.5, 0.25], [1.0, 1.0]), ["`times`", "ascend"]),
        (lambda: pr.CashDividends([0.5, 0.75], [1.0]), ["(2,)", "(1,)"]),
    ],
)
def test_bad_markets_are_refused_by_name(make, words):
    with pytest.raises(ValueError, match="`") as refused:
        make()
    for word in words:
        assert word in str(refused.value)


def test_assets_are_the_last_axis_under_a_model_of_several():
    market = pr.Market([[100.0, 90.0]] * 3, number([0.01, 0.02, 0.03]), [0.01, 0.02])
    assert market.batch_shape(2) == (3,)
    forwards = market.asset_forwards(number(2.0))
    rate = number([0.01, 0.02, 0.03])[:, None]
    torch.testing.assert_close(forwards, number([100.0, 90.0]) * torch.exp(2.0 * (rate - number([0.01, 0.02]))))
    for spot, income in ((100.0, 0.0), ([1.0, 2.0, 3.0], 0.0), ([1.0, 2.0], [0.1, 0.1, 0.1])):
        with pytest.raises(ValueError, match="last axis"):
            pr.Market(spot, 0.0, income).batch_shape(2)


def test_the_defaults_follow_the_precision_of_the_spot():
    market = pr.Market(number(100.0, torch.float32))
    assert market.forward(number(1.0, torch.float32)).dtype == torch.float32
    assert pr.Market(100.0).rate.dtype == torch.float64
    assert pr.Market(number(100.0, torch.float32), 0.01).rate.dtype == torch.float64  # a number of the caller


# --- grids and paths ----------------------------------------------------------------------------------------------


def test_merged_dates_are_the_sorted_set():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        dates = torch.randint(1, 12, (3, 4), generator=generator).double() / 8
        wanted = sorted(set(dates.reshape(-1).tolist()))
        assert merged_dates(dates).tolist() == wanted
        assert merged_dates(dates + 1e-13 * torch.arange(4)).shape[0] == len(wanted)  # one date but for rounding


@pytest.mark.parametrize("n_steps", [None, 1, 2, 7, 50])
def test_the_grid_has_all_dates_and_no_step_that_is_too_long(n_steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        dates = torch.rand(5, generator=generator, dtype=torch.float64).mul(3.0).sort().values
        grid = time_grid(dates, n_steps)
        assert grid[0] == 0.0
        assert (grid.diff() > 0).all()
        assert (grid[:, None] - dates).abs().amin(0).max() < 1e-12
        assert grid[-1] == dates[-1]
        if n_steps is None:
            assert grid.shape[0] == 6
            continue
        longest = dates[-1].item() / n_steps
        assert grid.diff().max() <= longest * (1 + 1e-6)
        nodes = [0.0, *dates.tolist()]
        wanted = sum(max(1, math.ceil((b - a) / longest * (1 - 1e-9))) for a, b in pairwise(nodes))
        assert grid.shape[0] == wanted + 1


def test_the_grid_keeps_the_graph_to_the_dates_and_ignores_today():
    dates = number([0.0, 0.5, 1.0]).requires_grad_()
    grid = time_grid(dates, 4)
    torch.testing.assert_close(grid.detach(), number([0.0, 0.25, 0.5, 0.75, 1.0]))
    (slope,) = torch.autograd.grad(grid.sum(), dates)
    torch.testing.assert_close(slope, number([0.0, 2.0, 1.5]))
    assert time_grid(number([0.0]), 4).tolist() == [0.0]


@pytest.mark.parametrize("n_assets", [1, 3])
@pytest.mark.parametrize("sim_batch", [(), (2,), (4, 1)])
@pytest.mark.parametrize("date_batch", [(), (2,), (1, 2)])
def test_paths_at_dates_are_looked_up_one_by_one(n_assets, sim_batch, date_batch):
    generator = torch.Generator().manual_seed(2)
    times = number([0.0, 0.25, 0.5, 1.0, 2.0])
    assets = (n_assets,) if n_assets > 1 else ()
    spot = torch.rand((*sim_batch, 6, 5, *assets), generator=generator, dtype=torch.float64)
    index = torch.randint(0, 5, (*date_batch, 3), generator=generator)
    dates = times[index] + 1e-12
    found = Paths(times, spot, n_asset_axes=len(assets)).at(dates)
    batch = torch.broadcast_shapes(sim_batch, date_batch)
    assert found.shape == (*batch, 6, 3, *assets)
    whole = spot.expand(*batch, 6, 5, *assets).reshape(-1, 6, 5, *assets)
    places = index.expand(*batch, 3).reshape(-1, 3)
    flat = found.reshape(-1, 6, 3, *assets)
    for element in range(whole.shape[0]):
        for column in range(3):
            assert torch.equal(flat[element][:, column], whole[element][:, places[element, column]])


def test_a_date_that_was_not_recorded_is_our_own_fault():
    paths = Paths(number([0.0, 1.0]), torch.ones(4, 2, dtype=torch.float64))
    with pytest.raises(AssertionError, match="not recorded"):
        paths.at(number([0.5]))
