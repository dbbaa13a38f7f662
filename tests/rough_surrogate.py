"""A small surrogate of the kind rough_bergomi, trained on a skew in closed form: there in about a second."""

import functools

import numpy as np
import torch
from surrogate_cases import quick, table_of

from qfml.calibration import Surface
from qfml.surrogate import Problem, Range, Surrogate, fit_surrogate

BOX = {
    "hurst": Range(0.05, 0.4),
    "xi": Range(0.02, 0.1, "log"),
    "rho": Range(-0.9, -0.2),
    "expiry": Range(0.1, 2.0),
    "log_moneyness": Range(-0.4, 0.4),
}
PROBLEM = Problem(
    model={"kind": "rough_bergomi", "eta": 1.9}, instrument={"kind": "european"}, box=BOX, target="implied_vol"
)


def skew(inputs: torch.Tensor) -> torch.Tensor:
    """vol = root xi (1 + rho k T^(hurst - 1/2) / 2 + k^2) of inputs (N, 5)."""
    hurst, xi, rho, expiry, k = inputs.unbind(-1)
    return xi.sqrt() * (1 + 0.5 * rho * k * expiry ** (hurst - 0.5) + k * k)


@functools.cache
def rough_surrogate() -> Surrogate:
    generator = torch.Generator().manual_seed(3)
    low, high = (
        torch.tensor([getattr(one, end) for one in BOX.values()], dtype=torch.float64) for end in ("low", "high")
    )
    rows = low + (high - low) * torch.rand(500, len(BOX), generator=generator, dtype=torch.float64)
    return fit_surrogate(PROBLEM, table_of(PROBLEM, rows, skew(rows)), quick(12, (16, 16)))


def rough_surface(hurst: float, xi: float, rho: float, spread: float | None = None, weight: float = 1.0) -> Surface:
    """Quotes of the same formula."""
    expiry, k = (grid.ravel() for grid in np.meshgrid([0.2, 0.5, 1.0, 1.8], np.linspace(-0.3, 0.3, 7), indexing="ij"))
    rows = torch.as_tensor(np.stack([np.full_like(k, value) for value in (hurst, xi, rho)] + [expiry, k], axis=-1))
    vol = skew(rows).numpy()
    sides = {} if spread is None else {"bid": vol - spread, "ask": vol + spread}
    return Surface(strike=100 * np.exp(k), expiry=expiry, vol=vol, forward=100.0, weight=weight, **sides)
