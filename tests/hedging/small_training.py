"""A training of seconds: a short call under Black and Scholes on five dates, its members and losses."""

import math

import torch

import qfml
from qfml.engine import Callback
from qfml.errors import Interrupted
from qfml.hedging.costs import FixedPerTrade, Proportional
from qfml.hedging.holding import Band
from qfml.hedging.objectives import Entropic, ExpectedShortfall, Isoelastic, Spectral
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import FeedForward
from qfml.hedging.training import PathData, PathMember

VOL, DT, STEPS, PATHS = 0.2, 1 / 365, 5, 64
NAMES = ("moneyness", "time_left", "delta")


def paths_of(number, n_paths=PATHS):
    """A short call at the money under Black and Scholes, spot 1; addressed by `number`."""
    normals = torch.randn(STEPS, n_paths, generator=torch.Generator().manual_seed(number))
    moves = VOL * math.sqrt(DT) * normals - 0.5 * VOL**2 * DT
    log_spot = torch.cat([torch.zeros(1, n_paths), moves.cumsum(0)]).t()
    left = (torch.arange(STEPS, -1, -1) * DT).sqrt().expand(n_paths, -1)
    spot = log_spot.exp()
    delta = torch.special.ndtr(log_spot / (VOL * left.clamp_min(1e-6)))
    features = torch.stack([log_spot / 0.02, left / 0.1, delta], -1)
    times = torch.arange(STEPS + 1, dtype=torch.float64) * DT
    return PathSet(times, spot[..., None], (spot[:, -1] - 1.0).clamp(min=0.0), features, ("spot",), NAMES)


def data(steps_per_epoch=4):
    return PathData(paths_of, paths_of(10**6, 256), steps_per_epoch, "call")


def trainer(**changes):
    settings = {"max_epochs": 3, "batch_size": PATHS, "micro_batch_size": 32, "seed": 1}
    return qfml.Trainer(**{"optimizer": qfml.AdamW(lr=3e-3, weight_decay=0.0)} | settings | changes)


POLICY = FeedForward(hidden=(8, 8), feature_names=NAMES)
BANDS = FeedForward(hidden=(8, 8), feature_names=NAMES, holding=Band(("delta",)), sees_holdings=False)
LOSSES = {
    "entropic": (Entropic(10.0), [Proportional(1e-3)]),
    "shortfall": (ExpectedShortfall(0.5), [FixedPerTrade(1e-4, smooth=0.01)]),
    "spectral": (Spectral((0.5, 1.0), (0.5, 0.5)), []),
    "exact": (Isoelastic(wealth=5.0, risk_aversion=2.0), [Proportional(1e-3)]),
}


def members(policy=POLICY, n=3):
    return [
        PathMember(policy, seed=seed, cost_level=1.0 + seed, centre=0.01, scale=0.01, lr=1e-3 * (1 + seed))
        for seed in range(n)
    ]


def same(one, other):
    return torch.equal(one.parameters, other.parameters) and one.history == other.history


class StopsAfter(Callback):
    def __init__(self, epoch):
        self.last = epoch

    def epoch(self, member, record, stopped):
        if record["epoch"] == self.last:
            raise Interrupted(2)
        return False
