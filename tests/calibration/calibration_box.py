"""Parameters of a wide box, strikes by delta, and vols of the exact engine."""

import torch

from qfml.calibration.exact import exact_vols
from qfml.calibration.model import Quotes

D1 = torch.tensor([2.054, 1.282, 0.674, 0.0, -0.674, -1.282, -2.054], dtype=torch.float64)  # deltas .98 to .02
BOX = ((0.005, 0.5), (0.1, 20.0), (0.005, 0.5), (0.05, 4.0))  # v0, kappa, theta, sigma; rho in (-.95, .5)
JUMPS = ((0.05, 2.0), (0.02, 0.4))  # intensity, jump_std; jump_mean in (-.4, .1)


def spread(generator, low, high, n):
    return low * (high / low) ** torch.rand(n, generator=generator, dtype=torch.float64)


def parameters(seed, n, jumps=False):
    generator = torch.Generator().manual_seed(seed)
    columns = [spread(generator, low, high, n) for low, high in BOX]
    columns.append(-0.95 + 1.45 * torch.rand(n, generator=generator, dtype=torch.float64))
    if jumps:
        intensity, deviation = (spread(generator, low, high, n) for low, high in JUMPS)
        columns += [intensity, -0.4 + 0.5 * torch.rand(n, generator=generator, dtype=torch.float64), deviation]
    return torch.stack(columns, dim=-1)


def bare_quotes(log_moneyness, expiry, vol=None, weight=None):
    one = torch.ones_like(log_moneyness)
    return Quotes(log_moneyness, expiry, one if vol is None else vol, one if weight is None else weight, one)


def surfaces(model, x, expiries):
    """Exact quotes at seven deltas of each expiry, for each parameter set."""
    expiry = torch.as_tensor(expiries, dtype=torch.float64).repeat_interleave(len(D1)).expand(len(x), -1).contiguous()
    d1 = D1.repeat(len(expiries)).expand_as(expiry)
    v0, kappa, theta = (x[:, i : i + 1] for i in range(3))
    vol = 0.8 * (theta + (v0 - theta) * (1.0 - torch.exp(-kappa * expiry)) / (kappa * expiry)).sqrt()
    log_moneyness = None
    for _ in range(12):
        at = -d1 * vol * expiry.sqrt() + 0.5 * vol**2 * expiry
        log_moneyness = at if log_moneyness is None else 0.5 * (log_moneyness + at)
        vol = exact_vols(model, x, bare_quotes(log_moneyness, expiry)).nan_to_num(nan=0.02).clamp(0.005, 4.0)
    vol = exact_vols(model, x, bare_quotes(log_moneyness, expiry))
    known = vol > 0.006  # below, the price is too small for a vol of ten digits
    return bare_quotes(log_moneyness, expiry, torch.where(known, vol, 0.1), known.to(vol))


def log_uniform_expiries(seed, n):
    generator = torch.Generator().manual_seed(seed)
    return spread(generator, 7.0 / 365.0, 3.0, n)
