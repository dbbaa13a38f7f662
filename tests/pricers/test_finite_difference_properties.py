"""Orders of convergence, derivatives, batches, refusals and the tridiagonal solver."""

import math

import pytest
import torch

from pricers.finite_difference import FiniteDifference, refusal
from pricers.finite_difference.contracts import averaged_payoff
from pricers.finite_difference.grids import first_difference, interpolate, second_difference, stretched
from pricers.finite_difference.line import Line, solve_line
from pricers.finite_difference.tridiagonal import multiply, reduction, solve
from pricers.instruments.barrier import Barrier
from pricers.instruments.basket import Basket
from pricers.instruments.digital import Digital
from pricers.instruments.early_exercise import American, Bermudan
from pricers.instruments.european import European
from pricers.market import CashDividends, Market, ZeroCurve
from pricers.models.bates import Bates
from pricers.models.black_scholes import BlackScholes
from pricers.models.heston import Heston

SMALL = FiniteDifference(n_space=80, n_time=20, n_variance=20)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def line_value(n_space, n_time, claim="call", american=False):
    """Spot 1.05, strike 1, rate .05, volatility .2, one year, without extrapolation."""
    zero = number(0.0)
    nodes = stretched(number(-1.5), number(1.5), n_space, zero.reshape(1), number([0.1]), zero).exp()
    line = Line(
        payoff=lambda grid: averaged_payoff(claim, grid),
        dates=number([1.0]),
        variance=number(0.04),
        discount=lambda time: torch.exp(-0.05 * time),
        growth=lambda time: torch.exp(0.05 * time),
        obstacle=(lambda spot: (1.0 - spot).clamp(min=0.0)) if american else None,
        exercise="always" if american else None,
    )
    return interpolate(nodes, solve_line(line, nodes, n_time), number([1.05 * math.exp(0.05)])).item()


def slope(errors):
    """Of log error against log step, each step half the one before."""
    x = torch.arange(len(errors), dtype=torch.float64)
    y = -torch.tensor(errors, dtype=torch.float64).abs().log2()
    return ((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean()))).item()


def test_order_two_in_space():
    fine = line_value(800, 40)
    assert slope([line_value(n, 40) - fine for n in (25, 50, 100)]) == pytest.approx(2.0, abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["call", "cash call"])
def test_order_two_in_time(claim):
    fine = line_value(100, 320, claim)
    assert slope([line_value(100, n, claim) - fine for n in (10, 20, 40)]) == pytest.approx(2.0, abs=0.25)


@pytest.mark.slow
def test_order_of_american_put_near_two():
    fine = line_value(3200, 800, "put", american=True)
    errors = [line_value(n, n // 2, "put", american=True) - fine for n in (50, 100, 200, 400)]
    assert slope(errors) > 1.7


def contracts(strike, expiry, level):
    return {
        "european": European(strike, expiry),
        "american": American(strike, expiry, "put"),
        "bermudan": Bermudan(strike, torch.stack([0.5 * expiry, expiry]), "put"),
        "digital": Digital(strike, expiry, "put", "asset"),
        "out": Barrier(strike, expiry, level, "down-out", "call", 2.0),
        "in": Barrier(strike, expiry, level, "down-in", "put", 2.0),
        "watched": Barrier(strike, expiry, level, "down-out", "call", 2.0, torch.stack([0.5 * expiry, expiry])),
    }


def black_scholes_price(name):
    def price(p):
        contract = contracts(p[0], p[1], p[2])[name]
        return SMALL.price(contract, BlackScholes(p[3]), Market(p[4], p[5], p[6])).value

    return price, number([100.0, 1.0, 90.0, 0.2, 103.0, 0.05, 0.02])


def heston_price(name):
    def price(p):
        contract = contracts(p[0], p[1], p[2])[name]
        return SMALL.price(contract, Heston(p[3], p[4], p[5], p[6], p[7]), Market(p[8], p[9], p[10])).value

    return price, number([100.0, 1.0, 85.0, 0.05, 2.0, 0.06, 0.5, -0.6, 103.0, 0.05, 0.02])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *(
            (black_scholes_price, name)
            for name in ("european", "american", "bermudan", "digital", "out", "in", "watched")
        ),
        (heston_price, "european"),
        pytest.param(heston_price, "american", marks=pytest.mark.slow),
        pytest.param(heston_price, "out", marks=pytest.mark.slow),
    ],
)
def test_gradient_reverse_forward_and_bump(model, name):
    price, at = model(name)
    inputs = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(price(inputs), inputs)
    direction = torch.linspace(-0.5, 1.0, at.shape[0], dtype=torch.float64)
    _, forward = torch.func.jvp(price, (at,), (direction,))
    assert forward.item() == pytest.approx((gradient @ direction).item(), rel=1e-8)
    step = 1e-4 * direction * at.abs()
    bump = (price(at + step) - price(at - step)).item() / 2.0
    # bumped, the grid itself moves with the parameters: they agree to the error of the grid
    assert bump == pytest.approx((gradient @ step).item(), rel=2e-3)


def test_second_derivative_is_gamma():
    engine = FiniteDifference(n_space=160, n_time=40)

    def price(spot):
        return engine.price(European(100.0, 1.0), BlackScholes(0.2), Market(spot)).value

    spot = number(97.0)
    gamma = torch.func.grad(torch.func.grad(price))(spot).item()
    on_grid = engine.delta_gamma(European(100.0, 1.0), BlackScholes(0.2), Market(spot))[1]
    d1 = math.log(0.97) / 0.2 + 0.1
    exact = math.exp(-0.5 * d1**2) / math.sqrt(2.0 * math.pi) / (97.0 * 0.2)
    assert on_grid.value.item() == pytest.approx(exact, rel=5e-5)
    assert gamma == pytest.approx(exact, rel=1e-3)


def test_batches_broadcast_and_equal_single_prices():
    strike, vol = number([[90.0], [110.0]]), number([0.15, 0.3])
    spot, rate = number([95.0, 105.0]), ZeroCurve([0.5, 1.0], [[0.02, 0.03], [0.05, 0.04]])
    for make in (
        lambda k: American(k, 1.0, "put"),
        lambda k: Barrier(k, 1.0, 80.0, "down-in", "put", 1.0),
        lambda k: Bermudan(k, [0.5, 1.0], "put"),
    ):
        batch = SMALL.price(make(strike), BlackScholes(vol), Market(spot, rate))
        assert batch.value.shape == (2, 2)
        for i, j in ((0, 1), (1, 0)):  # between them both strikes and both columns
            curve = ZeroCurve([0.5, 1.0], rate.rates[j])
            alone = SMALL.price(make(strike[i, 0]), BlackScholes(vol[j]), Market(spot[j], curve))
            difference = (alone.value - batch.value[i, j]).abs()  # the grids differ: they span what is asked for
            assert difference <= 0.5 * (alone.error_bound + batch.error_bound[i, j])


def test_heston_batch_equals_single_prices():
    model = Heston(number([0.04, 0.09]), 2.0, 0.06, 0.5, number([[-0.6], [0.2]]))
    batch = SMALL.price(European([95.0, 105.0], 1.0), model, Market(100.0, 0.03)).value
    assert batch.shape == (2, 2)
    for i, rho in enumerate((-0.6, 0.2)):
        for j, (v0, strike) in enumerate(((0.04, 95.0), (0.09, 105.0))):
            alone = SMALL.price(European(strike, 1.0), Heston(v0, 2.0, 0.06, 0.5, rho), Market(100.0, 0.03)).value
            assert alone.item() == pytest.approx(batch[i, j].item(), abs=2e-3)  # other strikes, another grid


def test_price_is_homogeneous():
    """A vector of strikes is solved once; each price is that of one strike, and scales with spot and strike."""
    model, engine = BlackScholes(0.25), FiniteDifference(n_space=120, n_time=40)
    many = engine.price(American([80.0, 100.0, 120.0], 1.0, "put"), model, Market(100.0, 0.04))
    one = engine.price(American(0.8, 1.0, "put"), model, Market(1.0, 0.04))
    difference = abs(many.value[0].item() - 100.0 * one.value.item())
    assert difference <= many.error_bound[0].item() + 100.0 * one.error_bound.item()


def test_single_precision_in_and_out():
    strike = torch.tensor([90.0, 110.0])
    market = Market(torch.tensor(100.0), torch.tensor(0.05), torch.tensor(0.0))
    estimate = SMALL.price(European(strike, torch.tensor(1.0)), BlackScholes(torch.tensor(0.2)), market)
    assert estimate.value.dtype == torch.float32
    assert estimate.value.tolist() == pytest.approx([16.6994, 6.0401], abs=1e-3)


@pytest.mark.parametrize("counts", [{"n_space": 101}, {"n_space": 8}, {"n_time": 7}, {"n_variance": 0}])
def test_odd_or_small_grids_are_refused(counts):
    with pytest.raises(ValueError, match=f"`{next(iter(counts))}` must be an even number"):
        FiniteDifference(**counts)


def test_prices_of_extreme_cases_are_finite_and_too_wide_ones_are_refused():
    for vol, expiry in ((1e-3, 1.0), (0.2, 1 / 3650), (3.0, 10.0)):
        estimate = SMALL.price(American([1.0, 100.0, 1e4], expiry, "put"), BlackScholes(vol), Market(100.0, 0.05))
        assert estimate.value.isfinite().all()
        assert estimate.error_bound.isfinite().all()
    with pytest.raises(ValueError, match=r"must be 10 or less on a grid, got 27\.38"):
        SMALL.price(European(100.0, 30.0), BlackScholes(5.0), Market(100.0))


HESTON = Heston(0.04, 1.0, 0.04, 0.5, -0.5)
MARKET = Market(100.0)


@pytest.mark.parametrize(
    ("contract", "model", "market", "says"),
    [
        (Bermudan(100.0, [1.0], "call", on="max"), BlackScholes(0.2), MARKET, "several assets"),
        (Basket(100.0, 1.0, "call", on="max"), BlackScholes(0.2), MARKET, "not Basket"),
        (European(100.0, 1.0), Bates(0.04, 1.0, 0.04, 0.5, -0.5, 0.1, -0.1, 0.1), MARKET, "not Bates"),
        (European(100.0, 1.0), BlackScholes([0.2, 0.2], [[1.0, 0.5], [0.5, 1.0]]), Market([100.0, 100.0]), "one asset"),
        (European(100.0, 1.0), HESTON, Market(100.0, dividends=CashDividends([0.5], [1.0])), "dividend_yield"),
    ],
)
def test_refusals_say_why(contract, model, market, says):
    reason = refusal(contract, model, market)
    assert reason is not None
    assert says in reason
    with pytest.raises(ValueError, match=says):
        FiniteDifference().price(contract, model, market)


def random_systems(generator, *shape):
    bands = torch.rand(3, *shape, dtype=torch.float64, generator=generator)
    return bands[0], bands[1] + 2.5, bands[2], torch.rand(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
def test_tridiagonal_dense_solver(n):
    generator = torch.Generator().manual_seed(1)
    lower, diagonal, upper, rhs = random_systems(generator, 4, n)
    dense = diagonal.diag_embed() + lower[..., 1:].diag_embed(-1) + upper[..., :-1].diag_embed(1)
    exact = torch.linalg.solve(dense, rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(solve(lower, diagonal, upper, rhs), exact, rtol=1e-13, atol=1e-13)
    factors = reduction(lower, diagonal, upper)
    torch.testing.assert_close(solve(lower, diagonal, upper, rhs, factors), exact, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(multiply(lower, diagonal, upper, exact), rhs, rtol=1e-13, atol=1e-13)


def test_tridiagonal_derivatives():
    generator = torch.Generator().manual_seed(2)
    lower, diagonal, upper, rhs = (x.requires_grad_() for x in random_systems(generator, 2, 5))
    shared = lower[:1].detach().requires_grad_()  # one band for all systems
    assert torch.autograd.gradcheck(solve, (shared, diagonal, upper, rhs), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (shared, diagonal, upper, rhs))
    mapped = torch.func.vmap(solve)(lower.detach(), diagonal.detach(), upper.detach(), rhs.detach())
    torch.testing.assert_close(mapped, solve(lower, diagonal, upper, rhs).detach())


def test_grid_holds_its_anchors_and_differences_are_exact_for_parabolas():
    low, high, wall = number(-0.3), number(1.2), number(0.17)
    centres, widths = torch.stack([number(0.0), wall]), number([0.1, 0.05])
    nodes = stretched(low, high, 60, centres, widths, number(0.0), wall)
    coarse = nodes[::2]
    assert coarse.abs().min() < 1e-12
    assert (coarse - wall).abs().min() < 1e-12
    assert (nodes.diff() > 0).all()
    inner = nodes[1:-1]
    torch.testing.assert_close(first_difference(nodes).apply(nodes**2), 2.0 * inner, rtol=0.0, atol=1e-11)
    torch.testing.assert_close(second_difference(nodes).apply(nodes**2), 2.0 + 0.0 * inner, rtol=0.0, atol=1e-9)
    points = number([-0.21, 0.003, 0.9])
    torch.testing.assert_close(interpolate(nodes, nodes**3, points), points**3, rtol=0.0, atol=1e-12)
