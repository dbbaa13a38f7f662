"""Many surfaces as one padded batch: what a calibration works on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qfml.calibration.model import Quotes
from qfml.errors import DataError

if TYPE_CHECKING:
    from qfml.calibration.surface import Surface

__all__ = ["as_quotes", "black_vega"]


def black_vega(log_moneyness: torch.Tensor, expiry: torch.Tensor, vol: torch.Tensor) -> torch.Tensor:
    """Black's vega per unit of discount factor times forward."""
    deviation = vol * expiry.sqrt()
    d1 = 0.5 * deviation - log_moneyness / deviation
    return torch.exp(-0.5 * d1**2) * (expiry / (2.0 * torch.pi)).sqrt()


def as_quotes(surfaces: Any) -> Quotes:
    """Surfaces as one padded batch of float64 tensors of shape `(n_surfaces, most quotes)`.

    A shorter surface repeats its first quote with weight 0 up to the length of the longest.

    Args:
        surfaces: a `Surface`, or a sequence of them such as a `SurfaceHistory`.

    Raises:
        DataError: there is no surface.

    >>> from qfml.calibration.surface import Surface
    >>> as_quotes([Surface.dax_2002()]).vol.shape
    torch.Size([1, 104])
    """
    batch: Sequence[Surface] = [surfaces] if hasattr(surfaces, "strike") else list(surfaces)
    if not batch:
        raise DataError("there are no surfaces to calibrate to; give one or more")
    length = np.array([len(surface) for surface in batch])
    start = np.cumsum(length) - length
    column = np.arange(length.max())
    real = column < length[:, None]
    index = torch.from_numpy(np.where(real, start[:, None] + column, start[:, None]))
    flat = {
        name: torch.from_numpy(np.concatenate([getattr(surface, name) for surface in batch]))
        for name in ("strike", "expiry", "vol", "weight", "forward")
    }
    log_moneyness = torch.log(flat.pop("strike") / flat["forward"])
    padded = {name: values[index] for name, values in ({"log_moneyness": log_moneyness} | flat).items()}
    padded["weight"] = padded["weight"] * torch.from_numpy(real)
    return Quotes(**padded)
