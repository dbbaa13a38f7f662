"""The search of a calibration: many starts of all surfaces at once, or one start, or day by day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qfml.calibration.exact import Fit, fit, joined, screened
from qfml.calibration.model import CalibrationModel, Quotes
from qfml.errors import ConfigError

__all__ = ["Search"]

WORSE = 4.0  # mean squared error, over that of the day before, from which on a warm start is not trusted


@dataclass(frozen=True)
class Search:
    """Least squares from many starts.

    Args:
        n_starts: Sobol points that are looked at for each surface.
        n_polished: the best of them, which are followed to the end.
        max_steps: of the least squares, from each start.
        tolerance: of the least squares, relative.
        seed: of the points.
    """

    n_starts: int
    n_polished: int
    max_steps: int
    tolerance: float
    seed: int = 0

    @classmethod
    def exact(cls, n_parameters: int) -> Search:
        """What an exact calibration needs to end at the best optimum, as a rule."""
        return cls(16 * n_parameters, (n_parameters + 1) // 2, 100, 1e-10)

    @classmethod
    def neural(cls) -> Search:
        """What is enough through a surrogate, whose own error is far above the tolerance."""
        return cls(64, 4, 50, 1e-6)

    def changed(self, options: Mapping[str, Any]) -> Search:
        """With these options in place of its own; those that are None change nothing.

        Raises:
            ConfigError: more starts are to be followed than looked at.
        """
        given = {name: value for name, value in options.items() if value is not None}
        values = vars(self) | given
        if values["n_polished"] > values["n_starts"]:
            if "n_polished" in given:
                raise ConfigError(
                    f"`n_polished` must be at most `n_starts`, got {values['n_polished']} of {values['n_starts']}"
                )
            values["n_polished"] = values["n_starts"]
        return Search(**values)

    @property
    def steps(self) -> dict[str, Any]:
        """What least squares is told."""
        return {"max_steps": self.max_steps, "tolerance": self.tolerance}

    def from_(self, model: CalibrationModel, quotes: Quotes, start: Tensor) -> Fit:
        """Fits from one start (S, P) each."""
        return fit(model, quotes, start.unsqueeze(1), **self.steps)

    def everywhere(self, model: CalibrationModel, quotes: Quotes) -> Fit:
        """The best fits from many starts."""
        generator = torch.Generator().manual_seed(self.seed)
        starts = model.starts(quotes, self.n_starts, generator)
        return fit(model, quotes, screened(model, quotes, starts, self.n_polished), **self.steps)

    def day_by_day(self, model: CalibrationModel, quotes: Quotes) -> Fit:
        """Each surface from the parameters of the one before, and searched where that fits badly."""
        days: list[Fit] = []
        error_before = torch.inf
        for day in range(quotes.n_surfaces):
            today = quotes.at([day])
            count = today.used.sum().clamp(min=1)
            found = None
            if days and bool(days[-1].converged):
                found = self.from_(model, today, days[-1].x)
                error = (found.cost / count).item()
                if not (bool(found.converged) and error <= WORSE * error_before):
                    found = None
            if found is None:
                found = self.everywhere(model, today)
            error_before = (found.cost / count).item()
            days.append(found)
        return joined(days)
