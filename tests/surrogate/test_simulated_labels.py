"""Labels by simulation: against prices of the same contracts, differences on the same noise, and their own scatter."""

import itertools

import pytest
import torch
from torch import Tensor

import pricers as pr
from qfml.errors import DataError
from qfml.surrogate.path_labels import truncated_normal
from qfml.surrogate.simulated_labels import simulated_labels

NAMES = ("v0", "kappa", "theta", "sigma", "rho", "expiry", "strike", "barrier", "rate")
POINT = torch.tensor([[0.05, 2.0, 0.06, 0.5, -0.6, 1.0, 0.98, 1.25, 0.03]], dtype=torch.float64)
LOW = torch.tensor([0.01, 0.5, 0.01, 0.1, -0.9, 0.25, 0.8, 1.05, 0.0], dtype=torch.float64)
HIGH = torch.tensor([0.16, 5.0, 0.16, 1.0, 0.0, 1.5, 1.2, 1.5, 0.06], dtype=torch.float64)
N_DATES, N_STEPS = 4, 16


class AsianBarriers:
    """Asian options with a barrier under Heston, with every term and parameter an input."""

    def __init__(self, kind: str = "up-out", option: str = "call", average: str = "arithmetic"):
        self.terms = (kind, option, average)
        self.target, self.model = "price", {"kind": "heston"}

    def triple(self, inputs: Tensor) -> tuple[pr.Instrument, pr.Model, pr.Market]:
        x = dict(zip(NAMES, inputs.unbind(-1), strict=True))
        times = x["expiry"].unsqueeze(-1) * torch.arange(1, N_DATES + 1, dtype=inputs.dtype) / N_DATES
        contract = pr.AsianBarrier(100.0 * x["strike"], times, 100.0 * x["barrier"], *self.terms)
        heston = pr.Heston(*(x[name] for name in NAMES[:5]))
        return contract, heston, pr.Market(torch.full_like(x["rate"], 100.0), x["rate"])


class OtherContracts(AsianBarriers):
    """Contracts on one date or without a barrier, under Heston or Black-Scholes of the vol sqrt(v0)."""

    def __init__(self, contract: str, black_scholes: bool):
        super().__init__()
        self.contract, self.black_scholes = contract, black_scholes

    def triple(self, inputs: Tensor) -> tuple[pr.Instrument, pr.Model, pr.Market]:
        x = dict(zip(NAMES, inputs.unbind(-1), strict=True))
        strike, market = x["strike"], pr.Market(1.0, x["rate"])
        dates = x["expiry"].unsqueeze(-1) * torch.tensor([0.5, 1.0], dtype=inputs.dtype)
        instrument = {
            "european": lambda: pr.European(strike, x["expiry"], "put"),
            "one date": lambda: pr.AsianBarrier(strike, x["expiry"].unsqueeze(-1), x["barrier"], "up-out", "call"),
            "geometric": lambda: pr.Asian(strike, dates, "call", "geometric"),
        }[self.contract]()
        heston = pr.Heston(*(x[name] for name in NAMES[:5]))
        return instrument, pr.BlackScholes(x["v0"].sqrt()) if self.black_scholes else heston, market


def repeated(problem: AsianBarriers, point: Tensor, n_rows: int, n_paths: int, gradients: bool):
    """Independent labels of one point."""
    return simulated_labels(problem, point.repeat(n_rows, 1), n_paths, N_STEPS, seed=3, gradients=gradients)


@pytest.mark.parametrize(
    ("terms", "barrier"),
    [
        (("up-out", "call", "arithmetic"), 1.2),
        (("down-out", "put", "geometric"), 0.85),
        (("up-in", "call", "geometric"), 1.15),
        (("down-in", "put", "arithmetic"), 0.9),
    ],
)
def test_the_mean_of_labels_is_the_price(terms: tuple[str, str, str], barrier: float):
    problem, point = AsianBarriers(*terms), POINT.clone()
    point[0, NAMES.index("barrier")] = barrier
    labels = repeated(problem, point, 256, 64, gradients=False)
    # the engine's paths jump at the barrier and share nothing with ours but the scheme of the variance
    exact = pr.price(*problem.triple(point), pr.MonteCarlo(2**16, n_steps=N_STEPS, seed=1))
    error = (labels.value.var() / 256 + (exact.std_error / 100.0) ** 2).sqrt()
    assert error < 8e-4
    assert abs(labels.value.mean() - exact.value / 100.0) < 4 * error


@pytest.mark.parametrize("black_scholes", [True, False])
@pytest.mark.parametrize("contract", ["european", "one date", "geometric"])
def test_contracts_of_known_price_and_gradient(contract: str, black_scholes: bool):
    problem = OtherContracts(contract, black_scholes)
    point = POINT.clone().requires_grad_()
    instrument, model, market = problem.triple(point)
    if contract == "one date":
        level = point[:, NAMES.index("barrier")]
        expiry, strike = instrument.horizon, vars(instrument)["strike"]
        low, high = (pr.price(pr.European(k, expiry, "call"), model, market).value for k in (strike, level))
        value = low - high - (level - strike) * pr.price(pr.Digital(level, expiry, "call"), model, market).value
    else:
        value = pr.price(instrument, model, market).value
    (slope,) = torch.autograd.grad(value.sum(), point)
    labels = repeated(problem, point.detach(), 256, 256, gradients=True)
    assert labels.gradient is not None
    assert labels.gradient_std_error is not None
    for found, exact in [(labels.value, value[0].detach()), *zip(labels.gradient.unbind(-1), slope[0], strict=True)]:
        error = found.std() / 16.0
        assert abs(found.mean() - exact) <= 4 * error + 1e-3 * abs(exact) + 1e-12  # the bias of 16 steps
    own = labels.gradient_std_error.square().mean(0).sqrt()
    scatter = labels.gradient.std(0)
    torch.testing.assert_close(own, scatter, rtol=0.25, atol=1e-12)


@pytest.mark.parametrize(("kind", "barrier"), [("up-out", 1.2), ("down-in", 0.9)])
def test_gradients_are_differences_on_the_same_noise(kind: str, barrier: float):
    """With common noise the label is a differentiable function of the inputs: no jump is left."""
    problem, point = AsianBarriers(kind), POINT.clone()
    point[0, NAMES.index("barrier")] = barrier
    labels = repeated(problem, point, 4, 4096, gradients=True)
    assert labels.gradient is not None
    for column, name in enumerate(NAMES):
        step = 1e-3 * (HIGH - LOW)[column]
        ends = []
        for sign in (1.0, -1.0):
            moved = point.clone()
            moved[0, column] += sign * step
            ends.append(repeated(problem, moved, 4, 4096, gradients=False).value)
        difference = (ends[0] - ends[1]) / (2.0 * step)
        gap, slope = difference - labels.gradient[:, column], labels.gradient[:, column]
        # the curvature of the function and QE's switch between its branches are what is left
        assert gap.abs().mean() < 2e-3 * slope.abs().mean() + 1e-5, name


def test_a_variance_that_stays_near_zero_gives_no_rare_giant_slopes():
    """Where the variance of many paths dies out, slopes are differences in the mean, and none is huge."""
    point = POINT.clone()
    point[0, :5] = torch.tensor([0.04, 1.0, 0.04, 1.0, -0.7], dtype=torch.float64)
    rho, problem = NAMES.index("rho"), AsianBarriers()
    labels = simulated_labels(problem, point.repeat(1024, 1), 128, N_STEPS, seed=5, gradients=True)
    ends = []
    for sign in (1.0, -1.0):
        moved = point.clone()
        moved[0, rho] += sign * 0.007
        rows = moved.repeat(1024, 1)
        ends.append(simulated_labels(problem, rows, 128, N_STEPS, seed=5, gradients=False).value)
    assert labels.gradient is not None
    slope, difference = labels.gradient[:, rho], (ends[0] - ends[1]) / 0.014
    assert slope.abs().max() < 20 * slope.abs().median()
    gap = slope - difference
    assert abs(gap.mean()) < 4 * gap.std() / 32
    assert gap.std() / 32 < 0.02 * abs(difference.mean())


def test_standard_errors_are_the_scatter_of_repeats():
    labels = repeated(AsianBarriers(), POINT, 512, 64, gradients=True)
    assert labels.gradient is not None
    assert labels.gradient_std_error is not None
    pairs = [(labels.value, labels.std_error)]
    pairs += list(zip(labels.gradient.unbind(-1), labels.gradient_std_error.unbind(-1), strict=True))
    for values, errors in pairs:
        assert errors.square().mean().sqrt().item() == pytest.approx(values.std().item(), rel=0.15)


def test_errors_of_different_rows_are_independent():
    """Rows of one block, of neighbouring blocks, and of another seed have errors without correlation."""
    point = POINT.repeat(4096, 1)
    found = [
        simulated_labels(AsianBarriers(), point, 16, 4, seed=seed, gradients=False).value.reshape(-1, 64)
        for seed in (1, 2)
    ]
    errors = [values - values.mean() for values in found]
    first, second = errors
    others = [second, *(first.roll(shift, axis) for shift, axis in itertools.product((1, 2), (0, 1)))]
    for other in others:
        correlation = (first * other).mean() / (first.std() * other.std())
        assert abs(correlation) < 4 / 64


def test_labels_do_not_depend_on_the_rows_of_a_call():
    rows = LOW + (HIGH - LOW) * torch.rand(300, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = simulated_labels(AsianBarriers(), rows, 128, 8, seed=9, gradients=True, first_row=1000)
    for start, end in ((0, 1), (17, 230), (290, 300)):  # a block has 128 rows
        part = simulated_labels(
            AsianBarriers(), rows[start:end], 128, 8, seed=9, gradients=True, first_row=1000 + start
        )
        for one, other in zip(part, whole, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one, other[start:end], rtol=1e-12, atol=1e-14)
    moved = simulated_labels(AsianBarriers(), rows, 128, 8, seed=9, gradients=False, first_row=1001)
    possible = whole.value > 1e-12  # a strike above the barrier never pays
    assert possible.sum() > 200
    assert (moved.value[possible] != whole.value[possible]).all()
    assert (whole.std_error[possible] > 0).all()
    assert (whole.value >= 0).all()
    none = simulated_labels(AsianBarriers(), rows[:0], 128, 8, seed=9, gradients=True)
    assert none.value.shape == (0,)
    assert none.gradient is not None
    assert none.gradient.shape == (0, 9)


def test_truncated_normals_against_scipy_and_at_the_ends():
    from scipy import stats

    bound = torch.linspace(-8.0, 8.0, 33, dtype=torch.float64).repeat(3, 1).requires_grad_()
    uniform = torch.tensor([1e-9, 0.4, 0.999], dtype=torch.float64)[:, None].expand(3, 33)
    drawn, probability = truncated_normal(bound, uniform)
    exact = stats.norm.ppf(uniform.numpy() * stats.norm.cdf(bound.detach().numpy()))
    torch.testing.assert_close(drawn.detach(), torch.from_numpy(exact), rtol=1e-9, atol=1e-9)
    (slope,) = torch.autograd.grad(drawn.sum(), bound)
    with torch.no_grad():
        ends = [truncated_normal(bound.detach() + step, uniform)[0] for step in (1e-5, -1e-5)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-6)
    far = torch.tensor([-1e3, -38.0, 50.0], dtype=torch.float64, requires_grad=True)
    drawn, probability = truncated_normal(far, torch.full_like(far, 0.3).detach())
    slopes = torch.autograd.grad((drawn * probability).sum(), far)[0]
    assert drawn.isfinite().all()
    assert slopes.isfinite().all()
    assert probability[:2].max() < 1e-290
    assert probability[2] == 1.0


def test_bad_input_is_told():
    problem, rows = AsianBarriers(), POINT.repeat(4, 1)

    def call(inputs=rows, n_paths=64, n_steps=8, seed=1, first_row=0):
        return simulated_labels(problem, inputs, n_paths, n_steps, seed, gradients=False, first_row=first_row)

    broken = rows.clone()
    broken[2, 4] = float("nan")
    for message, changes in [
        ("`inputs` must be a float64", {"inputs": rows[0]}),
        ("`inputs` must be a float64", {"inputs": rows.float()}),
        ("in row 2", {"inputs": broken}),
        ("`n_paths` must be 16 or more", {"n_paths": 8}),
        ("`n_paths` must be a power of two, got 100; take 128", {"n_paths": 100}),
        ("`n_steps` must be 1 or more", {"n_steps": 0}),
        ("`first_row` must be 0 or more", {"first_row": -1}),
    ]:
        with pytest.raises(DataError, match=message):
            call(**changes)
    american = AsianBarriers()
    american.triple = lambda inputs: (pr.American(1.0, 1.0), pr.BlackScholes(0.2), pr.Market(1.0))
    with pytest.raises(DataError, match="not American"):
        simulated_labels(american, rows, 64, 8, 1, gradients=False)
    vols = AsianBarriers()
    vols.target = "implied_vol"
    with pytest.raises(DataError, match="not under Heston"):
        simulated_labels(vols, rows, 64, 8, 1, gradients=False)
    vols.target = "time_value"
    with pytest.raises(DataError, match="'price'"):
        simulated_labels(vols, rows, 64, 8, 1, gradients=False)
