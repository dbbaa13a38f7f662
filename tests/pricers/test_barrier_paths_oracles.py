"""Barrier payoffs along paths: a loop by hand, the closed form, the bridge's laws by fine simulation; bad input."""

import itertools
import math

import pytest
import torch

from pricers.analytic.barrier import barrier_formula
from pricers.instruments.barrier import Barrier, mean_hit_share, step_survival
from pricers.market import Market, ZeroCurve
from pricers.models.black_scholes import BlackScholes
from pricers.paths import Paths, time_grid

KINDS = ("down-out", "up-out", "down-in", "up-in")
ALL = list(itertools.product(KINDS, ("call", "put")))


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def exact_paths(dates, n_paths, market, vol, n_steps=None, seed=1):
    """Black-Scholes paths without bias at any step."""
    times = time_grid(dates, n_steps)
    generator = torch.Generator().manual_seed(seed)
    dt = times.diff()
    normals = torch.randn(n_paths // 2, dt.shape[0], generator=generator, dtype=torch.float64)
    normals = torch.cat([normals, -normals])
    variance = (vol**2 * dt).expand(n_paths, -1)
    log_ratio = (vol * dt.sqrt() * normals - 0.5 * vol**2 * dt).cumsum(-1)
    log_ratio = torch.cat([torch.zeros(n_paths, 1, dtype=torch.float64), log_ratio], dim=-1)
    return Paths(times, market.forward(times) * log_ratio.exp(), variance)


def within_four_errors(payoffs, expected, budget):
    """Antithetic pairs are one draw each."""
    pairs = 0.5 * sum(payoffs.chunk(2, dim=-1))
    error = pairs.std(dim=-1) / math.sqrt(pairs.shape[-1])
    assert (error <= budget).all()
    assert ((payoffs.mean(dim=-1) - expected).abs() <= 4.0 * error + 1e-12).all()


def loop_payoff(contract, paths, rate):
    """One path at a time, in plain Python; probabilities of the events of each step."""
    down, out = contract.kind.startswith("down"), contract.kind.endswith("out")
    sign = 1.0 if contract.option == "call" else -1.0
    strike, level, expiry = contract.strike.item(), contract.barrier.item(), contract.expiry.item()
    rebate, times, results = contract.rebate.item(), paths.times.tolist(), []
    for row, variances in zip(paths.spot.tolist(), paths.variance.tolist(), strict=True):
        alive, paid_rebate = 1.0, 0.0
        for i, v in enumerate(variances):
            if times[i + 1] > expiry:
                break
            a, b = (math.log(s / level) * (1.0 if down else -1.0) for s in row[i : i + 2])
            cross = 1.0 if b <= 0 or a <= 0 else math.exp(-2.0 * a * b / v)
            x = (max(a, 0.0) + abs(b)) / math.sqrt(v)
            mills = 0.5 * math.erfc(x / math.sqrt(2.0)) / (math.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi))
            when = times[i] + (times[i + 1] - times[i]) * max(a, 0.0) / math.sqrt(v) * mills
            paid_rebate += alive * cross * rebate * math.exp(-rate * when)
            alive *= 1.0 - cross
        final = row[times.index(expiry)]
        value = max(sign * (final - strike), 0.0) * math.exp(-rate * expiry)
        results.append(
            alive * value + paid_rebate if out else (1.0 - alive) * value + alive * rebate * math.exp(-rate * expiry)
        )
    return results


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_continuous_payoff_equals_a_loop(kind, option):
    market = Market(number(100.0), number(0.06), number(0.01))
    paths = exact_paths(torch.tensor([0.5, 1.0], dtype=torch.float64), 200, market, 0.3, n_steps=6)
    barrier = number(92.0 if kind.startswith("down") else 109.0)
    for expiry in (0.5, 1.0):  # one expiry lies within the paths
        contract = Barrier(number(100.0), number(expiry), barrier, kind, option, number(4.0))
        expected = loop_payoff(contract, paths, 0.06)
        assert contract.payoff(paths, market.discount).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_continuous_payoff_converges_to_the_closed_form(kind, option):
    """The bridge is exact under Black-Scholes: from 4 steps on, no bias but that of the rebate's discount in a step."""
    market = Market(number(100.0), number(0.08), number(0.04))
    strikes = torch.tensor([90.0, 110.0], dtype=torch.float64)
    barrier = number(88.0 if kind.startswith("down") else 112.0)
    contract = Barrier(strikes, number(0.5), barrier, kind, option, number(3.0))
    paths = exact_paths(contract.dates, 100_000, market, 0.25, n_steps=4)
    expected = barrier_formula(contract, BlackScholes(number(0.25)), market).value
    within_four_errors(contract.payoff(paths, market.discount), expected, budget=0.05)


def test_rebate_at_hit_is_unbiased_at_one_step():
    """One step of five years at 10 %: the mean hitting time leaves only the variance of the discount exponent."""
    market = Market(number(100.0), number(0.10), number(0.10))
    contract = Barrier(number(1e-6), number(1.0), number(85.0), "down-out", "put", number(100.0))
    expected = barrier_formula(contract, BlackScholes(number(0.25)), market).value
    coarse = exact_paths(contract.dates, 200_000, market, 0.25, n_steps=1)
    value = contract.payoff(coarse, market.discount).mean()
    # the second-order term is at most r^2 T^2 / 8 of the rebate: 0.125; a payment at the end of the step errs by 3
    assert abs(value - expected) < 0.06
    fine = exact_paths(contract.dates, 40_000, market, 0.25, n_steps=32)
    within_four_errors(contract.payoff(fine, market.discount), expected, budget=0.15)


def test_bridge_crossing_and_hitting_time_against_a_fine_bridge():
    """Walks of 1,000 steps between fixed ends, watched between their steps by the formula's own small-step limit."""
    generator, n_steps, n_paths = torch.Generator().manual_seed(3), 1_000, 2_000
    variance = 0.09
    for start, end in ((0.2, 0.3), (0.2, 0.05), (0.1, -0.2)):
        noise = torch.randn(n_paths, n_steps, generator=generator, dtype=torch.float64) * math.sqrt(variance / n_steps)
        time = torch.arange(1, n_steps + 1, dtype=torch.float64) / n_steps
        walk = noise.cumsum(-1)
        walk = start + walk - time * (walk[:, -1:] - (end - start))
        # a discretely watched level is a continuous one moved by 0.5826 sigma sqrt(dt) (Broadie, Glasserman, Kou 1997)
        below = walk <= 0.5826 * math.sqrt(variance / n_steps)
        hit = below.any(-1)
        first = (below.to(torch.uint8).argmax(-1) + 0.5) / n_steps
        log_survival, dead = step_survival(number(start), number(end), number(variance))
        crossing = 1.0 if dead else 1.0 - math.exp(log_survival)
        error = math.sqrt(crossing * (1.0 - crossing) / n_paths)
        assert abs(hit.double().mean().item() - crossing) <= 4.0 * error + 2e-3
        mean = first[hit].mean().item()
        error = first[hit].std().item() / math.sqrt(hit.sum().item())
        share = mean_hit_share(number(start), number(end), number(variance)).item()
        assert abs(mean - share) <= 4.0 * error + 2e-3


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_discrete_payoff_equals_a_loop(kind, option):
    market = Market(number(100.0), number(0.06), number(0.01))
    dates = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
    paths = exact_paths(torch.tensor([0.25, 0.5, 0.9, 1.0], dtype=torch.float64), 300, market, 0.3)
    down, out, level = kind.startswith("down"), kind.endswith("out"), 95.0 if kind.startswith("down") else 106.0
    contract = Barrier(number(100.0), number(1.0), number(level), kind, option, number(4.0), monitoring=dates)
    assert contract.dates.tolist() == [0.25, 0.5, 0.9, 1.0]
    assert not contract.continuous
    assert contract.discontinuous
    ours = contract.payoff(Paths(paths.times, paths.spot), market.discount)  # no variance is needed
    seen = set()
    for row, value in zip(paths.spot.tolist(), ours.tolist(), strict=True):
        hits = [t for t, s in zip((0.25, 0.5, 0.9), row[1:4], strict=True) if (s <= level if down else s >= level)]
        seen.add(hits[0] if hits else None)
        final = max((row[4] - 100.0) * (1.0 if option == "call" else -1.0), 0.0) * math.exp(-0.06)
        if out:
            expected = 4.0 * math.exp(-0.06 * hits[0]) if hits else final
        else:
            expected = final if hits else 4.0 * math.exp(-0.06)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-13)
    assert seen == {None, 0.25, 0.5, 0.9}


def test_touching_on_a_date_is_crossing():
    paths = Paths(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([[100.0, 95.0]], dtype=torch.float64))
    for kind, expected in (("down-out", 0.0), ("down-in", 5.0)):
        contract = Barrier(number(90.0), number(1.0), number(95.0), kind, "call", monitoring=[1.0])
        assert contract.payoff(paths, torch.ones_like).item() == expected


def test_watching_more_often_knocks_out_more_and_continuously_the_most():
    market = Market(number(100.0), number(0.03))
    paths = exact_paths(number(1.0), 2_000, market, 0.3, n_steps=32)
    arguments = (number(100.0), number(1.0), number(90.0), "down-out", "put")
    values = [
        Barrier(*arguments, monitoring=paths.times[1:][every - 1 :: every]).payoff(paths, market.discount)
        for every in (32, 8, 2, 1)
    ]
    values.append(Barrier(*arguments).payoff(paths, market.discount))
    for seldom, often in itertools.pairwise(values):
        assert (often <= seldom + 1e-14).all()
        assert often.mean() < seldom.mean()


def test_batches_of_contract_and_simulation_broadcast():
    """A batch of spots under a batch of rates, a batch of contracts with two expiries: each as if alone."""
    spots, rates = torch.tensor([100.0, 104.0], dtype=torch.float64), torch.tensor([[0.0], [0.08]], dtype=torch.float64)
    market = Market(spots, rates)
    times = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    walk = exact_paths(times[1:], 50, Market(number(1.0)), 0.3)
    spot = market.forward(times.reshape(-1, 1, 1)).movedim(0, -1).unsqueeze(-2) * walk.spot  # 2 2 paths times
    expiry = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    for kind, monitoring in itertools.product(
        ("down-out", "down-in"), ("continuous", torch.tensor([[[0.25, 0.5]]]).double())
    ):
        contract = Barrier(number(101.0), expiry, number(93.0), kind, "put", number(2.0), monitoring)
        values = contract.payoff(Paths(times, spot, walk.variance), market.discount)
        assert values.shape == (2, 2, 50)
        for row, column in itertools.product(range(2), range(2)):
            dates = monitoring if isinstance(monitoring, str) else monitoring.reshape(-1)
            single = Barrier(number(101.0), expiry[row, 0], number(93.0), kind, "put", number(2.0), dates)
            rate = rates[row, 0]

            def discount(time, rate=rate):
                return torch.exp(-rate * time)

            alone = single.payoff(Paths(times, spot[row, column], walk.variance), discount)
            torch.testing.assert_close(values[row, column], alone, rtol=1e-13, atol=1e-13)


def test_rebate_at_hit_under_a_curve():
    """Discount factors come from the curve, step by step."""
    curve = ZeroCurve(*torch.tensor([[0.25, 1.0], [0.02, 0.10]], dtype=torch.float64))
    market = Market(number(100.0), curve)
    spot = torch.tensor([[100.0, 90.0, 80.0, 70.0]], dtype=torch.float64)
    times = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    contract = Barrier(number(50.0), number(1.0), number(85.0), "down-out", "call", number(1.0))
    small = torch.full((1, 3), 1e-4, dtype=torch.float64)  # nearly straight: it hits between 0.25 and 0.5
    value = contract.payoff(Paths(times, spot, small), market.discount)
    share = math.log(90 / 85) / math.log(90 / 80)
    nodes = market.discount(times).log()
    expected = math.exp(nodes[1] + (nodes[2] - nodes[1]) * share)
    assert value.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("kind", "option"), ALL)
def test_payoff_is_smooth_in_spot_and_barrier(kind, option):
    """Path by path, the derivative with respect to spot and barrier is that of a bump; nothing jumps."""
    market = Market(number(100.0), number(0.05))
    base = exact_paths(number(1.0), 400, market, 0.3, n_steps=5)
    level = 92.0 if kind.startswith("down") else 109.0

    def values(scale, barrier):
        contract = Barrier(number(100.0), number(1.0), barrier, kind, option, number(3.0))
        return contract.payoff(Paths(base.times, base.spot * scale, base.variance), market.discount)

    point = [number(1.0).requires_grad_(), number(level).requires_grad_()]
    slopes = torch.autograd.grad(values(*point).sum(), point)
    for index, step in ((0, 1e-6), (1, 1e-4)):
        sides = [[x.detach() + (sign * step if i == index else 0.0) for i, x in enumerate(point)] for sign in (1, -1)]
        numeric = (values(*sides[0]) - values(*sides[1])).sum() / (2.0 * step)
        assert slopes[index].item() == pytest.approx(numeric.item(), rel=1e-3)


def test_pathwise_delta_of_a_knock_out_is_that_of_the_closed_form():
    spot, model = number(100.0).requires_grad_(), BlackScholes(number(0.25))
    contract = Barrier(number(100.0), number(0.5), number(90.0), "down-out", "call", number(3.0))
    exact = barrier_formula(contract, model, Market(spot, number(0.05))).value
    (expected,) = torch.autograd.grad(exact, spot)
    market = Market(number(100.0), number(0.05))
    paths = exact_paths(number(0.5), 50_000, market, 0.25, n_steps=8)
    scale = torch.ones(50_000, 1, dtype=torch.float64, requires_grad=True)
    values = contract.payoff(Paths(paths.times, paths.spot * scale, paths.variance), market.discount)
    (slopes,) = torch.autograd.grad(values.sum(), scale)
    within_four_errors(slopes.squeeze(-1) / 100.0, expected, budget=0.02)


def test_no_gradient_is_nan_for_dead_still_or_far_paths():
    times = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    rows = [
        [100.0, 80.0, 120.0],
        [100.0, 100.0, 100.0],
        [100.0, 1e6, 1e-6],
        [100.0, 90.0, 95.0],
        [100.0, 90.0 + 1e-9, 91.0],
    ]
    for v, kind in itertools.product((0.0, 1e-300, 1e-12, 0.01, 50.0), KINDS):
        spot = torch.tensor(rows, dtype=torch.float64).requires_grad_()
        variance = torch.full((len(rows), 2), v, dtype=torch.float64).requires_grad_()
        level = number(90.0 if kind.startswith("down") else 111.0).requires_grad_()
        values = Barrier(number(95.0), number(1.0), level, kind, "call", number(1.0)).payoff(
            Paths(times, spot, variance), lambda time: torch.exp(-0.05 * time)
        )
        assert values.isfinite().all()
        for gradient in torch.autograd.grad(values.sum(), (spot, variance, level)):
            assert gradient.isfinite().all()


def test_step_survival_is_exact_for_nearly_certain_and_nearly_impossible_crossings():
    log_survival, dead = step_survival(number(1e-9), number(1e-9), number(1.0))
    assert log_survival.exp().item() == pytest.approx(2e-18, rel=1e-12)
    assert not dead
    log_survival, _ = step_survival(number(3.0), number(3.0), number(0.5))
    assert log_survival.item() == pytest.approx(-math.exp(-36.0), rel=1e-12)
    assert step_survival(number(0.0), number(1.0), number(1.0))[1]
    assert step_survival(number(1.0), number(-1.0), number(1.0))[1]


def test_payoff_refuses_a_crossed_barrier_and_missing_variances():
    times, spot = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.full((3, 2), 100.0, dtype=torch.float64)
    paths = Paths(times, spot, torch.full((3, 1), 0.04, dtype=torch.float64))
    for kind, level in (("down-out", 100.0), ("down-in", 120.0), ("up-out", 80.0), ("up-in", 100.0)):
        with pytest.raises(ValueError, match=rf"`barrier` of kind '{kind}' .* got {level:g} at a spot of 100"):
            Barrier(100.0, 1.0, level, kind).payoff(paths, torch.ones_like)
    with pytest.raises(ValueError, match=r"needs the variance .* state the times in `monitoring`"):
        Barrier(100.0, 1.0, 90.0, "down-out").payoff(Paths(times, spot), torch.ones_like)


def test_watched_on_dates_a_spot_beyond_the_barrier_today_is_allowed():
    paths = Paths(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([[85.0, 95.0]], dtype=torch.float64))
    contract = Barrier(number(90.0), number(1.0), number(90.0), "down-out", "call", monitoring=[1.0])
    assert contract.payoff(paths, torch.ones_like).item() == 5.0


def test_shifted_moves_expiry_and_monitoring():
    contract = Barrier(100.0, 1.0, 90.0, "down-in", "put", 2.0, [0.5, 1.0])
    later = contract.shifted(number(0.25))
    assert later.dates.tolist() == [0.25, 0.75, 0.75]
    assert (later.kind, later.option, later.rebate.item()) == ("down-in", "put", 2.0)
    assert Barrier(100.0, 1.0, 90.0, "up-in").shifted(number(0.5)).monitoring == "continuous"


def test_class_is_registered_by_its_name_and_contracts_know_their_kind():
    assert Barrier.kind == "barrier"
    assert Barrier(100.0, 1.0, 90.0, "down-in").kind == "down-in"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strike": 0.0}, "`strike` must be above 0, got 0"),
        ({"strike": float("nan")}, "`strike` must be finite"),
        ({"expiry": -0.5}, "`expiry` must be above 0, got -0.5"),
        ({"barrier": 0.0}, "`barrier` must be above 0, got 0"),
        ({"barrier": float("nan")}, "`barrier` must be finite"),
        ({"rebate": -1.0}, "`rebate` must be 0 or more, got -1"),
        (
            {"kind": "down-and-out"},
            "`kind` must be one of 'down-out', 'up-out', 'down-in', 'up-in', got 'down-and-out'",
        ),
        ({"option": "straddle"}, "`option` must be one of"),
        ({"monitoring": "daily"}, "`monitoring` must be 'continuous' or an array of times in years, got 'daily'"),
        ({"monitoring": [0.5, 0.25]}, "`monitoring` must ascend strictly"),
        ({"monitoring": [0.5, 0.5]}, "`monitoring` must ascend strictly"),
        ({"monitoring": [-0.5, 0.5]}, "`monitoring` must be above 0, got -0.5"),
        ({"monitoring": [0.5, float("nan")]}, "`monitoring` must be finite"),
        ({"monitoring": [0.5, 1.5]}, "`monitoring` must end by `expiry`, got 1.5 after an expiry of 1"),
        ({"monitoring": []}, "`monitoring` must hold at least one time"),
        ({"strike": [1.0, 2.0], "barrier": [1.0, 2.0, 3.0]}, r"`strike` of shape \(2,\) and `barrier` of shape \(3,\)"),
    ],
)
def test_barrier_bad_input_is_refused(changed, message):
    arguments = {"strike": 100.0, "expiry": 1.0, "barrier": 90.0, "kind": "down-out", **changed}
    with pytest.raises(ValueError, match=message):
        Barrier(**arguments)
