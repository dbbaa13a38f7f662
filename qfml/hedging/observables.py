"""What a path-dependent contract lets one see on its way: running averages and extremes, whether it is still alive.

Each function takes a contract and recorded paths, and gives at each trading date what is known then, shape
`(paths, dates)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pricers as pr
from pricers.instruments.barrier import step_survival, survival_so_far
from pricers.instruments.lookback import bridge_extremum
from pricers.paths import SAME_DATE, Paths

__all__ = ["OBSERVABLES", "Observable", "alive", "realised_variance", "running_average", "running_extremum"]

Observable = Callable[[pr.Instrument, Paths, Tensor], Tensor]


def running_average(contract: pr.Instrument, paths: Paths, times: Tensor) -> Tensor:
    """Average of the fixings so far, those before today included; the spot of today where there is none yet.

    A continuous average is integrated by the trapezium over the recorded times.
    """
    assert isinstance(contract, (pr.Asian, pr.AsianBarrier))
    geometric = contract.average == "geometric"
    past = getattr(contract, "running_average", None)
    fixings = contract.times
    if isinstance(fixings, Tensor):
        values, weights = paths.at(fixings), torch.ones_like(fixings)
        before, ends = float(getattr(contract, "n_past", 0)), fixings
    else:
        assert isinstance(contract, pr.Asian)
        log_or_not = paths.spot.log() if geometric else paths.spot
        values = 0.5 * (log_or_not[:, 1:] + log_or_not[:, :-1])
        values = values.exp() if geometric else values
        weights, before, ends = paths.times.diff(), float(contract.elapsed), paths.times[1:]
    values = values.double().log() if geometric else values.double()
    first = paths.spot[:, :1].double()
    known = first if past is None else past.double().expand_as(first)
    known = known.log() if geometric else known
    zero = torch.zeros_like(first)
    total = torch.cat([zero, (values * weights).cumsum(1)], 1)[:, _so_far(ends, times)]
    weight = torch.cat([weights.new_zeros(1), weights.cumsum(0)])[_so_far(ends, times)] + before
    average = torch.where(weight > 0, (total + before * known) / weight.clamp(min=SAME_DATE), known)
    return average.exp() if geometric else average


def running_extremum(contract: pr.Instrument, paths: Paths, times: Tensor) -> Tensor:
    """Maximum or minimum so far, between the recorded times too, as the payoff draws it."""
    assert isinstance(contract, pr.Lookback)
    assert paths.variance is not None
    assert paths.bridge_uniforms is not None
    log_spot = paths.spot.double().log()
    extremes = bridge_extremum(
        log_spot[:, :-1], log_spot[:, 1:], paths.variance, paths.bridge_uniforms, contract.of_maximum
    )
    all_of_them = torch.cat([log_spot[:, :1], extremes], 1)
    wider = torch.cummax if contract.of_maximum else torch.cummin
    extremum = wider(all_of_them, dim=1).values[:, _so_far(paths.times[1:], times)].exp()
    if contract.running_extremum is None:
        return extremum
    both = torch.maximum if contract.of_maximum else torch.minimum
    return both(extremum, contract.running_extremum.double())


def alive(contract: pr.Instrument, paths: Paths, times: Tensor) -> Tensor:
    """1 until the barrier is touched (or the note is called), 0 from then on.

    A barrier watched at all times is touched between the recorded times too, as the payoff draws it.
    """
    if isinstance(contract, pr.Barrier) and not isinstance(contract.monitoring, Tensor):
        assert paths.variance is not None
        distance = (1.0 if contract.down else -1.0) * torch.log(paths.spot.double() / contract.barrier)
        log_survival, dead = step_survival(distance[:, :-1], distance[:, 1:], paths.variance.double())
        survival = survival_so_far(log_survival, dead, paths.bridge_uniforms)
        survival = torch.cat([torch.ones_like(survival[:, :1]), survival], 1)
        return survival[:, _so_far(paths.times[1:], times)]
    if isinstance(contract, pr.Autocallable):
        dates = contract.times
        over = paths.at(dates) / contract.reference >= contract.autocall_barrier
    else:
        assert isinstance(contract, (pr.Barrier, pr.AsianBarrier))
        dates = contract.monitoring if isinstance(contract, pr.Barrier) else contract.times
        assert isinstance(dates, Tensor)
        fixings = paths.at(dates)
        over = fixings <= contract.barrier if contract.down else fixings >= contract.barrier
    touched = torch.cat([torch.zeros_like(over[:, :1]), over.cumsum(1) > 0], 1)
    return 1.0 - touched[:, _so_far(dates, times)].double()


def realised_variance(contract: pr.Instrument, paths: Paths, times: Tensor) -> Tensor:
    """Quadratic variation of the log price so far, over the years of the whole contract."""
    assert paths.variance is not None
    steps = paths.variance if paths.jumps_squared is None else paths.variance + paths.jumps_squared
    total = torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(1)], 1)
    return total[:, _so_far(paths.times[1:], times)].double() / contract.horizon


OBSERVABLES: dict[type[pr.Instrument], dict[str, Observable]] = {
    pr.Asian: {"running_average": running_average},
    pr.AsianBarrier: {"running_average": running_average, "alive": alive},
    pr.Barrier: {"alive": alive},
    pr.Autocallable: {"alive": alive},
    pr.Lookback: {"running_extremum": running_extremum},
    pr.VarianceSwap: {"realised_variance": realised_variance},
    pr.VarianceOption: {"realised_variance": realised_variance},
}


def _so_far(ends: Tensor, times: Tensor) -> Tensor:
    """How many of `ends` have come by each date."""
    return torch.searchsorted(ends.detach().double().contiguous(), times + SAME_DATE, right=True)
