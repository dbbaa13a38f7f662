"""Baskets of four assets against the published study, by simulation with the geometric basket as a control."""

import math

import pytest
import torch

from pricers.analytic.basket import geometric_basket_price
from pricers.instruments.basket import Basket
from pricers.paths import Paths

# Krekel, de Kock, Korn and Man (2004), An analysis of pricing methods for basket options, table 4, recomputed: four
# assets, vol .4, correlation .5, T 5, forwards 100, undiscounted, equal weights; strike -> call
KREKEL = {60.0: 47.4811265, 80.0: 36.3517843, 100.0: 28.0073695, 120.0: 21.7625789, 140.0: 17.0655420}
VOL, RHO, EXPIRY = 0.4, 0.5, 5.0


def test_equal_weights_published():
    strikes = torch.tensor(list(KREKEL), dtype=torch.float64)
    correlation = torch.full((4, 4), RHO, dtype=torch.float64).fill_diagonal_(1.0)
    weights, vols = torch.full((4,), 0.25, dtype=torch.float64), torch.full((4,), VOL, dtype=torch.float64)
    forwards, expiry = torch.full((4,), 100.0, dtype=torch.float64), torch.tensor(EXPIRY, dtype=torch.float64)
    known = geometric_basket_price(forwards, strikes, expiry, weights, vols, correlation, "call")
    root = torch.linalg.cholesky(correlation)
    basket = Basket(strikes, EXPIRY, "call", weights=weights)
    means = []
    for seed in range(16):
        uniforms = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed).draw(2**13, dtype=torch.float64)
        normals = torch.special.ndtri(uniforms.clamp(1e-12, 1 - 1e-12)) @ root.T
        last = 100.0 * torch.exp(VOL * math.sqrt(EXPIRY) * normals - 0.5 * VOL**2 * EXPIRY)
        spot = torch.stack([torch.full_like(last, 100.0), last], dim=-2)
        paths = Paths(torch.tensor([0.0, EXPIRY], dtype=torch.float64), spot, n_asset_axes=1)
        payoff = basket.payoff(paths, torch.ones_like)
        geometric = (last.log().mean(-1).exp() - strikes[:, None]).clamp(min=0.0)
        means.append(payoff.mean(-1) - geometric.mean(-1) + known)
    repeats = torch.stack(means)
    error = repeats.std(0) / 4.0
    assert bool((error < 0.02).all())
    published = torch.tensor(list(KREKEL.values()), dtype=torch.float64)
    assert bool(((repeats.mean(0) - published).abs() < 4 * error).all())


def test_wrong_axis_of_assets_is_refused():
    paths = Paths(torch.tensor([0.0, 1.0]).double(), torch.ones(8, 2, 3, dtype=torch.float64), n_asset_axes=1)
    with pytest.raises(ValueError, match="needs 4 assets"):
        Basket(1.0, 1.0, "call", weights=[0.25] * 4).payoff(paths, torch.ones_like)
