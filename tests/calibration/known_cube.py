"""A swaption cube whose parameters are known."""

from typing import Any

import numpy as np
import torch

from pricers.analytic.sabr import hagan_lognormal_vol

EXPIRIES, TENORS = np.array([0.25, 1.0, 5.0, 10.0]), np.array([1.0, 5.0, 10.0, 30.0])
OFFSETS_BPS = np.array([-200.0, -100.0, -50.0, -25.0, 0.0, 25.0, 50.0, 100.0, 200.0])
SHIFT, BETA = 0.03, 0.5


def table(seed: int = 1) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Quotes of a cube, some of them at negative rates, and the parameters of its nodes (4, 4)."""
    rng = np.random.default_rng(seed)
    shape = (len(EXPIRIES), len(TENORS))
    forward = rng.uniform(-0.002, 0.03, shape)
    level = rng.uniform(0.1, 0.35, shape)
    truth = {
        "alpha": level * (forward + SHIFT) ** (1.0 - BETA),
        "rho": rng.uniform(-0.5, 0.3, shape),
        "nu": rng.uniform(0.2, 0.5, shape),
    }
    forward, expiry, tenor = (
        np.repeat(part.ravel(), 9) for part in (forward, *np.meshgrid(EXPIRIES, TENORS, indexing="ij"))
    )
    strike = np.maximum(forward + 1e-4 * np.tile(OFFSETS_BPS, 16), -0.025 + 1e-4 * np.tile(np.arange(9), 16))
    numbers = [np.repeat(truth[name].ravel(), 9) for name in ("alpha", "rho", "nu")]
    alpha, rho, nu, f, k, t = (torch.from_numpy(part) for part in (*numbers, forward + SHIFT, strike + SHIFT, expiry))
    vol = hagan_lognormal_vol(f, k, t, alpha, torch.full_like(alpha, BETA), rho, nu).numpy()
    return {"expiry": expiry, "tenor": tenor, "strike": strike, "forward": forward, "vol": vol}, truth
