"""What every registered model and each of its schemes must keep, unasked."""

import dataclasses
import math

import pytest
import torch
from contract_examples import MODEL_EXAMPLES

import pricers as pr
from pricers.models import DirectScheme, PathScheme, Scheme
from pricers.models.base import Characteristic
from pricers.noise import Stored
from pricers.pricing import WITHOUT_SIMULATION, capable_engines

MARKET = pr.Market(spot=100.0, rate=0.03, dividend_yield=0.01)
CALL = pr.European(strike=105.0, expiry=0.5, option="call")
HELD = {("sabr", "lognormal"): {"beta": 1.0, "shift": 0.0}}  # what a scheme does not hold without
NUMBERS = [(kind, name) for kind, example in MODEL_EXAMPLES.items() for name in example.point]
SCHEMES = [(kind, name) for kind, cls in pr.MODELS.items() for name in cls.schemes]


def number(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype)


def quick_engine(model):
    """The best engine that draws nothing, with a coarse grid where it has one; else a short simulation."""
    able = [name for name in capable_engines(CALL, model, MARKET) if name in WITHOUT_SIMULATION]
    if not able:
        return pr.MonteCarlo(64, n_steps=4, seed=3)
    coarse = pr.FiniteDifference(n_space=40, n_time=8, n_variance=16)
    return coarse if able[0] == "FiniteDifference" else pr.ENGINES[able[0]]


def gradients(function, values):
    """Reverse and forward derivatives of the sum of `function(**values)`."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    total = function(**leaves).sum()
    reverse = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    forward = []
    for name in values:
        tangent = torch.ones_like(values[name])
        along = lambda value, name=name: function(**{**values, name: value})  # noqa: E731
        forward.append(torch.func.jvp(along, (values[name],), (tangent,))[1])
    return torch.stack([part.sum() for part in reverse]), torch.stack([part.sum() for part in forward])


def random_point(example, seed):
    """A point of the box; every other one with one number on its edge."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(len(example.box), generator=generator, dtype=torch.float64).tolist()
    point = {name: low + part * (high - low) for part, (name, (low, high)) in zip(share, example.box.items())}
    if seed % 2:
        name = list(point)[seed // 2 % len(point)]
        point[name] = example.box[name][seed // 2 // len(point) % 2]
    return {name: number(value) for name, value in point.items()}


def edge_points(example):
    for name, edges in example.box.items():
        for edge in edges:
            yield f"{name}={edge:g}", {key: number(value) for key, value in {**example.point, name: edge}.items()}


def test_every_registered_model_has_an_example():
    assert set(MODEL_EXAMPLES) == set(pr.MODELS)
    for kind, example in MODEL_EXAMPLES.items():
        model = example.at_point()
        assert type(model) is pr.MODELS[kind]
        assert model.kind == kind
        assert set(example.point) == set(example.box) == set(example.refused)


def test_every_public_model_is_registered():
    public = {getattr(pr, name) for name in pr.__all__ if isinstance(getattr(pr, name), type)}
    models = {cls for cls in public if issubclass(cls, pr.Model) and cls is not pr.Model}
    assert models == set(pr.MODELS.values())
    assert len(pr.MODELS) == len({cls.kind for cls in pr.MODELS.values()}) == len(models)


@pytest.mark.parametrize("kind", pr.MODELS)
def test_every_model_has_a_scheme_of_a_known_sort(kind):
    schemes = pr.MODELS[kind].schemes
    assert schemes
    for scheme in schemes.values():
        assert isinstance(scheme, (Scheme, PathScheme, DirectScheme))
        assert isinstance(scheme.exact, bool)
        assert scheme.n_normals >= 0
        assert scheme.__doc__


@pytest.mark.parametrize("kind", MODEL_EXAMPLES)
def test_models_are_frozen(kind):
    model = MODEL_EXAMPLES[kind].at_point()
    for field in dataclasses.fields(model):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(model, field.name, 1.0)


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_each_number_is_checked(kind, name):
    example = MODEL_EXAMPLES[kind]
    field = "vols" if kind == "local_vol" else name
    for value in (*example.refused[name], math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=field) as refused:
            example.at_point(**{name: value})
        if kind != "local_vol":
            assert f"{value:g}" in str(refused.value)
        with pytest.raises(ValueError, match=field):  # one of a batch
            example.at_point(**{name: number([example.point[name], value])})


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_numbers_may_be_python_numbers_arrays_or_tensors(kind, name):
    example = MODEL_EXAMPLES[kind]
    value = example.point[name]
    for given in (value, number(value), number(value).numpy()):
        if kind == "local_vol" and not isinstance(given, (float, torch.Tensor)):
            continue
        model = example.at_point(**{name: given})
        assert all(tensor.dtype == torch.float64 for tensor in model.parameters().values())
    if kind != "local_vol":
        with pytest.raises(ValueError, match=name):
            example.at_point(**{name: "0.2"})
        with pytest.raises(ValueError, match=name):
            example.at_point(**{name: torch.tensor(1)})


@pytest.mark.parametrize("kind", [kind for kind in MODEL_EXAMPLES if len(MODEL_EXAMPLES[kind].point) > 1])
def test_shapes_that_do_not_broadcast_are_named(kind):
    example = MODEL_EXAMPLES[kind]
    one, other = list(example.point)[:2]
    numbers = {one: number([example.point[one]] * 2), other: number([example.point[other]] * 3)}
    with pytest.raises(ValueError, match="do not broadcast") as refused:
        example.at_point(**numbers)
    assert "(2,)" in str(refused.value)
    assert "(3,)" in str(refused.value)


@pytest.mark.parametrize("kind", MODEL_EXAMPLES)
def test_a_batch_prices_as_its_elements(kind):
    """Each number in turn gets an axis of its own; the batch is their outer product."""
    example = MODEL_EXAMPLES[kind]
    names = list(example.point)[-2:]
    axes = {}
    for axis, name in enumerate(names):
        low, high = example.box[name]
        near = [example.point[name], example.point[name] + 0.1 * (high - example.point[name])]
        if near[0] == near[1]:
            near[1] = example.point[name] - 0.1 * (example.point[name] - low)
        axes[name] = number(near).reshape(-1, *[1] * axis)
    model = example.at_point(**axes)
    shape = torch.broadcast_shapes(*(axis.shape for axis in axes.values()))
    assert model.batch_shape == shape
    engine = quick_engine(model)
    found = pr.price(CALL, model, MARKET, engine)
    assert found.value.shape == shape
    spread = {name: axis.expand(shape).reshape(-1) for name, axis in axes.items()}
    for index, value in enumerate(found.value.reshape(-1)):
        alone = example.at_point(**{name: column[index] for name, column in spread.items()})
        single = pr.price(CALL, alone, MARKET, engine)
        assert single.value.shape == ()
        # Fourier chooses range and terms anew; its bound is below 1e-9 of the forward
        torch.testing.assert_close(single.value, value, rtol=1e-9, atol=1e-7)


def assert_gradients(label, function, values):
    reverse, forward = gradients(function, values)
    assert reverse.isfinite().all(), (label, list(values), reverse)
    assert forward.isfinite().all(), (label, list(values), forward)
    torch.testing.assert_close(reverse, forward, rtol=1e-6, atol=1e-6, msg=lambda text: f"{label}: {text}")


def points_of(example, n_random, edges):
    yield from ((f"random {seed}", random_point(example, seed)) for seed in range(n_random))
    if edges:
        yield from edge_points(example)


def check_price_gradients(kind, n_random, edges):
    example = MODEL_EXAMPLES[kind]
    for label, values in points_of(example, n_random, edges):
        engine = quick_engine(example.make(**values))
        if isinstance(engine, pr.MonteCarlo):  # shown below, scheme by scheme
            continue
        assert_gradients(
            label, lambda engine=engine, **v: pr.price(CALL, example.make(**v), MARKET, engine).value, values
        )


def check_path_gradients(kind, scheme, n_random, edges):
    """Of the mean payoff of some paths on noise that stays."""
    example = MODEL_EXAMPLES[kind]
    # the exact scheme of Heston refuses short steps
    engine = simulation(scheme, n_steps=1 if pr.MODELS[kind].schemes[scheme].exact else 3)
    free = derivable(kind, scheme)
    held = {name: number(value) for name, value in HELD.get((kind, scheme), {}).items()}
    for label, point in points_of(example, n_random, edges):
        values = point | held
        if not free:
            try:
                assert pr.price(CALL, example.make(**values), MARKET, engine).value.isfinite()
            except ValueError as refused:  # tables of quantiles need variance enough: said so, not NaN
                assert "too short for the scheme 'exact'" in str(refused)  # noqa: PT017
            continue
        sampler = engine.sampler(CALL, example.make(**values), MARKET)
        chunk = next(iter(sampler.chunks()))
        drawn = sampler.normals(*chunk)
        noise = Stored(torch.stack([drawn.step(step).clone() for step in range(sampler.plan.dt.shape[0])]))
        fixed = {name: value for name, value in values.items() if name not in free}

        def value_of(fixed=fixed, chunk=chunk, noise=noise, **moving):
            moved = engine.sampler(CALL, example.make(**fixed, **moving), MARKET)
            return moved.values(*chunk, noise)[0].mean()

        assert_gradients(label, value_of, {name: value for name, value in values.items() if name in free})


SOLVED = [kind for kind in MODEL_EXAMPLES if kind != "rough_bergomi"]


@pytest.mark.parametrize("kind", [kind for kind in SOLVED if kind != "rough_heston"])
def test_gradients_are_finite_and_agree(kind):
    check_price_gradients(kind, n_random=2, edges=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOLVED)
def test_gradients_are_finite_and_agree_at_the_edges(kind):
    check_price_gradients(kind, n_random=6, edges=True)


def simulation(scheme, n_paths=64, n_steps=3, **options):
    return pr.MonteCarlo(n_paths, n_steps=n_steps, seed=5, scheme=scheme, controls=False, conditional=False, **options)


def derivable(kind, scheme):
    """Numbers in which the paths of a scheme have derivatives: counts of jumps and tables of quantiles have none."""
    names = set(MODEL_EXAMPLES[kind].point) - {"intensity"} - set(HELD.get((kind, scheme), ()))
    return set() if scheme == "exact" and kind in ("heston", "bates") else names


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scheme"), SCHEMES)
def test_gradients_of_paths_are_finite_and_agree(kind, scheme):
    check_path_gradients(kind, scheme, n_random=2, edges=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scheme"), SCHEMES)
def test_gradients_of_paths_are_finite_and_agree_at_the_edges(kind, scheme):
    check_path_gradients(kind, scheme, n_random=6, edges=True)


@pytest.mark.parametrize(("kind", "scheme"), SCHEMES)
def test_the_asset_over_its_forward_has_mean_one(kind, scheme):
    model = MODEL_EXAMPLES[kind].at_point()
    forward = pr.Asian(strike=1e-9, times=[0.5, 1.0])  # the mean of two prices, less nothing
    engine = pr.MonteCarlo(32_768, n_steps=4, seed=8, scheme=scheme, controls=False, conditional=False)
    if engine.refusal(forward, model, MARKET) is not None:
        pytest.skip(engine.refusal(forward, model, MARKET))
    dates = number([0.5, 1.0])
    expected = (MARKET.forward(dates).mean() * MARKET.discount(number(1.0))).item()
    found = pr.price(forward, model, MARKET, engine)
    assert found.std_error < 2e-3 * expected
    # euler's full truncation and the lifted scheme correct the drift too: martingales at any length of step
    assert abs(found.value.item() - expected) <= 4 * found.std_error.item()


@pytest.mark.parametrize("kind", MODEL_EXAMPLES)
def test_single_precision_comes_out_as_it_went_in(kind):
    example = MODEL_EXAMPLES[kind]
    single = torch.float32
    model = example.make(**{name: number(value, single) for name, value in example.point.items()})
    market = pr.Market(number(100.0, single), number(0.03, single), number(0.01, single))
    call = pr.European(number(105.0, single), number(0.5, single))
    assert all(tensor.dtype == single for tensor in model.parameters().values())
    double = example.at_point()
    for engine in (quick_engine(double), simulation(None, 4096)):
        found = pr.price(call, model, market, engine)
        exact = pr.price(CALL, double, MARKET, engine)
        assert found.value.dtype == found.std_error.dtype == found.error_bound.dtype == single
        apart = abs(found.value.double() - exact.value).item()  # each precision draws paths of its own
        assert apart <= 4 * math.hypot(found.std_error.item(), exact.std_error.item()) + 1e-3


@pytest.mark.parametrize("kind", [kind for kind, cls in pr.MODELS.items() if issubclass(cls, Characteristic)])
def test_characteristic_functions_keep_their_axioms(kind):
    model = MODEL_EXAMPLES[kind].at_point()
    u = torch.linspace(-20.0, 20.0, 41, dtype=torch.float64)
    real, imaginary = model.log_characteristic(u, number(1.0))
    torch.testing.assert_close(real, real.flip(-1), rtol=0, atol=1e-10)
    torch.testing.assert_close(imaginary, -imaginary.flip(-1), rtol=0, atol=1e-10)
    assert real[20].abs() < 1e-12
    assert (real <= 1e-12).all()
    mean_real, mean_imaginary = model.log_characteristic(number([0.0]), number(1.0), 1.0)  # E exp(X) = 1
    assert mean_real.abs().item() < 1e-9
    assert mean_imaginary.abs().item() < 1e-9
