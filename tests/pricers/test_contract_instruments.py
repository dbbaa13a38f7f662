"""What every registered instrument must keep, unasked."""

import dataclasses
import math

import pytest
import torch
from contract_examples import INSTRUMENT_EXAMPLES

import pricers as pr
from pricers.instruments import EarlyExercise
from pricers.paths import Paths, time_grid

N_PATHS = 200
MARKET = pr.Market(spot=100.0, rate=0.03)
CONTRACTS = [
    pytest.param(kind, contract, id=f"{kind}-{number}")
    for kind, example in INSTRUMENT_EXAMPLES.items()
    for number, contract in enumerate(example.contracts())
]
BATCHED = [(kind, field) for kind, example in INSTRUMENT_EXAMPLES.items() for field in example.batched]
REFUSED = [(kind, field) for kind, example in INSTRUMENT_EXAMPLES.items() for field in example.refused]
NUMBERS = [
    (kind, name)
    for kind, example in INSTRUMENT_EXAMPLES.items()
    for name, value in example.point.items()
    if isinstance(value, (float, list))
]


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def paths_for(contract, n_assets, *, dtype=torch.float64, batch=(), seed=0, scale=1.0):
    """Paths of some 20 % volatility on the contract's dates; on twelve steps a year for one that looks between them."""
    grid = time_grid(contract.dates.detach(), 12 if contract.continuous else None).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, N_PATHS, grid.shape[0] - 1, *([n_assets] if n_assets > 1 else []))
    normals = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    level = 0.02 + 0.04 * torch.rand((*shape[: len(batch)], N_PATHS, 1), generator=generator, dtype=torch.float64)
    variance = level.to(dtype) * grid.diff()
    variance = (variance.unsqueeze(-1) if n_assets > 1 else variance).expand(shape)
    steps = -0.5 * variance + variance.sqrt() * normals
    axis = -2 if n_assets > 1 else -1
    logs = torch.cat([torch.zeros_like(steps.narrow(axis, 0, 1)), steps.cumsum(axis)], dim=axis)
    uniforms = torch.rand(N_PATHS, grid.shape[0] - 1, generator=generator, dtype=torch.float64).to(dtype)
    return Paths(
        grid,
        100.0 * scale * logs.exp(),
        variance if contract.continuous else None,
        None,
        uniforms if contract.bridge_uniforms else None,
        n_asset_axes=int(n_assets > 1),
    )


def payoff(contract, n_assets, **options):
    return contract.payoff(paths_for(contract, n_assets, **options), MARKET.discount)


def spread_over(value):
    """Two or three valid values around a field's own, as a batch: shape `3`, or `3 n_dates` for dates."""
    base = number(value)
    factors = number([0.9, 1.0, 1.02])
    return base * (factors if base.ndim == 0 else factors[:, None])


def test_every_registered_instrument_has_an_example():
    assert set(INSTRUMENT_EXAMPLES) == set(pr.INSTRUMENTS)
    for kind, example in INSTRUMENT_EXAMPLES.items():
        assert example.make is pr.INSTRUMENTS[kind]
        assert pr.INSTRUMENTS[kind].kind == kind
        # each field has a value somewhere, so that what is refused and what is batched is thought of
        fields = {field.name for field in dataclasses.fields(example.make)}
        named = set(example.point).union(*example.variants, example.refused)
        assert fields - named - {"elapsed", "running_extremum", "memory", "weights", "on", "pays"} <= {
            "average", "floating", "running_average", "n_past", "expiry", "monitoring", "global_floor", "coupon_barrier"
        }  # fmt: skip


def test_every_public_instrument_is_registered():
    public = {getattr(pr, name) for name in pr.__all__ if isinstance(getattr(pr, name), type)}
    found = {cls for cls in public if issubclass(cls, pr.Instrument) and cls is not pr.Instrument}
    assert found == set(pr.INSTRUMENTS.values())
    assert len(pr.INSTRUMENTS) == len(found)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_contracts_are_frozen_dataclasses_of_tensors(kind, contract):
    for field in dataclasses.fields(contract):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(contract, field.name, 1.0)
        value = getattr(contract, field.name)
        assert isinstance(value, (torch.Tensor, str, bool, int)) or value is None
        assert not isinstance(value, torch.Tensor) or value.dtype == torch.float64


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_dates_ascend_and_end_with_the_horizon(kind, contract):
    assert contract.dates.shape[:-1] == contract.horizon.shape
    assert (contract.dates.diff(dim=-1) >= 0).all()  # the last date of monitoring may be the expiry
    assert (contract.dates >= 0).all()
    assert torch.equal(contract.dates[..., -1], contract.horizon)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_the_payoff_has_one_number_for_each_path(kind, contract):
    n_assets = INSTRUMENT_EXAMPLES[kind].n_assets
    if isinstance(contract, EarlyExercise):
        with pytest.raises(ValueError, match="LongstaffSchwartz"):
            payoff(contract, n_assets)
        value = contract.exercise_value(paths_for(contract, 1).last)
        assert value.shape == (N_PATHS,)
        assert (value >= 0).all()
        return
    value = payoff(contract, n_assets)
    assert value.shape == (N_PATHS,)
    assert value.isfinite().all()
    assert value.std() > 0
    bounded = getattr(contract, "global_floor", 0.0) is not None  # a cliquet without a floor may lose
    if INSTRUMENT_EXAMPLES[kind].option and bounded:
        assert (value >= -1e-12).all()  # rounding of an expectation given the path
    # a batch of markets or models broadcasts from the left
    wide = payoff(contract, n_assets, batch=(2, 1), seed=1)
    assert wide.shape == (2, 1, N_PATHS)


@pytest.mark.parametrize(("kind", "field"), BATCHED)
def test_a_batch_pays_as_its_elements(kind, field):
    example = INSTRUMENT_EXAMPLES[kind]
    values = spread_over(example.point[field])
    batch = example.at_point(**{field: values})
    assert batch.batch_shape == (3,)
    assert batch.horizon.shape in ((3,), ())
    if isinstance(batch, EarlyExercise):
        spot = 80.0 + 40.0 * torch.rand(N_PATHS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for index in range(3):
            alone = example.at_point(**{field: values[index]})
            wanted = alone.exercise_value(spot)
            assert torch.equal(batch.exercise_value(spot).expand(3, -1)[index], wanted)
        return
    paths = paths_for(batch, example.n_assets)
    found = batch.payoff(paths, MARKET.discount)
    assert found.shape == (3, N_PATHS)
    for index in range(3):
        alone = example.at_point(**{field: values[index]}).payoff(paths, MARKET.discount)
        torch.testing.assert_close(found[index], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_payoffs_scale_with_spot_and_levels(kind, contract):
    example = INSTRUMENT_EXAMPLES[kind]
    if example.homogeneous is None or isinstance(contract, EarlyExercise):
        return
    levels = {name: getattr(contract, name) for name in example.homogeneous}
    doubled = {name: 2.0 * value for name, value in levels.items() if value is not None}
    larger = dataclasses.replace(contract, **doubled)
    once, twice = payoff(contract, example.n_assets), payoff(larger, example.n_assets, scale=2.0)
    torch.testing.assert_close(2.0 * once, twice, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_time_brings_all_dates_nearer(kind, contract):
    elapsed = number(0.125)
    later = contract.shifted(elapsed)
    assert type(later) is type(contract)
    assert later.batch_shape == contract.batch_shape
    torch.testing.assert_close(later.horizon, contract.horizon - elapsed)
    moved = contract.dates > 0  # what happens today stays today
    torch.testing.assert_close(later.dates[..., moved], contract.dates[..., moved] - elapsed)
    assert contract.horizon.item() > later.horizon.item()
    # by differentiation too
    _, slope = torch.func.jvp(lambda step: contract.shifted(step).horizon, (number(0.0),), (number(1.0),))
    assert slope.item() == pytest.approx(-1.0)


@pytest.mark.parametrize(("kind", "field"), REFUSED)
def test_what_a_field_refuses(kind, field):
    example = INSTRUMENT_EXAMPLES[kind]
    for value in example.refused[field]:
        with pytest.raises(ValueError, match="`") as refused:
            example.at_point(**{field: value})
        text = str(refused.value)
        assert field in text or "times" in text or "ascend" in text, (value, text)
        if isinstance(value, float) and field != "weights":
            assert f"{value:g}" in text, (value, text)


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
def test_no_field_takes_nan_or_infinity(kind, field):
    example = INSTRUMENT_EXAMPLES[kind]
    for bad in (math.nan, math.inf, -math.inf):
        value = bad
        if isinstance(example.point[field], list):
            value = [*example.point[field][:-1], bad]
        with pytest.raises(ValueError, match=field):
            example.at_point(**{field: value})


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
def test_numbers_keep_their_dtype_and_graph(kind, field):
    example = INSTRUMENT_EXAMPLES[kind]
    value = number(example.point[field], torch.float32).requires_grad_()
    contract = example.at_point(**{field: value})
    assert getattr(contract, field) is value
    for given in (value.detach().double().numpy(), example.point[field]):
        assert getattr(example.at_point(**{field: given}), field).dtype == torch.float64
    with pytest.raises(ValueError, match=field):
        example.at_point(**{field: "1"})
    with pytest.raises(ValueError, match=field):
        example.at_point(**{field: torch.ones((), dtype=torch.int64)})


@pytest.mark.parametrize("kind", [k for k, e in INSTRUMENT_EXAMPLES.items() if len(e.batched) > 1])
def test_shapes_that_do_not_broadcast_are_named(kind):
    example = INSTRUMENT_EXAMPLES[kind]
    one, other = example.batched[:2]
    values = {name: spread_over(example.point[name]) for name in (one, other)}
    values[other] = values[other][:2]
    with pytest.raises(ValueError, match="do not broadcast") as refused:
        example.at_point(**values)
    assert "(3,)" in str(refused.value)
    assert "(2,)" in str(refused.value)


@pytest.mark.parametrize("kind", INSTRUMENT_EXAMPLES)
def test_single_precision_comes_out_as_it_went_in(kind):
    example = INSTRUMENT_EXAMPLES[kind]
    single = {
        name: number(value, torch.float32) if isinstance(value, (float, list)) else value
        for name, value in example.point.items()
    }
    contract = example.make(**single)
    if isinstance(contract, EarlyExercise):
        spot = paths_for(contract, 1, dtype=torch.float32).last
        assert contract.exercise_value(spot).dtype == torch.float32
        return
    market = pr.Market(number(100.0, torch.float32), number(0.03, torch.float32))
    found = contract.payoff(paths_for(contract, example.n_assets, dtype=torch.float32), market.discount)
    assert found.dtype == torch.float32
    exact = example.at_point().payoff(paths_for(example.at_point(), example.n_assets), MARKET.discount)
    # the float32 paths are the others, rounded
    jumps = (found.double() - exact).abs() > 1e-3 * exact.abs().max()
    assert jumps.sum() <= (2 if contract.discontinuous else 0)


@pytest.mark.parametrize(("kind", "contract"), CONTRACTS)
def test_payoffs_have_finite_derivatives(kind, contract):
    if isinstance(contract, EarlyExercise) or (isinstance(contract, pr.Digital) and contract.pays == "cash"):
        return
    n_assets = INSTRUMENT_EXAMPLES[kind].n_assets
    paths = paths_for(contract, n_assets)
    names = [
        field.name
        for field in dataclasses.fields(contract)
        if isinstance(getattr(contract, field.name), torch.Tensor)
        and field.name not in (*contract.date_fields, "elapsed")
    ]
    leaves = {name: getattr(contract, name).clone().requires_grad_() for name in names}
    spot = paths.spot.clone().requires_grad_()
    value = dataclasses.replace(contract, **leaves).payoff(dataclasses.replace(paths, spot=spot), MARKET.discount)
    found = torch.autograd.grad(value.sum(), [spot, *leaves.values()], allow_unused=True)
    assert any(slope is not None for slope in found)
    assert all(slope is None or slope.isfinite().all() for slope in found)
