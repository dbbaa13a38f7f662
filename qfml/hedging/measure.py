"""A change of measure by what pure trading gains: the density of each path, and the paths that are kept by it."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pricers.noise import address
from qfml import config
from qfml.engine.checkpoint import read_folder, write_folder
from qfml.errors import CheckpointError, DataError, UserError
from qfml.hedging.costs import COSTS, Cost
from qfml.hedging.gains import gains
from qfml.hedging.paths import PathSet
from qfml.hedging.policies import POLICIES

__all__ = ["FEWEST_EFFECTIVE", "Measure", "bounded", "nothing_owed", "read_measure", "write_measure"]

PATHS_AT_A_TIME = 8192
LEAST_KEPT = 1 / 50  # share of the candidates
FEWEST_EFFECTIVE = 100, 1000  # paths that the measure rests on: refused below the first, said below the second
CLEAR = 4.0  # standard errors of a drift that is left
SMALL, LARGE = 0.1, 0.5  # share of what it was: said above the first, refused above the second


@dataclass(frozen=True, eq=False)
class Measure:
    """What was learned of a market and a book: the policy of pure trading, and the density that it makes.

    Args:
        policy: of pure trading, in units of `sizes`.
        parameters: of it, by name.
        sizes: how far the price of each instrument moves up to the horizon, a standard deviation.
        costs: of trading.
        unwind: whether the last holding is sold at a cost.
        log_mean: log E[exp(-G)].
        log_bound: log of c, the bound of the density.
        told: what a reader should know of it, as plain JSON.
    """

    policy: Any
    parameters: dict[str, Tensor]
    sizes: tuple[float, ...]
    costs: tuple[Cost, ...]
    unwind: bool
    log_mean: float = 0.0
    log_bound: float = 0.0
    told: dict[str, Any] | None = None

    @torch.no_grad()
    def log_density(self, paths: PathSet) -> Tensor:
        """log dQ/dP of each path, (B,), float64."""
        own = {name: value[None].to(paths.features.device) for name, value in self.parameters.items()}
        scaled = nothing_owed(paths, self.sizes)
        found: list[Tensor] = []
        for start in range(0, len(paths), PATHS_AT_A_TIME):
            part = scaled.rows(slice(start, start + PATHS_AT_A_TIME))
            held = self.policy.holdings(own, part.features[None])
            found.append(gains(held, part, self.costs, unwind=self.unwind).pnl[0].double())
        return -torch.cat(found) - self.log_mean

    def thinned(self, paths: PathSet, *words: int) -> PathSet:
        """The paths that are kept; whether one is depends on itself, its place and `words` alone."""
        generator = torch.Generator().manual_seed(address("drift removed", *words))
        chance = (self.log_density(paths).cpu() - self.log_bound).clamp(max=0.0).exp()
        kept = torch.rand(len(paths), dtype=torch.float64, generator=generator) < chance
        return paths.rows(kept.to(paths.prices.device))

    def state(self) -> dict[str, Any]:
        """All but the parameters, as plain JSON."""
        names = [field.name for field in fields(self) if field.name != "parameters"]
        return {name: config.to_dict(getattr(self, name)) for name in names}

    @classmethod
    def of_state(cls, state: dict[str, Any], parameters: dict[str, Tensor]) -> Measure:
        """The measure that `state` tells of."""
        policy = config.build_kind(POLICIES, state["policy"])
        costs = tuple(config.build_kind(COSTS, cost) for cost in state["costs"])
        numbers = (state["log_mean"], state["log_bound"], state["told"])
        return cls(policy, parameters, tuple(state["sizes"]), costs, state["unwind"], *numbers)


def nothing_owed(paths: PathSet, sizes: Sequence[float]) -> PathSet:
    """Prices in units of `sizes`, and nothing owed."""
    prices = paths.prices / torch.tensor(sizes, dtype=paths.prices.dtype, device=paths.prices.device)
    return replace(paths, prices=prices, liability=torch.zeros_like(paths.liability), owed=None)


def bounded(raw: Measure, paths: PathSet, cut: float) -> Measure:
    """The measure with mean and bound of its density, and what is told of it."""
    found = raw.log_density(paths)
    log_mean = float(found.logsumexp(0) - math.log(len(found)))
    density = (found - log_mean).exp()
    bound = _bound(density, cut)
    kept = density.clamp(max=bound)
    effective = float(kept.sum() ** 2 / (kept**2).sum())
    told = {
        "n_paths": len(paths),
        "effective_paths": effective,
        "kept": float(kept.mean()) / bound,
        "cut": float((density - kept).mean()),
        "entropy": {"value": -log_mean, "std_error": float(density.std()) / len(paths) ** 0.5},
        "costs": config.to_dict(raw.costs),
        "drift": _drifts(paths, kept),
    }
    if effective < FEWEST_EFFECTIVE[0] or told["kept"] < LEAST_KEPT:
        raise DataError(
            f"the drift cannot be removed: of {len(paths)} paths the measure would rest on {effective:.0f}, and keep "
            f"{told['kept']:.1%}; trading alone earns too much there (an arbitrage, a policy that has learned its few "
            "paths by heart, or a long horizon): measure more paths by `n_measured`, record more, shorten the horizon"
        )
    told["warning"] = _warning(told)
    return replace(raw, log_mean=log_mean, log_bound=math.log(bound), told=told)


def _bound(density: Tensor, cut: float) -> float:
    """The least c with a mean of (density - c)+ of no more than `cut`."""
    ranked = density.sort(descending=True).values
    above = (ranked.cumsum(0) - ranked * torch.arange(1, len(ranked) + 1)) / len(ranked)  # at c = ranked[i]
    place = int((above <= cut).sum()) - 1
    return float((ranked[: place + 1].sum() - cut * len(ranked)) / (place + 1)) if cut else float(ranked[0])


def _drifts(paths: PathSet, weight: Tensor) -> list[dict[str, Any]]:
    """What each instrument earns up to the horizon on average, as given and under the measure, in cash."""
    moved = (paths.prices[:, -1] - paths.prices[:, 0]).double()
    share = (weight / weight.sum())[:, None]
    after = (share * moved).sum(0)
    error = (share * (moved - after)).square().sum(0).sqrt()
    before, before_error = moved.mean(0), moved.std(0) / len(moved) ** 0.5
    columns = zip(paths.instrument_names, before, before_error, after, error, strict=True)
    names = ("before", "before_error", "after", "after_error")
    return [{"instrument": name, **dict(zip(names, map(float, row), strict=True))} for name, *row in columns]


def _warning(told: dict[str, Any]) -> str | None:
    """What a reader must know of a measure that is not quite what it should be; DataError of one that is none."""
    for one in [] if told["costs"] else told["drift"]:  # costs leave a drift
        if abs(one["after"]) > max(CLEAR * one["after_error"], SMALL * abs(one["before"])):
            left = f"{one['instrument']} still earns {one['after']:.3g} on average, of {one['before']:.3g}"
            if abs(one["after"]) > LARGE * abs(one["before"]):
                raise DataError(
                    f"the drift is not removed: {left}; train the measure longer by its `trainer`, or more slowly; "
                    "where it stays, trading without risk earns (an arbitrage), which no measure takes away"
                )
            return f"{left}: train the measure longer"
    if told["effective_paths"] < FEWEST_EFFECTIVE[1]:
        return f"it rests on {told['effective_paths']:.0f} effective paths of {told['n_paths']}: measure more of them"
    return None


def write_measure(measure: Measure, folder: Path) -> None:
    """Write it, whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(unfinished, measure.parameters, measure.state())
        os.replace(unfinished, folder)
    except OSError as error:
        raise CheckpointError(f"cannot write the measure into {folder}: {error.strerror or error}") from error


def read_measure(folder: Path) -> Measure:
    """Read what `write_measure` wrote, every hash checked."""
    tensors, state = read_folder(folder)
    try:
        return Measure.of_state(state, tensors)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} does not describe a measure: {error}; remove it, and it is learned anew"
        ) from error
