"""price(): which engine prices what; the one dispatch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from pricers.analytic.engine import Analytic
from pricers.analytic.fourier_engine import Fourier
from pricers.estimate import Estimate
from pricers.exercise import LongstaffSchwartz
from pricers.finite_difference import FiniteDifference
from pricers.instruments.base import Instrument
from pricers.market import Market
from pricers.models.base import Model
from pricers.monte_carlo import MonteCarlo, MultilevelMonteCarlo
from pricers.parameters import broadcast_shape

__all__ = ["ENGINES", "Engine", "capable_engines", "chosen_engine", "default_engine", "price"]


@runtime_checkable
class Engine(Protocol):
    """A way to get a number."""

    def refusal(self, instrument: Instrument, model: Model, market: Market) -> str | None:
        """Why the engine cannot price the triple; None if it can."""
        ...

    def price(self, instrument: Instrument, model: Model, market: Market) -> Estimate:
        """Value of the instrument."""
        ...


# by preference: the first three draw nothing and serve as defaults, the others ask for a number of paths
ENGINES: dict[str, Engine] = {
    "Analytic": Analytic(),
    "Fourier": Fourier(),
    "FiniteDifference": FiniteDifference(),
    "MonteCarlo": MonteCarlo(n_paths=65_536, seed=0),
    "LongstaffSchwartz": LongstaffSchwartz(n_paths=65_536, n_steps=50, seed=0),
    "MultilevelMonteCarlo": MultilevelMonteCarlo(accuracy=0.01, seed=0),
}
WITHOUT_SIMULATION = ("Analytic", "Fourier", "FiniteDifference")


def capable_engines(instrument: Instrument, model: Model, market: Market) -> tuple[str, ...]:
    """Names of the engines that can price the triple, the preferred one first."""
    if instrument.asset_refusal(model.n_assets) is not None:
        return ()
    return tuple(name for name, engine in ENGINES.items() if engine.refusal(instrument, model, market) is None)


def default_engine(instrument: Instrument, model: Model, market: Market) -> Engine:
    """The best engine that draws nothing.

    Raises:
        ValueError: there is none; the message lists what can price the triple.
    """
    able = capable_engines(instrument, model, market)
    for name in able:
        if name in WITHOUT_SIMULATION:
            return ENGINES[name]
    pair = f"{type(instrument).__name__} under {type(model).__name__}"
    misfit = instrument.asset_refusal(model.n_assets)
    if misfit is not None:
        raise ValueError(f"no engine prices {pair}: {misfit}")
    reasons = "; ".join(f"{n}: {ENGINES[n].refusal(instrument, model, market)}" for n in ENGINES if n not in able)
    if able:
        raise ValueError(f"{pair} needs a simulation: pass an engine, one of {', '.join(able)} ({reasons})")
    raise ValueError(f"no engine prices {pair} ({reasons})")


def chosen_engine(instrument: Instrument, model: Model, market: Market, engine: Engine | None = None) -> Engine:
    """The engine, or the best one that draws nothing, after a look at all arguments.

    Raises:
        ValueError: an argument of another kind, shapes that do not broadcast, or an engine that cannot price the triple
            (the message lists what can).
    """
    _check_kinds(instrument, model, market)
    broadcast_shape(
        instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(model.n_assets)
    )
    if engine is None:
        return default_engine(instrument, model, market)
    if isinstance(engine, type) or not isinstance(engine, Engine):
        raise ValueError(f"`engine` must be an engine such as pricers.Analytic(), got {engine!r}")
    reason = instrument.asset_refusal(model.n_assets) or engine.refusal(instrument, model, market)
    if reason is not None:
        able = ", ".join(capable_engines(instrument, model, market)) or "none"
        raise ValueError(
            f"{type(engine).__name__} cannot price {type(instrument).__name__} under {type(model).__name__}: {reason}; "
            f"engines that can: {able}"
        )
    return engine


def price(instrument: Instrument, model: Model, market: Market, engine: Engine | None = None) -> Estimate:
    """Value of an instrument under a model today.

    Batch axes of instrument, model and market broadcast by numpy's rules.

    Args:
        instrument: what is paid.
        model: dynamics of the asset.
        market: spot, rates and dividends.
        engine: how the number is found; None takes the best that draws nothing: a closed form, Fourier inversion or
            finite differences.

    Returns:
        The value in units of cash, with its statistical and numerical error.

    Raises:
        ValueError: the engine cannot price the pair (the message lists what can), or shapes do not broadcast.

    >>> import pricers as pr
    >>> round(pr.price(pr.European(100.0, 1.0), pr.BlackScholes(0.2), pr.Market(100.0)).value.item(), 10)
    7.9655674554
    """
    engine = chosen_engine(instrument, model, market, engine)
    shape = broadcast_shape(
        instrument=instrument.batch_shape, model=model.batch_shape, market=market.batch_shape(model.n_assets)
    )
    if shape.numel() == 0:  # no contracts, no prices
        return Estimate(market.spot.new_zeros(shape), 0.0, note="an empty batch")
    return engine.price(instrument, model, market).expanded(shape)


def _check_kinds(instrument: object, model: object, market: object) -> None:
    wanted = {"instrument": (instrument, Instrument), "model": (model, Model), "market": (market, Market)}
    for name, (value, kind) in wanted.items():
        if not isinstance(value, kind):
            got = type(value).__name__ if isinstance(value, Instrument | Model | Market) else repr(value)
            raise ValueError(
                f"`{name}` must be of the kind pricers.{kind.__name__}, got {got}; "
                "the order is price(instrument, model, market)"
            )
