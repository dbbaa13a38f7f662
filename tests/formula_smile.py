"""A smile in closed form that calibrates in no time, and surfaces that follow it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.history import SurfaceHistory
from qfml.calibration.model import Parameter, Quotes, draw_starts
from qfml.calibration.surface import Surface

NEVER = 0.123  # an expiry at which the formula has no vol


@dataclass(frozen=True)
class FormulaSmile:
    """vol = level + skew exp(-decay T) k + bend k^2."""

    kind: ClassVar[str] = "formula_smile"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return (
            Parameter("level", 0.01, 2.0, 0.1, 0.6, "log"),
            Parameter("skew", -2.0, 2.0, -0.4, 0.0),
            Parameter("bend", 0.0, 5.0, 0.05, 0.5),
            Parameter("decay", 0.0, 20.0, 0.2, 3.0),
        )

    def vols(self, x: Tensor, quotes: Quotes) -> Tensor:
        return self.vols_and_jacobian(x, quotes)[0]

    def vols_and_jacobian(self, x: Tensor, quotes: Quotes) -> tuple[Tensor, Tensor]:
        level, skew, bend, decay = (column[:, None] for column in x.unbind(-1))
        k, expiry = quotes.log_moneyness, quotes.expiry
        faded = torch.exp(-decay * expiry) * k
        vols = torch.where(expiry == NEVER, torch.nan, level + skew * faded + bend * k * k)
        slopes = torch.stack([torch.ones_like(k), faded, k * k, -expiry * skew * faded], dim=-1)
        unused = ~quotes.used
        return vols.masked_fill(unused, torch.nan), slopes.masked_fill(unused[..., None], torch.nan)

    def starts(self, quotes: Quotes, n: int, generator: torch.Generator) -> Tensor:
        return draw_starts(self.parameters, quotes.n_surfaces, n, generator)

    def pricer(self, x: Tensor) -> Any:
        return None


STRIKES, EXPIRIES = np.exp(np.linspace(-0.4, 0.4, 7)), (0.1, 0.5, 1.5)


def surface_of(
    x: list[float], day: int = 0, noise: float = 0.0, spread: float | None = None, expiries: Any = EXPIRIES
) -> Surface:
    """The surface of the formula at the parameters `x`, on a given day."""
    expiry, strike = (grid.flatten() for grid in np.meshgrid(expiries, STRIKES, indexing="ij"))
    quotes = quotes_at(np.log(strike), np.where(expiry == NEVER, 0.1, expiry))
    vol = FormulaSmile().vols(torch.tensor([x], dtype=torch.float64), quotes)[0].numpy()
    vol = vol + noise * np.random.default_rng(day).standard_normal(len(vol))
    sides = {} if spread is None else {"bid": vol - spread, "ask": vol + spread}
    date = np.datetime64("2024-01-01") + np.timedelta64(day, "D")
    return Surface(strike=100 * strike, expiry=expiry, vol=vol, forward=100.0, date=date, vol_unit="decimal", **sides)


def quotes_at(log_moneyness: Any, expiry: Any, n_surfaces: int = 1) -> Quotes:
    """Places of quotes, the same on all surfaces, with vols of 1."""
    k, expiry = (
        torch.as_tensor(value, dtype=torch.float64).expand(n_surfaces, -1) for value in (log_moneyness, expiry)
    )
    return Quotes.bare(k, expiry)


def history_of(rows: list[list[float]], noise: float = 0.0, spread: float | None = None) -> SurfaceHistory:
    """A surface a day."""
    return SurfaceHistory([surface_of(x, day, noise, spread) for day, x in enumerate(rows)])
