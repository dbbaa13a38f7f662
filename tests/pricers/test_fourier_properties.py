"""Invariants of Fourier prices: parity, limits, derivatives, digitals, sharing, refusals."""

import math

import pytest
import torch

from pricers.analytic.fourier_engine import Fourier, model_law
from pricers.black import black_price
from pricers.fourier import Law, cos_european
from pricers.instruments import Digital, European
from pricers.market import CashDividends, Market
from pricers.models import SABR, Bates, BlackScholes, Heston, Merton

# torch warns so at its own first use of forward mode
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
MARKET = Market(100.0, 0.03, 0.01)
MODELS = (
    Heston(v0=0.04, kappa=1.5, theta=0.09, sigma=0.8, rho=-0.7),
    Bates(0.04, 1.5, 0.09, 0.8, 0.6, intensity=0.8, jump_mean=-0.2, jump_std=0.15),
    Merton(vol=0.2, intensity=1.5, jump_mean=0.1, jump_std=0.05),
)


def tensor(value):
    return torch.tensor(value, dtype=torch.float64)


def price(instrument, model, market=MARKET, n_terms=None):
    return Fourier(n_terms).price(instrument, model, market).value


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_put_call_parity(model):
    strike, expiry = tensor([[20.0], [90.0], [103.0], [300.0]]), tensor([0.003, 1.0, 20.0])
    difference = price(European(strike, expiry, "call"), model) - price(European(strike, expiry, "put"), model)
    forward, discount = MARKET.forward(expiry), MARKET.discount(expiry)
    torch.testing.assert_close(difference, discount * (forward - strike), rtol=0.0, atol=1e-12 * 300.0)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_prices_are_decreasing_and_convex_in_the_strike_and_within_arbitrage_bounds(model):
    strike = torch.linspace(30.0, 300.0, 271, dtype=torch.float64)
    for expiry in (0.02, 1.0, 30.0):
        call = price(European(strike, expiry), model)
        assert (call.diff() <= 1e-9).all()
        assert (call.diff().diff() >= -1e-9).all()
        discounted = MARKET.discount(tensor(expiry)) * (MARKET.forward(tensor(expiry)) - strike)
        assert (call >= discounted.clamp(min=0.0) - 1e-12 * 100.0).all()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_a_grid_equals_its_elements_priced_one_by_one(model):
    strike, expiry = tensor([[70.0], [100.0], [130.0]]), tensor([0.1, 2.0])
    grid = Fourier().price(European(strike, expiry), model, MARKET)
    turned = Fourier().price(European(strike.T, expiry[:, None]), model, MARKET)
    repeated = Fourier().price(European(strike.expand(3, 2), expiry.expand(3, 2)), model, MARKET)
    torch.testing.assert_close(turned.value.T, grid.value, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(repeated.value, grid.value, rtol=0.0, atol=1e-9)
    for i in range(3):
        for j in range(2):
            alone = Fourier().price(European(strike[i, 0], expiry[j]), model, MARKET)
            assert abs(alone.value - grid.value[i, j]) <= alone.error_bound + grid.error_bound[i, j]


def test_batches_of_models_markets_and_contracts_broadcast():
    model = Heston(v0=tensor([0.02, 0.09])[:, None, None], kappa=1.5, theta=0.09, sigma=0.8, rho=-0.7)
    market = Market(spot=tensor([90.0, 100.0, 110.0])[:, None], rate=0.03)
    strike = tensor([80.0, 100.0, 120.0, 140.0])
    batch = price(European(strike, 0.5), model, market)
    assert batch.shape == (2, 3, 4)
    one = Heston(v0=0.09, kappa=1.5, theta=0.09, sigma=0.8, rho=-0.7)
    alone = price(European(120.0, 0.5), one, Market(spot=110.0, rate=0.03))
    assert batch[1, 2, 2].item() == pytest.approx(alone.item(), abs=1e-9)


def test_strikes_of_one_law_share_one_evaluation_of_the_characteristic_function():
    law, seen = model_law(MODELS[0], tensor(1.0)), []

    def counted(rows, u, shift):
        seen.append(u.numel())
        return law.log_characteristic(rows, u, shift)

    counting = Law(counted, law.scale, log_moment=law.log_moment)
    for n_strikes in (10, 1000):
        seen.clear()
        cos_european(counting, torch.linspace(-0.5, 0.5, n_strikes, dtype=torch.float64)[None])
        assert len(seen) == 4  # for puts and calls each: where it decays, and the terms
        assert sum(seen) < 2000


@pytest.mark.parametrize("expiry", [0.05, 1.0, 10.0])
def test_small_volatility_of_variance_is_black_scholes_with_the_mean_variance(expiry):
    strike, time = tensor([60.0, 100.0, 150.0]), tensor(expiry)
    model = Heston(v0=0.04, kappa=1.5, theta=0.09, sigma=1e-6, rho=0.0)
    vol = torch.sqrt(model.mean_variance(time))
    black = black_price(MARKET.forward(time), strike, time, vol, MARKET.discount(time), "call")
    # the first correction is of the order of sigma^2
    torch.testing.assert_close(price(European(strike, time), model), black, rtol=0.0, atol=1e-9)


def test_a_model_whose_moments_are_not_known_is_priced_by_its_cumulants():
    time, log_strike = tensor([0.01, 1.0, 9.0]), tensor([[-0.02], [0.0], [0.4]])
    model = BlackScholes(tensor(0.2))
    second = model.vol**2 * time
    law = Law(
        lambda rows, u, shift: model.log_characteristic(u, time[rows], shift),
        torch.sqrt(second),
        cumulants=(-0.5 * second, second, torch.zeros_like(second)),
    )
    value, bound = cos_european(law, log_strike)
    strike = torch.exp(log_strike)
    option = [["put", "put", "call"][i] for i in range(3)]
    exact = [black_price(tensor(1.0), strike[i], time[i], model.vol, tensor(1.0), option[i]) for i in range(3)]
    assert ((value - torch.stack(exact)).abs() <= bound).all()
    assert bound.max() < 1e-9
    torch.testing.assert_close(price(European(95.0, 0.5), model), _black(95.0, 0.5), rtol=0.0, atol=1e-9)


def _black(strike, expiry):
    time = tensor(expiry)
    return black_price(MARKET.forward(time), tensor(strike), time, tensor(0.2), MARKET.discount(time), "call")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
@pytest.mark.parametrize("option", ["call", "put"])
def test_digitals_are_derivatives_of_european_prices(model, option):
    strike = tensor([60.0, 95.0, 104.0, 150.0]).requires_grad_()
    sign = 1.0 if option == "call" else -1.0
    for expiry in (0.05, 2.0):
        european = price(European(strike, expiry, option), model)
        (slope,) = torch.autograd.grad(european.sum(), strike)
        cash = price(Digital(strike, expiry, option, pays="cash"), model)
        asset = price(Digital(strike, expiry, option, pays="asset"), model)
        torch.testing.assert_close(cash, -sign * slope, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(sign * (asset - strike * cash), european, rtol=0.0, atol=1e-7)


def test_digitals_under_heavy_tails_keep_their_bound():
    # moments of the order 1 + s explode for small s under the first, of the order -s under the second
    model = Heston(v0=0.02, kappa=0.3, theta=0.1, sigma=1.5, rho=tensor([[0.8], [-0.8]]))
    strike, expiry = tensor([20.0, 100.0, 500.0]), 20.0
    for option in ("call", "put"):
        sign = 1.0 if option == "call" else -1.0
        european = Fourier().price(European(strike, expiry, option), model, MARKET)
        cash = Fourier().price(Digital(strike, expiry, option, pays="cash"), model, MARKET)
        asset = Fourier().price(Digital(strike, expiry, option, pays="asset"), model, MARKET)
        gap = (sign * (asset.value - strike * cash.value) - european.value).abs()
        assert (gap <= european.error_bound + asset.error_bound + strike * cash.error_bound).all()
        assert gap.max() < 1e-6


@FORWARD_MODE
def test_prices_pass_gradcheck_of_both_modes_and_second_order():
    values = (100.0, 0.7, 110.0, 0.04, 1.5, 0.09, 0.8, -0.7)
    inputs = tuple(tensor(value).requires_grad_() for value in values)

    def value(spot, expiry, strike, *model):
        return price(European(strike, expiry), Heston(*model), Market(spot, tensor(0.03)))

    assert torch.autograd.gradcheck(value, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, inputs, fast_mode=True, rtol=1e-4)


@FORWARD_MODE
@pytest.mark.parametrize("n_parameters", [5, 8], ids=["heston", "bates"])
def test_gradients_over_the_admissible_box_are_numbers_and_both_modes_agree(n_parameters):
    n, generator = 40, torch.Generator().manual_seed(5)

    def uniform(low, high):
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    def spread(low, high):
        return torch.exp(uniform(math.log(low), math.log(high)))

    expiry = spread(1.0 / 365.0, 30.0)
    strike = 100.0 * torch.exp(uniform(-3.0, 3.0) * expiry.sqrt() * 0.3)
    parameters = [spread(1e-4, 0.5), spread(0.05, 20.0), spread(0.01, 0.5), spread(1e-3, 2.0), uniform(-0.99, 0.99)]
    parameters += [uniform(0.0, 2.0), uniform(-0.3, 0.2), uniform(0.0, 0.4)]
    parameters[0][:5] = 0.0
    model_class = Heston if n_parameters == 5 else Bates
    inputs = [torch.full_like(expiry, 100.0), expiry, *parameters[:n_parameters]]
    for contract in (European, Digital):

        def value(spot, expiry, *parameters, contract=contract):
            return price(contract(strike, expiry), model_class(*parameters), Market(spot, tensor(0.03)))

        leaves = [one.clone().requires_grad_() for one in inputs]
        gradients = torch.autograd.grad(value(*leaves).sum(), leaves)
        assert not any(gradient.isnan().any() for gradient in gradients)
        tangents = tuple(one.abs() * torch.randn(n, generator=generator, dtype=torch.float64) for one in inputs)
        _, forward = torch.func.jvp(value, tuple(inputs), tangents)
        reverse = sum(gradient * tangent for gradient, tangent in zip(gradients, tangents, strict=True))
        torch.testing.assert_close(forward, reverse, rtol=1e-8, atol=1e-8)


def test_deep_out_of_the_money_options_of_a_day_are_worth_nothing_and_differentiable():
    model = Heston(v0=1e-6, kappa=1.0, theta=0.04, sigma=0.5, rho=-0.7)
    strike = tensor([50.0, 99.0, 100.0, 101.0, 200.0]).requires_grad_()
    estimate = Fourier().price(European(strike, 1.0 / 365.0, "call"), model, Market(100.0))
    assert estimate.error_bound.max() < 1e-6
    assert estimate.value[4].item() == pytest.approx(0.0, abs=1e-9)
    assert estimate.value[0].item() == pytest.approx(50.0, abs=1e-9)
    (slope,) = torch.autograd.grad(estimate.value.sum(), strike)
    assert slope[0].item() == pytest.approx(-1.0, abs=1e-9)
    assert slope[4].item() == pytest.approx(0.0, abs=1e-9)


def test_single_precision_stays_single_and_admits_its_rounding():
    parameters = [torch.tensor(value) for value in (0.04, 1.5, 0.09, 0.8, -0.7)]
    market = Market(torch.tensor(100.0), torch.tensor(0.03))
    estimate = Fourier().price(European(torch.tensor([80.0, 100.0]), torch.tensor(1.0)), Heston(*parameters), market)
    exact = price(European([80.0, 100.0], 1.0), Heston(*(p.double().item() for p in parameters)), Market(100.0, 0.03))
    assert estimate.value.dtype == torch.float32
    assert ((estimate.value - exact).abs() <= estimate.error_bound).all()
    assert estimate.error_bound.max() < 0.01


def test_what_fourier_cannot_price_is_refused_with_the_reason():
    call = European(100.0, 1.0)
    with pytest.raises(ValueError, match="SABR has no characteristic function"):
        price(call, SABR(0.2, 1.0, -0.3, 0.4))
    with pytest.raises(ValueError, match="one asset only"):
        price(call, BlackScholes([0.2, 0.3], [[1.0, 0.5], [0.5, 1.0]]))
    with pytest.raises(ValueError, match="as a yield, not as cash amounts"):
        price(call, MODELS[0], Market(100.0, dividends=CashDividends([0.5], [1.0])))
    with pytest.raises(ValueError, match="`n_terms` must be 2 or more"):
        Fourier(n_terms=1)
    with pytest.raises(ValueError, match=r"`strike` of shape \(2,\) and `model` of shape \(3,\) do not broadcast"):
        price(European([90.0, 100.0], 1.0), Heston([0.04, 0.05, 0.06], 1.5, 0.09, 0.8, -0.7))


@pytest.mark.parametrize(
    ("model", "rate", "expiry", "message"),
    [
        (Heston(1e-300, 2.0, 1e-300, 1e-3, -0.5), 0.03, 1.0, "got a spread of 9.99965e-151"),
        (Heston(0.04, 2.0, 0.05, 0.5, -0.6), 10.0, 200.0, r"log\(strike / forward\) of -inf"),
    ],
)
def test_a_law_without_a_spread_or_a_forward_is_refused_and_no_nan(model, rate, expiry, message):
    with pytest.raises(ValueError, match=rf"`expiry` and the parameters of the model must .*{message}.* wrong units"):
        Fourier().price(European(100.0, expiry), model, Market(100.0, rate))
