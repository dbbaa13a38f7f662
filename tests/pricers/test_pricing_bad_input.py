"""price(): the choice of the engine, wrong arguments, shapes, types and batches."""

import math

import numpy as np
import pytest
import torch
from command_line import python

import pricers as pr
from pricers.pricing import WITHOUT_SIMULATION, capable_engines, default_engine

BLACK_SCHOLES = pr.BlackScholes(vol=0.2)
HESTON = pr.Heston(v0=0.04, kappa=2.0, theta=0.05, sigma=0.5, rho=-0.6)
MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
CALL = pr.European(strike=100.0, expiry=1.0)
TWO = pr.BlackScholes(vol=[0.2, 0.3], correlation=[[1.0, 0.5], [0.5, 1.0]])
MARKET_OF_TWO = pr.Market(spot=[100.0, 90.0], rate=0.03)
BASKET = pr.Basket(strike=100.0, expiry=1.0, weights=[0.5, 0.5])
PUT = pr.American(strike=100.0, expiry=1.0, option="put")
ENGINES = {
    "Analytic": pr.Analytic(),
    "Fourier": pr.Fourier(),
    "FiniteDifference": pr.FiniteDifference(n_space=60, n_time=20, n_variance=20),
    "MonteCarlo": pr.MonteCarlo(4096, n_steps=8, seed=1),
    "LongstaffSchwartz": pr.LongstaffSchwartz(2048, n_steps=8, seed=1),
    "MultilevelMonteCarlo": pr.MultilevelMonteCarlo(accuracy=0.5, seed=1),
}
# who prices a call under what; a pair that is refused although it stands here fails
CALL_PAIRS = [
    pytest.param(name, model, id=f"{name}-{model.kind}")
    for model, names in {
        BLACK_SCHOLES: ("Analytic", "Fourier", "FiniteDifference", "MonteCarlo"),
        HESTON: ("Fourier", "FiniteDifference", "MonteCarlo", "MultilevelMonteCarlo"),
    }.items()
    for name in names
]


def number(value, dtype=torch.float64, **options):
    return torch.tensor(value, dtype=dtype, **options)


def agree(one, other, rtol=0.0):
    """Within four standard errors, the error bounds and a share of the value."""
    spread = 4 * torch.hypot(one.std_error, other.std_error) + one.error_bound + other.error_bound
    return bool(((one.value - other.value).abs() <= spread + rtol * other.value.abs()).all())


def test_every_engine_stands_in_the_table_under_its_name():
    assert list(pr.ENGINES) == list(ENGINES)
    for name, engine in pr.ENGINES.items():
        assert type(engine).__name__ == name
        assert type(engine) is getattr(pr, name)
        assert engine.refusal(CALL, BLACK_SCHOLES, MARKET) is None or name in (
            "LongstaffSchwartz",
            "MultilevelMonteCarlo",
        )
    public = [getattr(pr, name) for name in pr.__all__]
    engines = {cls for cls in public if isinstance(cls, type) and hasattr(cls, "refusal") and hasattr(cls, "price")}
    assert engines == {type(engine) for engine in pr.ENGINES.values()}


def test_the_default_is_the_best_engine_that_draws_nothing():
    for instrument, model, wanted in (
        (CALL, BLACK_SCHOLES, "Analytic"),
        (CALL, HESTON, "Fourier"),
        (PUT, HESTON, "FiniteDifference"),
        (CALL, pr.SABR(0.2, 0.5, -0.3, 0.4), "Analytic"),
    ):
        assert type(default_engine(instrument, model, MARKET)).__name__ == wanted
        assert capable_engines(instrument, model, MARKET)[0] == wanted
    found = pr.price(CALL, HESTON, MARKET)
    assert found.std_error == 0
    assert found.n_paths == 0


WRONG_KINDS = """
import pricers as pr
call, model, market = pr.European(100.0, 1.0), pr.BlackScholes(0.2), pr.Market(100.0)
cases = [
    ((model, call, market), ["`instrument`", "Instrument", "BlackScholes", "order"]),
    ((call, market, model), ["`model`", "Model", "Market", "order"]),
    ((call, model, None), ["`market`", "Market", "None"]),
    ((pr.European, model, market), ["`instrument`"]),
    ((call, 0.2, market), ["`model`", "0.2"]),
    *[((call, model, market, engine), ["`engine`"]) for engine in ("Analytic", pr.Analytic, pr.MonteCarlo, 7, call)],
]
for arguments, words in cases:
    for function in (pr.price, lambda *given: pr.greeks(*given[:3], wrt=("spot",), engine=(*given, None)[3])):
        try:
            function(*arguments)
        except ValueError as refused:
            assert all(word in str(refused) for word in words), (words, str(refused))
        else:
            raise AssertionError(f"taken: {arguments}")
market = pr.Market(100.0, dividends=None)
try:
    pr.Market(100.0, dividends=2.0)
except ValueError as refused:
    assert "`dividends`" in str(refused) and "float" in str(refused) and "dividend_yield" in str(refused)
"""


def test_arguments_of_the_wrong_kind_are_named(tmp_path):
    """Where no test checks annotations: they would not even arrive."""
    done = python(WRONG_KINDS, cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("instrument", "model", "market", "engine", "words"),
    [
        (PUT, BLACK_SCHOLES, MARKET, "MonteCarlo", ["LongstaffSchwartz", "engines that can: FiniteDifference"]),
        (CALL, HESTON, MARKET, "Analytic", ["Heston", "engines that can: Fourier, FiniteDifference, MonteCarlo"]),
        (CALL, BLACK_SCHOLES, MARKET, "LongstaffSchwartz", ["early exercise", "engines that can: Analytic"]),
        (CALL, BLACK_SCHOLES, MARKET, "MultilevelMonteCarlo", ["exact", "engines that can: Analytic"]),
        (CALL, pr.RoughBergomi(0.04, 1.5, 0.1, -0.7), MARKET, None, ["RoughBergomi", "one of MonteCarlo"]),
        (BASKET, TWO, MARKET_OF_TWO, None, ["Basket", "simulation", "MonteCarlo"]),
        (CALL, TWO, MARKET_OF_TWO, None, ["1 asset", "has 2"]),
        (BASKET, BLACK_SCHOLES, MARKET, None, ["2 asset", "has 1"]),
        (pr.Basket(100.0, 1.0, on="max"), BLACK_SCHOLES, MARKET, None, ["several assets", "has 1"]),
        (pr.Basket(100.0, 1.0, on="max"), BLACK_SCHOLES, MARKET, "MonteCarlo", ["several assets", "can: none"]),
        (pr.Bermudan(100.0, [0.5, 1.0], on="max"), BLACK_SCHOLES, MARKET, "LongstaffSchwartz", ["several assets"]),
    ],
)  # fmt: skip
def test_a_refusal_lists_what_can_price_the_pair(instrument, model, market, engine, words):
    with pytest.raises(ValueError, match="engine") as refused:
        pr.price(instrument, model, market, engine and ENGINES[engine])
    for word in words:
        assert word in str(refused.value)


def test_cash_dividends_are_refused_under_heston():
    market = pr.Market(100.0, 0.03, 0.0, pr.CashDividends([0.3], [2.0]))
    with pytest.raises(ValueError, match="cash dividends"):
        pr.price(CALL, HESTON, market)
    for engine in ENGINES.values():
        with pytest.raises(ValueError, match="engines that can: none"):
            pr.price(CALL, HESTON, market, engine)
    one, other = (pr.price(CALL, BLACK_SCHOLES, market, ENGINES[name]) for name in ("FiniteDifference", "MonteCarlo"))
    assert agree(other, one)


@pytest.mark.parametrize(
    ("instrument", "model", "market", "shapes"),
    [
        (pr.European([90.0, 100.0], 1.0), pr.BlackScholes([0.1] * 3), MARKET, ("instrument", "(2,)", "model", "(3,)")),
        (CALL, pr.BlackScholes([0.1, 0.2]), pr.Market([90.0, 100.0, 110.0]), ("model", "(2,)", "market", "(3,)")),
        (CALL, BLACK_SCHOLES, pr.Market([90.0, 100.0], [0.01, 0.02, 0.03]), ("spot", "(2,)", "rate", "(3,)")),
        (BASKET, TWO, MARKET, ("spot", "2", "()")),
        (BASKET, TWO, pr.Market([100.0, 90.0], 0.0, [0.0, 0.0, 0.0]), ("dividend_yield", "2", "(3,)")),
        (pr.Basket(100.0, 1.0, weights=[0.5, 0.3, 0.2]), TWO, MARKET_OF_TWO, ("3 asset", "has 2")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", [None, ENGINES["MonteCarlo"]])
def test_shapes_that_do_not_fit_are_both_named(instrument, model, market, shapes, engine):
    with pytest.raises(ValueError, match=r"`|asset") as refused:
        pr.price(instrument, model, market, engine)
    for word in shapes:
        assert word in str(refused.value)


@pytest.mark.parametrize("barrier", [100.0, 105.0, [90.0, 105.0]])
@pytest.mark.parametrize("engine", [None, "FiniteDifference", "MonteCarlo"])
def test_a_barrier_that_is_crossed_already_is_refused(barrier, engine):
    contract = pr.Barrier(100.0, 1.0, barrier, kind="down-out")
    with pytest.raises(ValueError, match="crossed already"):
        pr.price(contract, BLACK_SCHOLES, MARKET, engine and ENGINES[engine])


@pytest.mark.parametrize(("name", "model"), [pair for pair in CALL_PAIRS if pair.values[0] != "MultilevelMonteCarlo"])
def test_every_engine_takes_a_term_structure(name, model):
    """A curve of zero rates prices as the flat rate to the expiry, for no rate comes in on the way to it."""
    engine, curve = ENGINES[name], pr.ZeroCurve([0.25, 1.0, 2.0], [0.01, 0.03, 0.04])
    calls = pr.European(number([90.0, 110.0]), number([[0.25], [1.5]]))
    found = pr.price(calls, model, pr.Market(100.0, curve, 0.01), engine)
    assert found.value.shape == (2, 2)
    flat = pr.Market(100.0, number([[0.01], [0.035]]), 0.01)
    wanted = pr.price(calls, model, flat)
    assert agree(found, wanted, rtol=1e-12)
    both = pr.Market(100.0, pr.ZeroCurve([0.25, 1.0], [[0.01, 0.03], [0.02, 0.02]]))
    assert pr.price(CALL, model, both, engine).value.shape == (2,)


@pytest.mark.parametrize("name", ["FiniteDifference", "LongstaffSchwartz"])
def test_early_exercise_takes_a_term_structure(name):
    curve = pr.Market(100.0, pr.ZeroCurve([0.25, 1.0], [0.03, 0.03]), 0.01)
    one, other = (pr.price(PUT, BLACK_SCHOLES, market, ENGINES[name]) for market in (curve, MARKET))
    torch.testing.assert_close(one.value, other.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["Analytic", "Fourier", "FiniteDifference", "MonteCarlo"])
def test_single_precision_in_is_single_precision_out(name):
    single = torch.float32
    call = pr.European(number(100.0, single), number(1.0, single))
    for numbers, model in (((0.2,), pr.BlackScholes), ((0.04, 2.0, 0.05, 0.5, -0.6), pr.Heston)):
        coarse, fine = model(*(number(x, single) for x in numbers)), model(*numbers)
        market = pr.Market(number(100.0, single), number(0.03, single))  # the yield is a default
        if ENGINES[name].refusal(call, coarse, market) is not None:
            continue
        found, wanted = pr.price(call, coarse, market, ENGINES[name]), pr.price(CALL, fine, pr.Market(100.0, 0.03))
        assert found.value.dtype == single
        assert agree(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ["Analytic", "FiniteDifference", "MonteCarlo"])
def test_mixed_precision_is_double(name):
    call = pr.European(number([100.0, 110.0], torch.float32), number(1.0))
    found = pr.price(call, BLACK_SCHOLES, pr.Market(number([[100.0]]), 0.03), ENGINES[name])
    assert found.value.dtype == torch.float64
    assert found.value.shape == (1, 2)


def test_numbers_of_all_sorts_price_alike():
    wanted = pr.price(pr.European(100.0, 1.0), pr.BlackScholes(1.0), pr.Market(100.0)).value
    for as_given in (int, float, np.float64, np.int64, lambda x: np.array(float(x)), lambda x: number(float(x))):
        found = pr.price(
            pr.European(as_given(100), as_given(1)), pr.BlackScholes(as_given(1)), pr.Market(as_given(100), as_given(0))
        ).value
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(("name", "model"), CALL_PAIRS)
def test_an_empty_batch_has_no_prices(name, model):
    empty = pr.European(torch.ones(0, dtype=torch.float64), number([[0.5], [1.0]]))
    found = pr.price(empty, model, MARKET, ENGINES[name])
    assert found.value.shape == found.std_error.shape == (2, 0)
    none = pr.Market(torch.ones(0, dtype=torch.float64))
    assert pr.price(CALL, model, none, ENGINES[name]).value.shape == (0,)


@pytest.mark.parametrize(
    ("instrument", "model", "name"),
    [
        (CALL, BLACK_SCHOLES, "Analytic"),
        (CALL, HESTON, "Fourier"),
        (PUT, BLACK_SCHOLES, "FiniteDifference"),
        (CALL, HESTON, "MonteCarlo"),
        (pr.Asian(100.0, [0.5, 1.0]), BLACK_SCHOLES, "MonteCarlo"),
        (pr.Barrier(100.0, 1.0, 85.0, "down-out"), HESTON, "MonteCarlo"),
        (pr.Cliquet([0.0, 0.5, 1.0], 0.0, 0.05), HESTON, "MonteCarlo"),
    ],
)
def test_a_price_with_a_graph_has_the_right_derivative(instrument, model, name):
    """Whoever calls backward() gets the derivative or an error, never a part of it."""
    spot = number(100.0, requires_grad=True)
    found = pr.price(instrument, model, pr.Market(spot, 0.03), ENGINES[name]).value
    if not found.requires_grad:
        return
    (slope,) = torch.autograd.grad(found, spot)
    up, down = (pr.price(instrument, model, pr.Market(100.0 + h, 0.03), ENGINES[name]).value for h in (0.05, -0.05))
    assert slope.item() == pytest.approx(((up - down) / 0.1).item(), rel=2e-2, abs=2e-6)


def test_no_price_is_nan():
    """Far strikes, long and short expiries: a number or an error."""
    calls = pr.European(number([1e-3, 1.0, 100.0, 1e4, 1e6]), number([[1 / 365], [1.0], [30.0]]))
    for model in (
        BLACK_SCHOLES,
        HESTON,
        pr.Merton(0.2, 0.5, -0.1, 0.1),
        pr.Bates(0.04, 2.0, 0.05, 0.5, -0.6, 0.5, -0.1, 0.1),
    ):
        found = pr.price(calls, model, MARKET)
        forward, discount = MARKET.forward(calls.expiry), MARKET.discount(calls.expiry)
        assert found.value.isfinite().all()
        slack = found.error_bound + 1e-9
        assert (found.value <= discount * forward + slack).all()
        assert (found.value >= discount * (forward - calls.strike).clamp(min=0.0) - slack).all()
    assert math.isfinite(found.error_bound.max().item())


@pytest.mark.parametrize("name", WITHOUT_SIMULATION)
def test_engines_that_draw_nothing_say_so(name):
    found = pr.price(CALL, BLACK_SCHOLES, MARKET, ENGINES[name])
    assert (found.std_error, found.n_paths) == (0, 0)
    assert found.engine
