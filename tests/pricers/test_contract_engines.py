"""What every registered noise, basis and closed form must keep, unasked."""

import math

import pytest
import torch
from contract_examples import INSTRUMENT_EXAMPLES, MODEL_EXAMPLES

import pricers as pr
from pricers.analytic.engine import FORMULAS, REFUSALS
from pricers.exercise.regression import BASES, design
from pricers.models import DirectScheme, PathScheme, Scheme
from pricers.noise import NOISES, TILE

MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
MARKET_OF_TWO = pr.Market(spot=[100.0, 95.0], rate=0.03, dividend_yield=[0.01, 0.02])
TWO_ASSETS = pr.BlackScholes(vol=[0.2, 0.25], correlation=[[1.0, 0.4], [0.4, 1.0]])
DT = torch.tensor([0.1, 0.2, 0.05, 0.15], dtype=torch.float64)


def drawn(noise, start, width, n_normals=2, repeat=0):
    """All normals of a chunk, copied step by step: shape `steps n_normals width`."""
    normals = noise.normals(repeat, start, width, DT, n_normals)
    return torch.stack([normals.step(step).clone() for step in range(DT.shape[0])])


@pytest.mark.parametrize("kind", NOISES)
def test_noise_is_standard_normal_and_independent_over_steps_and_rows(kind):
    noise = NOISES[kind](7)
    assert noise.kind == kind
    whole = drawn(noise, 0, 8 * TILE).reshape(8, -1)
    n = whole.shape[1]
    assert whole.mean(-1).abs().max() < 5 / math.sqrt(n)
    covariance = whole @ whole.T / n
    assert (covariance - torch.eye(8, dtype=torch.float64)).abs().max() < 6 / math.sqrt(n)
    assert abs((whole**4).mean().item() - 3.0) < 0.2


@pytest.mark.parametrize("kind", NOISES)
def test_noise_depends_on_seed_and_address_alone(kind):
    noise = NOISES[kind](7)
    whole = drawn(noise, 0, 4 * TILE)
    assert torch.equal(whole, drawn(NOISES[kind](7), 0, 4 * TILE))
    assert torch.equal(whole[..., TILE : 2 * TILE], drawn(noise, TILE, TILE))  # a slice, made alone
    assert torch.equal(whole[..., : 2 * TILE], drawn(noise, 0, 2 * TILE))
    assert not torch.isclose(whole, drawn(NOISES[kind](8), 0, 4 * TILE)).any(dim=-1).all()
    extra = noise.extra(0, 0, TILE, DT, 2, 3)
    assert extra.shape == (3, TILE)
    for row in extra:
        for used in whole[..., :TILE].reshape(8, -1):
            assert abs((row * used).mean().item()) < 5 / math.sqrt(TILE)
    state = torch.get_rng_state()
    drawn(noise, 0, TILE)
    assert torch.equal(state, torch.get_rng_state())


SORTS = {
    Scheme: pr.Heston(0.04, 2.0, 0.05, 0.5, -0.6),
    PathScheme: pr.RoughBergomi(0.04, 1.5, 0.1, -0.7),
    DirectScheme: pr.SABR(2.0, 0.5, -0.4, 0.5),
}


@pytest.mark.parametrize("conditional", [None, False])
@pytest.mark.parametrize("sort", SORTS, ids=lambda sort: sort.__name__)
@pytest.mark.parametrize("kind", NOISES)
def test_every_noise_keeps_the_forward_under_every_sort_of_scheme(kind, sort, conditional):
    """A call that is sure to be exercised is worth the discounted forward less its strike."""
    model = SORTS[sort]
    assert isinstance(next(iter(model.schemes.values())), sort)
    sure = pr.European(strike=1e-6, expiry=1.0)
    engine = pr.MonteCarlo(16_384, n_steps=4, noise=kind, seed=3, controls=False, conditional=conditional)
    found = pr.price(sure, model, MARKET, engine)
    wanted = (MARKET.forward(sure.expiry) * MARKET.discount(sure.expiry)).item()
    assert found.std_error < 0.003 * wanted
    assert abs(found.value.item() - wanted) <= 4 * found.std_error.item() + 1e-5


@pytest.mark.parametrize("kind", NOISES)
def test_the_result_does_not_depend_on_chunks(kind, monkeypatch):
    call, model = pr.European([90.0, 110.0], 1.0), SORTS[Scheme]
    engine = pr.MonteCarlo(65_536, n_steps=3, noise=kind, seed=3, repeats=4)
    whole = pr.price(call, model, MARKET, engine)
    monkeypatch.setattr("pricers.monte_carlo.engine.CHUNK_BYTES", 2**18)
    pieces = pr.price(call, model, MARKET, engine)
    assert torch.equal(whole.value, pieces.value)
    assert torch.equal(whole.std_error, pieces.std_error)


@pytest.mark.parametrize("basis", BASES)
def test_a_basis_spans_polynomials_and_prices_a_put(basis):
    x = torch.linspace(0.5, 1.5, 200, dtype=torch.float64)
    columns = design([x], basis, 3)
    assert columns.shape[0] == 200
    assert columns.isfinite().all()
    assert torch.linalg.matrix_rank(columns) == columns.shape[1]
    put, model = pr.American(100.0, 1.0, "put"), pr.BlackScholes(0.2)
    found = pr.price(put, model, MARKET, pr.LongstaffSchwartz(16_384, n_steps=20, seed=4, basis=basis))
    exact = pr.price(put, model, MARKET, pr.FiniteDifference(n_space=120, n_time=40))
    assert found.value <= exact.value + 4 * found.std_error + exact.error_bound
    assert found.value >= 0.985 * exact.value - 4 * found.std_error  # 20 dates and a fitted rule lose a little


def pairs():
    for instrument_class, model_class in FORMULAS:
        yield pytest.param(instrument_class, model_class, id=f"{instrument_class.__name__}-{model_class.__name__}")


def contracts_and_models(instrument_class, model_class):
    """The examples of a pair that its formula takes, with the market."""
    models = [(MODEL_EXAMPLES[model_class.kind].at_point(), MARKET)]
    if model_class is pr.BlackScholes:
        models.append((TWO_ASSETS, MARKET_OF_TWO))
    kind = next(kind for kind, cls in pr.INSTRUMENTS.items() if cls is instrument_class)
    for contract in INSTRUMENT_EXAMPLES[kind].contracts():
        for model, market in models:
            if pr.Analytic().refusal(contract, model, market) is None:
                yield contract, model, market


def test_formulas_are_for_registered_classes():
    for instrument_class, model_class in FORMULAS:
        assert instrument_class in pr.INSTRUMENTS.values()
        assert model_class in pr.MODELS.values()
    assert set(REFUSALS) <= set(FORMULAS)


@pytest.mark.slow
@pytest.mark.parametrize(("instrument_class", "model_class"), list(pairs()))
def test_every_formula_agrees_with_simulation(instrument_class, model_class):
    taken = list(contracts_and_models(instrument_class, model_class))
    assert taken  # an example that the formula prices
    for contract, model, market in taken:
        exact = pr.price(contract, model, market, pr.Analytic())
        assert exact.value.isfinite()
        engine = pr.MonteCarlo(4_096, n_steps=32, noise="sobol", seed=6, repeats=32, controls=False)
        found = pr.price(contract, model, market, engine)
        # 32 steps and 32 repeats: a bias of 0.3 %, and 5 errors for a t distribution; 1 % where a formula approximates
        room = 5 * found.std_error + exact.error_bound + (0.01 if exact.note else 0.003) * exact.value.abs() + 1e-6
        assert (found.value - exact.value).abs() <= room, (contract, exact, found)


@pytest.mark.parametrize("kind", pr.MODELS)
def test_conditional_simulation_agrees_with_plain_simulation(kind):
    """An average of prices moves with the asset, so that no simulation of it is without error."""
    asian, model = pr.Asian(100.0, [0.5, 1.0], average="geometric"), MODEL_EXAMPLES[kind].at_point()
    mixed, plain = (
        pr.price(asian, model, MARKET, pr.MonteCarlo(8_192, n_steps=8, seed=9, controls=False, conditional=conditional))
        for conditional in (None, False)
    )
    assert plain.std_error > 0
    room = 4 * torch.hypot(mixed.std_error, plain.std_error)
    assert (mixed.value - plain.value).abs() <= room
    if not isinstance(model, pr.BlackScholes):  # its geometric average is known: nothing is left to simulate
        assert mixed.std_error > 1e-6
