"""Options of `calibrate`: heeded or refused by every method; few exact steps; what a smoothed history knows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from calibration.calibration_box import surfaces
from formula_smile import EXPIRIES, STRIKES, FormulaSmile, history_of, quotes_at, surface_of

from qfml.calibration import (
    HestonCalibration,
    InverseMap,
    Layout,
    SabrSmile,
    calibrate,
    smoothing,
    walk_forward_calibration,
)
from qfml.calibration.exact import exact_vols, refined
from qfml.calibration.inverse import Box
from qfml.calibration.model import Quotes
from qfml.calibration.smoothing import neighbours_information, unit_scale
from qfml.calibration.uncertainty import uncertainty
from qfml.errors import ConfigError, DataError
from qfml.networks import MLP

DAY = [0.25, -0.2, 0.3, 1.0]
FORMULA = FormulaSmile()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "inverse", "inverse": object(), "n_starts": 4}, "`n_starts` is of a search"),
        ({"method": "inverse", "inverse": object(), "n_polished": 4}, "`n_polished` is of a search"),
        ({"method": "inverse", "inverse": object(), "warm": True}, "`warm` starts each day"),
        ({"method": "inverse", "inverse": object(), "smoothness": 1.0}, "take the method 'polished'"),
        ({"method": "inverse", "inverse": object(), "surrogate": object()}, "leave out `surrogate`"),
        ({"method": "inverse", "inverse": object(), "max_steps": -1}, "`max_steps` must be a whole number, 0 or more"),
        ({"inverse": object(), "start": DAY}, "starts nowhere"),
        ({"inverse": object(), "n_starts": 4}, "`n_starts` is of a search"),
        ({"surrogate": object(), "warm": True}, "'polished' from a network"),
        ({"start": DAY, "n_polished": 4}, "`n_polished` is of a search"),
        ({"start": DAY, "warm": True}, "`warm` starts each day"),
        ({"n_starts": 4, "n_polished": 5}, "at most `n_starts`"),
        ({"max_steps": 0}, "`max_steps` must be a whole number, 1 or more"),
        ({"tolerance": 0.0}, "`tolerance` must be a number between 0 and 1"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"smoothness": float("inf")}, "finite"),
        ({"model": "sabr", "n_polished": 3}, "`n_polished` does not apply to sabr"),
        ({"model": "sabr", "warm": True}, "`warm` does not apply to sabr"),
        ({"model": "sabr", "start": DAY}, "`start` does not apply to sabr"),
        ({"model": "local_vol", "max_steps": 3}, "`max_steps` does not apply to local_vol"),
    ],
)
def test_options_that_a_method_cannot_heed_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        calibrate([surface_of(DAY)], **({"model": FORMULA} | settings))


def test_models_without_parameters_of_a_surface_are_refused_where_these_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"walk-forward calibration is for models .* sabr has none"):
        walk_forward_calibration(history_of([DAY] * 3), "sabr", horizons=(1,))
    with pytest.raises(ConfigError, match=r"inverse map is for models .* sabr has none"):
        InverseMap.train(SabrSmile(beta=0.5), Layout.standard(0.25, 1.0, n_expiries=2))
    with pytest.raises(ConfigError, match="`smoothness` is no option of a walk"):
        walk_forward_calibration(history_of([DAY] * 3), FORMULA, horizons=(1,), smoothness=1.0)


class Counting(FormulaSmile):
    """Counts the places at which it is asked for vols, and the steps of a search."""

    asked = SimpleNamespace(vols=0, steps=0)

    def vols(self, x: torch.Tensor, quotes: Quotes) -> torch.Tensor:
        self.asked.vols += len(x)
        return super().vols(x, quotes)

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> torch.Tensor:
        self.asked.steps = n
        return super().starts(quotes, n, generator)


def test_search_looks_at_as_many_starts_and_goes_as_many_steps_as_it_is_told() -> None:
    found = calibrate(surface_of(DAY), Counting(), n_starts=7, n_polished=1, max_steps=2)
    assert Counting.asked.steps == 7
    assert found.n_steps.tolist() == [2]
    assert found.status[0].startswith("not converged: the limit of steps")
    assert calibrate(surface_of(DAY), FORMULA, tolerance=1e-2).n_steps < calibrate(surface_of(DAY), FORMULA).n_steps


HESTON = HestonCalibration()


@pytest.fixture
def good_guess(monkeypatch: pytest.MonkeyPatch) -> tuple[InverseMap, Quotes, torch.Tensor]:
    """An inverse map of Heston that is off by some per cent, noisy quotes of 20 surfaces, and its answers."""
    rng = np.random.default_rng(4)
    centre = torch.tensor([[0.05, 2.0, 0.06, 0.6, -0.6]], dtype=torch.float64)
    x = centre * torch.from_numpy(np.exp(0.2 * rng.standard_normal((20, 5))))
    quotes = surfaces(HESTON, x, [0.1, 0.5, 1.5])
    quotes = Quotes(**(vars(quotes) | {"vol": quotes.vol + 5e-4 * torch.from_numpy(rng.standard_normal((20, 21)))}))
    answer = x * torch.from_numpy(np.exp(0.05 * rng.standard_normal((20, 5))))
    empty = torch.zeros(1, 1)
    made = InverseMap(HESTON, Layout.standard(0.1, 1.5), Box.of(HESTON), MLP(hidden=(4,)), *(empty,) * 5)
    seen = torch.zeros(20, dtype=torch.int64)
    monkeypatch.setattr(InverseMap, "answer", lambda self, some: (answer[: some.n_surfaces], seen[: some.n_surfaces]))
    return made, quotes, answer


def test_inverse_map_and_three_exact_steps_end_next_to_the_optimum(
    good_guess: tuple[InverseMap, Quotes, torch.Tensor],
) -> None:
    made, quotes, answer = good_guess
    bare = calibrate(quotes, method="inverse", inverse=made, max_steps=0)
    fast = calibrate(quotes, method="inverse", inverse=made)
    best = calibrate(quotes, start=answer)
    assert bare.x.tolist() == answer.tolist()
    assert all(said.startswith("read off by the network") for said in bare.status)
    assert not bare.converged.any()
    assert (bare.rmse_bps - best.rmse_bps).min() > 1.0
    assert np.abs(fast.rmse_bps - best.rmse_bps).max() < 0.02
    assert fast.n_steps.max() == 3
    assert fast.converged.any()
    assert all(
        said.startswith("converged" if done else "refined: the network's answer")
        for said, done in zip(fast.status, fast.converged, strict=True)
    )
    for name in fast.params:
        assert fast.std_error[name] == pytest.approx(best.std_error[name], rel=0.03)
    assert fast.vols == pytest.approx(exact_vols(HESTON, torch.tensor(fast.x), quotes).numpy(), abs=1e-12)
    further = calibrate(quotes, method="inverse", inverse=made, max_steps=50, tolerance=1e-10)
    assert further.converged.all()
    assert further.sse == pytest.approx(best.sse, rel=1e-6)


def test_surfaces_are_refined_alike_in_any_batch(good_guess: tuple[InverseMap, Quotes, torch.Tensor]) -> None:
    _, quotes, answer = good_guess
    alone, together = refined(HESTON, quotes.at([7]), answer[[7]]), refined(HESTON, quotes, answer)
    torch.testing.assert_close(alone.x[0], together.x[7], rtol=1e-10, atol=0.0)


def noisy_days() -> Quotes:
    """Days of the formula whose level walks, with noise; two days without quotes."""
    rng, n_days = np.random.default_rng(8), 5
    expiry, k = (grid.flatten() for grid in np.meshgrid(EXPIRIES, np.log(STRIKES), indexing="ij"))
    quotes = quotes_at(k, expiry, n_days)
    x = torch.tensor([DAY] * n_days, dtype=torch.float64)
    x[:, 0] += torch.from_numpy(0.02 * rng.standard_normal(n_days).cumsum())
    vol = FORMULA.vols(x, quotes) + 0.003 * torch.from_numpy(rng.standard_normal(quotes.vol.shape))
    weight = torch.from_numpy(rng.uniform(0.5, 2.0, quotes.vol.shape))
    weight[[0, 3]] = 0.0
    return Quotes(**(vars(quotes) | {"vol": vol, "weight": weight}))


def dense(quotes: Quotes, x: torch.Tensor, smoothness: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all days at once, in y: the days' normal matrices on a diagonal, the penalty, and the scale dx / dy."""
    _, slope = unit_scale(FORMULA.parameters, x)
    _, jacobian = FORMULA.vols_and_jacobian(x, quotes)
    n_days, n = x.shape
    rows = torch.where(quotes.used[..., None], quotes.root_weight[..., None] * jacobian * slope[:, None], 0.0).numpy()
    normal = np.zeros((n_days * n, n_days * n))
    for day in range(n_days):
        normal[day * n : day * n + n, day * n : day * n + n] = rows[day].T @ rows[day]
    changes = np.diff(np.eye(n_days), axis=0)
    return normal, smoothness * np.kron(changes.T @ changes, np.eye(n)), slope.numpy().flatten()


@pytest.mark.parametrize("smoothness", [1e-6, 1e-2, 1e3])
def test_errors_of_a_smoothed_history_are_those_of_the_dense_penalised_problem(smoothness: float) -> None:
    quotes = noisy_days()
    found = calibrate(quotes, FORMULA, smoothness=smoothness)
    x = torch.tensor(found.x)
    normal, penalty, slope = dense(quotes, x, smoothness)
    inverse = np.linalg.inv(normal + penalty)
    used = quotes.used.numpy()
    square = (quotes.weight.numpy() * np.nan_to_num(found.residuals) ** 2)[used].sum()
    covariance = square / (used.sum() - np.trace(inverse @ normal)) * inverse * np.outer(slope, slope)
    errors = np.sqrt(np.diag(covariance)).reshape(5, 4)
    assert np.stack(list(found.std_error.values()), -1) == pytest.approx(errors, rel=1e-5)
    block = covariance[8:12, 8:12]
    assert found.correlation[2] == pytest.approx(block / np.outer(errors[2], errors[2]), abs=1e-5)
    blurred = [i for i, said in enumerate(found.warnings) if any("is not identified" in line for line in said)]
    assert blurred == ([] if smoothness > 1e-3 else [0, 3])


def test_parameter_at_its_bound_is_held_while_the_others_know_their_neighbours() -> None:
    quotes = noisy_days().at([1, 2, 4])
    x = torch.tensor([DAY] * 3, dtype=torch.float64)
    x[1, 2] = FORMULA.parameters[2].lower + 1e-6
    _, jacobian = FORMULA.vols_and_jacobian(x, quotes)
    prior = neighbours_information(x, jacobian, quotes.weight, FORMULA.parameters, 1e-2)
    known = uncertainty(x, 0.01 * torch.ones_like(quotes.vol), jacobian, quotes.weight, FORMULA.parameters, prior)
    assert known.at_bound.nonzero().tolist() == [[1, 2]]
    normal, penalty, slope = dense(quotes, x, 1e-2)
    free = [i for i in range(12) if i != 6]
    inverse = np.linalg.inv((normal + penalty)[np.ix_(free, free)])
    freedom = int(quotes.used.sum()) - np.trace(inverse @ normal[np.ix_(free, free)])
    variance = 1e-4 * quotes.weight[quotes.used].sum().item() / freedom
    errors = np.sqrt(variance * np.diag(inverse)) * slope[free]
    found = known.std_error.flatten().numpy()
    assert np.isnan(found[6])
    assert found[free] == pytest.approx(errors, rel=1e-5)


def test_days_without_quotes_get_what_their_neighbours_give_and_say_so() -> None:
    found = calibrate(noisy_days(), FORMULA, smoothness=1e-2)
    y, _ = unit_scale(FORMULA.parameters, torch.tensor(found.x))
    torch.testing.assert_close(y[0], y[1], rtol=1e-6, atol=1e-7)  # nothing pulls it elsewhere
    torch.testing.assert_close(y[3], 0.5 * (y[2] + y[4]), rtol=1e-6, atol=1e-7)
    assert [said.startswith("no quotes: the parameters are those") for said in found.status] == [1, 0, 0, 1, 0]
    assert found.converged.tolist() == [False, True, True, False, True]
    assert np.isnan(found.rmse_bps[[0, 3]]).all()
    assert (found.std_error["level"][3] > found.std_error["level"][[2, 4]]).all()
    nothing = Quotes(**(vars(noisy_days()) | {"weight": torch.zeros(5, 21, dtype=torch.float64)}))
    lost = calibrate(nothing, FORMULA, smoothness=1e-2)
    assert set(lost.status) == {"failed: the surface has no quotes"}
    assert np.isnan(lost.x).all()


def test_days_that_were_not_smoothed_have_errors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    quotes = noisy_days().at([1, 2])
    apart = calibrate(quotes, FORMULA)
    monkeypatch.setattr(
        smoothing, "floored_vols_and_jacobian", lambda *_: (torch.full((2, 21), torch.inf), torch.ones(2, 21, 4))
    )
    found = calibrate(quotes, FORMULA, smoothness=1.0)
    assert all(said.startswith("not smoothed") for said in found.status)
    assert found.std_error["level"].tolist() == apart.std_error["level"].tolist()


def test_surfaces_whose_quotes_are_not_where_the_map_looks_are_warned_of(
    good_guess: tuple[InverseMap, Quotes, torch.Tensor],
) -> None:
    made, quotes, _ = good_guess
    weight = torch.where(quotes.expiry == 0.5, quotes.weight, 0.0)
    weight[1:] = quotes.weight[1:]
    said = calibrate(Quotes(**(vars(quotes) | {"weight": weight})), HESTON, "inverse", inverse=made).warnings
    # of eight expiries from 0.1 to 1.5 seven are not within a tenth of 0.5
    told = [int(line.split(" of ")[0]) for line in said[0] if "at which the inverse map looks lie beyond" in line]
    assert told
    assert 7 * 11 <= told[0] <= 88


@pytest.mark.parametrize("settings", [{"warm": True}, {"smoothness": 1e-4}])
def test_days_out_of_order_are_refused_where_they_follow_one_another(settings: dict[str, Any]) -> None:
    days = list(history_of([DAY] * 3))
    with pytest.raises(DataError, match=r"the dates of a history must ascend, but 2\S+ follows 2\S+ at place 1"):
        calibrate([days[2], days[0], days[1]], FORMULA, **settings)
    assert calibrate(days, FORMULA, **settings).converged.all()
    assert calibrate([days[2], days[0]], FORMULA).converged.all()  # each by itself, in any order
