"""Posteriors against those known in closed form, the prior where the quotes say nothing, ranks of the truth."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from formula_smile import FormulaSmile, quotes_at, surface_of
from scipy import stats
from torch import Tensor

from qfml.calibration.model import Parameter, Quotes
from qfml.calibration.posterior import half_spreads, posterior, residual_std
from qfml.errors import ConfigError, DataError


@dataclass(frozen=True)
class Line:
    """vol = a + b k: a posterior that is normal. The chains move in the logarithm of a."""

    kind: ClassVar[str] = "line"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (Parameter("a", 0.01, 4.0, 0.1, 1.0, "log"), Parameter("b", -3.0, 5.0, -1.0, 1.0))

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        k = quotes.log_moneyness
        return x[:, :1] + x[:, 1:] * k, torch.stack([torch.ones_like(k), k], dim=-1)

    def vols(self, x: Tensor, quotes: Quotes) -> Tensor:
        return self.vols_and_jacobian(x, quotes)[0]

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def pricer(self, x: Tensor) -> Any:
        return None


def line_quotes() -> Quotes:
    """Two surfaces of a line with errors, of different lengths; the second is heteroscedastic by its weights."""
    rng = np.random.default_rng(1)
    k = torch.linspace(-0.5, 0.7, 9, dtype=torch.float64).expand(2, -1)
    vol = 1.0 + 0.3 * k + 0.05 * torch.from_numpy(rng.standard_normal((2, 9)))
    weight = torch.ones(2, 9, dtype=torch.float64)
    weight[1] = torch.linspace(0.5, 2.0, 9)
    weight[1, -2:] = 0.0
    one = torch.ones_like(k)
    return Quotes(k, one, vol, weight, one)


def test_posterior_of_a_linear_model_is_the_normal_law_of_least_squares() -> None:
    quotes = line_quotes()
    std = 0.05 / torch.where(quotes.used, quotes.weight, 1.0).sqrt()
    design = torch.stack([torch.ones_like(quotes.log_moneyness), quotes.log_moneyness], dim=-1)
    precision = torch.where(quotes.used, std**-2, 0.0)
    covariance = torch.linalg.inv(design.mT @ (precision[..., None] * design))
    mean = (covariance @ (design.mT @ (precision * quotes.vol)[..., None]))[..., 0]
    found = posterior(Line(), quotes, mean, vol_std=std, n_chains=32, n_draws=60, n_warmup=80, seed=3)
    assert (found.r_hat < 1.05).all()  # of 32 chains of 60 draws
    assert found.divergences.tolist() == [0, 0]
    truth = torch.diagonal(covariance, dim1=1, dim2=2).sqrt()
    assert ((found.mean - mean).abs() < 4 * truth / found.effective_draws.sqrt()).all()
    # means gain from draws that alternate, which effective draws count; spreads do not: 1920 draws, half as many worth
    assert ((found.std / truth - 1).abs() < 4 / math.sqrt(2 * 800)).all()
    correlation = covariance[:, 0, 1] / truth.prod(1)
    assert ((found.correlation()[:, 0, 1] - correlation).abs() < 0.1).all()
    low, high = found.quantile((0.05, 0.95))  # of 1000 draws they err by 0.067 standard deviations
    assert ((low - (mean - 1.645 * truth)).abs() < 4 * 0.067 * truth).all()
    assert ((high - (mean + 1.645 * truth)).abs() < 4 * 0.067 * truth).all()


def test_prior_is_uniform_in_natural_units_where_quotes_say_nothing() -> None:
    centre = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    quotes = quotes_at([0.0, 0.1, 0.2], [1.0, 1.0, 1.0])
    found = posterior(Line(), quotes, centre, vol_std=1e3, n_chains=64, n_draws=60, n_warmup=60)
    draws = found.draws.flatten(0, 2).numpy()
    worth = float(found.effective_draws.min())
    for column, (low, high) in zip(draws.T, ((0.01, 4.0), (-3.0, 5.0))):
        share = (column - low) / (high - low)
        assert share.min() > 0
        assert share.max() < 1
        distance = stats.kstest(share, "uniform").statistic
        assert distance < 1.95 / math.sqrt(worth)  # one in a thousand, of so many independent draws


@pytest.mark.slow
def test_truth_has_uniform_ranks_in_the_posteriors_of_surfaces_drawn_from_the_prior() -> None:
    """Simulation-based calibration (Talts and others 2018): all surfaces in one batch."""
    model, n = FormulaSmile(), 100
    box = {"level": (0.15, 0.5), "skew": (-0.4, 0.0), "bend": (0.05, 0.6), "decay": (0.3, 3.0)}
    rng = np.random.default_rng(8)
    low, high = (torch.tensor([ends[side] for ends in box.values()], dtype=torch.float64) for side in (0, 1))
    truth = low + (high - low) * torch.from_numpy(rng.uniform(0.001, 0.999, (n, 4)))
    k, expiry = (grid.flatten() for grid in np.meshgrid(np.linspace(-0.3, 0.3, 5), [0.2, 1.0]))
    quotes = quotes_at(k, expiry, n)
    noisy = model.vols(truth, quotes) + 0.01 * torch.from_numpy(rng.standard_normal(quotes.vol.shape))
    quotes = Quotes(**(vars(quotes) | {"vol": noisy}))
    centre = low + (high - low) * 0.5  # as rough an optimum as there is
    found = posterior(
        model, quotes, centre.expand(n, -1).clone(), vol_std=0.01, box=box, n_chains=4, n_draws=120, n_warmup=120
    )
    draws = found.draws.flatten(1, 2)[:, ::5]
    rank = (draws < truth[:, None]).double().mean(1).numpy()
    for column in rank.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    inside = (rank > 0.1) & (rank < 0.9)
    assert abs(inside.mean() - 0.8) < 0.06


def test_half_spreads_and_residual_errors_are_those_of_the_quotes() -> None:
    one, two = surface_of([0.2, -0.2, 0.3, 1.0], spread=0.004), surface_of([0.3, -0.2, 0.3, 1.0], 1, spread=0.002)
    assert torch.allclose(half_spreads([one, two])[:, 0], torch.tensor([0.004, 0.002], dtype=torch.float64))
    quotes = line_quotes()
    x = torch.tensor([[1.0, 0.3], [1.0, 0.3]], dtype=torch.float64)
    error = quotes.vol - Line().vols(x, quotes)
    found = residual_std(Line(), quotes, x)
    assert torch.allclose(found[0], error[0].square().sum().div(9 - 2).sqrt().expand(9))
    weighted = (quotes.weight[1] * error[1].square()).sum().div(7 - 2).sqrt()
    assert torch.allclose(found[1, :7], weighted / quotes.weight[1, :7].sqrt())


def test_what_gives_no_posterior_is_refused() -> None:
    quotes, x = line_quotes(), torch.tensor([[1.0, 0.3], [1.0, 0.3]], dtype=torch.float64)
    with pytest.raises(ConfigError, match="finite range of `b`"):
        posterior(Line(), quotes, x, vol_std=0.1, box={"b": (-1.0, math.inf)})
    with pytest.raises(ConfigError, match="`c` is no parameter"):
        posterior(Line(), quotes, x, vol_std=0.1, box={"c": (0.0, 1.0)})
    with pytest.raises(ConfigError, match="range of `a` must be two numbers, low and high, got 'wide'"):
        posterior(Line(), quotes, x, vol_std=0.1, box={"a": "wide"})
    with pytest.raises(ConfigError, match="`optimum` must lie strictly inside"):
        posterior(Line(), quotes, x, vol_std=0.1, box={"a": (0.1, 0.9)})
    with pytest.raises(ConfigError, match="`vol_std` must be above 0"):
        posterior(Line(), quotes, x, vol_std=0.0)
    with pytest.raises(ConfigError, match="`n_draws`"):
        posterior(Line(), quotes, x, vol_std=0.1, n_draws=2)
    few = quotes_at([0.0, 0.1], [1.0, 1.0])
    with pytest.raises(DataError, match="2 quotes for 2 parameters"):
        posterior(Line(), few, x[:1])
    perfect = Quotes(**(vars(quotes) | {"vol": Line().vols(x, quotes)}))
    with pytest.raises(DataError, match="give `vol_std`"):
        posterior(Line(), perfect, x)
    with pytest.raises(DataError, match="no bid and ask"):
        half_spreads([surface_of([0.2, -0.2, 0.3, 1.0])])


def test_short_chains_are_warned_about() -> None:
    quotes, x = line_quotes(), torch.tensor([[1.0, 0.3], [1.0, 0.3]], dtype=torch.float64)
    found = posterior(Line(), quotes, x, vol_std=0.05, n_chains=2, n_draws=10, n_warmup=0)
    assert all(any("independent ones" in sentence for sentence in own) for own in found.warnings)
    assert found.to_dict()[0]["parameters"]["a"]["mean"] == pytest.approx(float(found.mean[0, 0]))


@pytest.mark.slow
def test_heston_posterior_agrees_with_gauss_and_newton_where_the_quotes_say_much() -> None:
    from qfml.calibration.calibrate import calibrate
    from qfml.calibration.heston import HestonCalibration
    from qfml.calibration.surface import as_quotes
    from qfml.calibration.synthetic import SyntheticHeston

    market = SyntheticHeston(n_days=1, seed=3, vol_noise_bps=5.0)
    history = market.history()
    fitted = calibrate(history, "heston")
    found = posterior(
        HestonCalibration(), as_quotes(history), torch.from_numpy(fitted.x), n_chains=16, n_draws=60, n_warmup=60
    )
    linear = torch.tensor([float(error[0]) for error in fitted.std_error.values()], dtype=torch.float64)
    assert ((found.std[0] / linear - 1).abs() < 0.2).all()
    assert ((found.mean[0] - torch.from_numpy(fitted.x[0])).abs() < 0.5 * linear).all()
    assert ((market.x[0] - found.mean[0]).abs() < 4 * found.std[0]).all()


class Refusing(Line):
    """A line that has no vols above an intercept of 1.2: chains that start there are drawn again."""

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        vols, jacobian = super().vols_and_jacobian(x, quotes)
        return vols.masked_fill(x[:, :1] > 1.2, torch.nan), jacobian


def test_draws_of_a_surface_do_not_depend_on_its_neighbours() -> None:
    quotes = line_quotes()
    settings = {"vol_std": 0.2, "n_chains": 8, "n_draws": 10, "n_warmup": 10, "seed": 4}
    beside = [
        posterior(Refusing(), quotes, torch.tensor([[1.0, 0.3], other], dtype=torch.float64), **settings).draws[0]
        for other in ([0.9, 0.3], [1.199, 0.3])
    ]
    torch.testing.assert_close(*beside, rtol=1e-9, atol=1e-9)
