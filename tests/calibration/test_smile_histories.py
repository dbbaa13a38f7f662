"""Histories of smiles with holes: what a surface lacks is NaN and said, and the others are as if alone."""

from typing import Any

import numpy as np
import pytest
import torch

from qfml.calibration import SabrSmile, SsviSurface, Surface, SviSmile
from qfml.calibration.smile_fit import FittedSmiles
from qfml.calibration.smile_result import summary
from qfml.calibration.smiles import smiles_of
from qfml.calibration.surface import as_quotes

MODELS = (SabrSmile(beta=0.5), SviSmile(butterfly_free=False), SsviSurface())


def weighted(surface: Surface, weight: float) -> Surface:
    parts = {name: getattr(surface, name) for name in ("strike", "expiry", "vol", "forward")}
    return Surface(**parts, weight=weight)


@pytest.fixture(scope="module")
def history() -> list[Surface]:
    """Eight expiries, none, three in the middle, and one with fewer quotes than parameters."""
    day = Surface.dax_2002()
    middle = day.where((day.expiry > 0.1) & (day.expiry < 0.6))
    return [day, weighted(day, 0.0), middle, day.where([0, 6])]


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.kind)
def fits(request: pytest.FixtureRequest, history: list[Surface]) -> Any:
    return request.param.fit_surfaces(history)


def test_each_surface_is_as_if_alone(fits: Any, history: list[Surface]) -> None:
    model = fits.model
    for row, surface in enumerate(history):
        if row == 1:
            continue
        alone, n = model.fit_surfaces([surface]), len(surface.expiries)
        np.testing.assert_allclose(fits.residuals[row, : len(surface)], alone.residuals, rtol=1e-4, atol=1e-8)
        assert np.isnan(fits.residuals[row, len(surface) :]).all()
        if row == 3:  # two quotes: any smile through them will do
            assert fits.warnings[row][0] == alone.warnings[0]
            assert "not identified: 2 quotes" in alone.warnings[0]
        else:
            assert fits.warnings[row] == alone.warnings
        np.testing.assert_array_equal(fits.expiries[row], np.pad(alone.expiries, (0, 8 - n), constant_values=np.nan))
        assert set(fits.params) == set(fits.std_error)
        for name, values in alone.params.items():
            for all_rows, own in ((fits.params[name], values), (fits.std_error[name], alone.std_error[name])):
                if np.ndim(own):
                    assert np.isnan(all_rows[row, n:]).all()
                    all_rows = all_rows[:, :n]
                if row == 0:  # the others are hardly determined
                    np.testing.assert_allclose(all_rows[row], own, rtol=1e-3)
                else:
                    np.testing.assert_array_equal(np.isfinite(all_rows[row]), np.isfinite(own))
        assert fits.sse[row] == pytest.approx(alone.sse, rel=1e-4, abs=1e-9)


def test_a_surface_without_quotes_has_no_numbers_and_says_so(fits: Any) -> None:
    for values in (*fits.params.values(), *fits.std_error.values(), fits.correlation, fits.rmse_bps, fits.sse):
        assert np.isnan(values[1]).all()
    assert not np.any(fits.converged[1])
    said = fits.status[1]
    assert (said if isinstance(said, str) else said[0]) == "failed: no quote has a weight above 0"
    assert "nan" not in str(fits)


def test_a_fit_without_numbers_is_blank_throughout(history: list[Surface]) -> None:
    """As where no start gives finite vols: neither errors nor correlations nor a density may look known."""
    model, smiles = SabrSmile(beta=0.5), smiles_of(as_quotes(history[:1]))
    fit = model.fit(smiles, model.usual)
    parts = {name: value.clone() for name, value in vars(fit).items()}
    parts["status"][2] = 5
    for name in ("cost", "errors", "jacobian"):
        parts[name][2] = torch.nan
    numbers, warnings = summary(model, smiles, FittedSmiles(**parts))
    whole, _ = summary(model, smiles, fit)
    tables = {name: numbers[name] for name in ("correlation", "rmse_bps", "max_bps", "density_from", "density_to")}
    tables |= {f"{kind} {name}": values for kind in ("params", "std_error") for name, values in numbers[kind].items()}
    for name, table in tables.items():
        assert np.isnan(table[0, 2]).all(), name
    assert warnings[2] == []
    assert not numbers["converged"][0, 2]
    kept = [0, 1, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(numbers["correlation"][0, kept], whole["correlation"][0, kept])
    np.testing.assert_array_equal(numbers["params"]["nu"][0, kept], whole["params"]["nu"][0, kept])
