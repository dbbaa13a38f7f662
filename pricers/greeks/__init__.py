"""Sensitivities of a price to whatever it depends on, each with its error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from pricers.estimate import Estimate
from pricers.exercise import LongstaffSchwartz
from pricers.greeks.early_exercise import with_rule
from pricers.greeks.exact import without_noise
from pricers.greeks.levels import from_levels
from pricers.greeks.parameters import Name, stacked, tasks_of
from pricers.greeks.simulated import from_paths
from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.models.base import Model
from pricers.monte_carlo import MonteCarlo, MultilevelMonteCarlo
from pricers.parameters import choice, number
from pricers.pricing import Engine, chosen_engine

__all__ = ["greeks"]

METHODS = ("auto", "pathwise", "likelihood_ratio", "bump")


def greeks(
    instrument: Instrument,
    model: Model,
    market: Market,
    wrt: Sequence[Name],
    engine: Engine | None = None,
    method: str = "auto",
    bump: float = 1e-3,
) -> dict[Name, Estimate]:
    r"""Sensitivities of the price, of first order by a name and of second order by a pair of names.

    A name is a field of the market (`spot`, `rate`, `dividend_yield`), the model (`v0`, `vol`, ...) or the instrument
    (`strike`, `barrier`, ...); fields of fields are reached by dots (`surface.vols`, `rate.rates`); `rate` of a curve
    moves all its nodes. `theta` and `rho` are parameters of models; the change as calendar time passes is "time".

    A parameter that the batch shares is differentiated for each element of the batch. Entries of a curve, of a surface,
    of several assets or of several dates add trailing axes, one Greek for each.

    Without simulation the price is differentiated automatically, to rounding; `error_bound` is the numerical error of
    the derivative. Under simulation the method is

    - "pathwise": mean of the derivatives along the paths; needs a payoff without jumps,
    - "likelihood_ratio": payoffs weighted with the score of the asset's density, given the path of everything else: for
      digitals, discrete barriers, autocallables and second derivatives,
    - "bump": central differences on common random numbers, of relative size `bump` (ten times that for second order):
      the check of the others.

    "auto" takes the first that holds; `MultilevelMonteCarlo` knows the first alone. All three have standard errors from
    the paths (or repeats) themselves. The number of jumps along a path is always weighted with its score. Andersen's QE
    switches between two distributions, which derivatives along the path do not see; with the rest of its bias this
    stays below 0.3 % of a Greek at 100 steps a year and below 3 % at 16, on the market of Lewis.

    Args:
        instrument: what is paid.
        model: dynamics of the asset.
        market: spot, rates and dividends.
        wrt: names, and pairs of names.
        engine: as in `price`.
        method: "auto", "pathwise", "likelihood_ratio" or "bump".
        bump: size of a bump, relative to the parameter (to 0.01 where it is smaller), above 0.

    Returns:
        An `Estimate` for each entry of `wrt`, in units of price per unit of the parameter.

    Raises:
        ValueError: an unknown name or method, or one that does not fit the engine; the message says what does.

    References:
        Glasserman (2004), Monte Carlo Methods in Financial Engineering, chapter 7.

    >>> import pricers as pr
    >>> call, market = pr.European(100.0, 1.0), pr.Market(100.0, rate=0.05)
    >>> found = pr.greeks(call, pr.BlackScholes(0.2), market, wrt=("spot", ("spot", "spot")))
    >>> round(found["spot"].value.item(), 6), round(found["spot", "spot"].value.item(), 6)
    (0.636831, 0.018762)
    """
    if isinstance(wrt, str):
        raise ValueError(f"`wrt` must be a sequence of names, got the text {wrt!r}; write ({wrt!r},)")
    _check_names(wrt)
    choice("method", method, METHODS)
    bump = number("bump", bump, above=0.0)
    triple = (instrument, model, market)
    engine = chosen_engine(*triple, engine)
    groups = {name: tasks_of(name, triple) for name in wrt}
    if isinstance(engine, MultilevelMonteCarlo):
        return {
            name: stacked(group[0], [from_levels(task, triple, engine, method) for task in group])
            for name, group in groups.items()
        }
    if isinstance(engine, MonteCarlo):
        every = [task for group in groups.values() for task in group]
        found = iter(from_paths(every, triple, engine, method, bump))
        return {name: stacked(group[0], [next(found) for _ in group]) for name, group in groups.items()}
    if isinstance(engine, LongstaffSchwartz):
        return {
            name: stacked(group[0], [with_rule(task, triple, engine, method, bump) for task in group])
            for name, group in groups.items()
        }
    return without_noise(groups, triple, engine, method, bump)


def _check_names(wrt: object) -> None:
    """Refuse what is no sequence of names and tuples of names: they are the keys of the result."""
    if not isinstance(wrt, Sequence):
        raise ValueError(f"`wrt` must be a sequence of names, got {wrt!r}; write ('spot',)")
    for name in cast("Sequence[object]", wrt):
        pair = cast("tuple[object, ...]", name) if isinstance(name, tuple) else (name,)
        if not all(isinstance(part, str) for part in pair):
            raise ValueError(f"`wrt` must hold names and pairs of them, got {name!r}; write 'spot' or ('spot', 'vol')")
