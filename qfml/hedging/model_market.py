"""A market that a model makes: fresh paths for every step of training, addressed by seed and number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

import pricers as pr
from pricers.models.base import Characteristic
from pricers.parameters import converted, number, whole
from pricers.paths import SAME_DATE
from qfml.config import OneOf, years_of
from qfml.errors import ConfigError
from qfml.hedging.book import Book
from qfml.hedging.book_delta import Options, options_of
from qfml.hedging.contracts import built, settings_of
from qfml.hedging.information import Seen, features
from qfml.hedging.instruments import HEDGES, Hedge, Pricer, Spot
from qfml.hedging.kinds import check_book, check_each, check_names, is_number
from qfml.hedging.paths import PathSet
from qfml.hedging.sight import Sight

__all__ = ["ModelMarket", "trading_dates"]

PILOT_PATHS = 4096  # of the simulation that tells the unit of volatility where no formula does
BOOKS_KEPT = 4  # of which all that does not depend on the noise is kept


def trading_dates(n_steps: Any, horizon: Any, dates: Any) -> Tensor:
    """Trading dates in years, from 0: even ones, or those given.

    Args:
        n_steps: number of periods, with `horizon` in years.
        horizon: the last date.
        dates: explicit dates instead, ascending; 0 may be left out.

    Raises:
        ConfigError: neither or both, or dates that are none.

    Example:
        >>> trading_dates(2, 0.5, None)
        tensor([0.0000, 0.2500, 0.5000], dtype=torch.float64)
    """
    if (dates is None) == (n_steps is None) or (n_steps is None) != (horizon is None):
        raise ConfigError(
            "a market needs either `n_steps` and `horizon` in years, or its trading `dates`, "
            f"got n_steps={n_steps}, horizon={horizon}, dates={dates}"
        )
    if dates is None:
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise ConfigError(f"`n_steps` must be a whole number of trading periods, 1 or more, got {n_steps!r}")
        try:
            last = number("horizon", horizon, above=0.0)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return torch.arange(n_steps + 1, dtype=torch.float64) * (last / n_steps)
    found = torch.as_tensor(dates, dtype=torch.float64).reshape(-1)
    if found.numel() and float(found[0]) > SAME_DATE:
        found = torch.cat([found.new_zeros(1), found])
    if found.numel() < 2 or not bool(found.isfinite().all()) or float(found[0]) < 0 or bool((found.diff() <= 0).any()):
        raise ConfigError(f"`dates` must be ascending times in years, at least one above 0, got {dates!r}")
    found[0] = 0.0
    return found


@dataclass(frozen=True)
class ModelMarket:
    r"""Paths of a `pricers` model, with the prices of the hedging instruments in the state of each path.

    A path depends on `seed`, `number` and its place only, so that training may draw anew at each step and judgement on
    numbers of its own.

    Args:
        model: one of `pricers.MODELS`, or its settings with `kind`.
        market: a `pricers.Market` without cash dividends, or its settings.
        instruments: what may be traded; see `HEDGES`.
        n_steps: trading periods of one length up to `horizon`.
        horizon: years, or a duration such as "30D"; the last contract of the book ends then.
        dates: trading dates instead of the two, likewise.
        information: what a policy sees, by the names of `FEATURES`, "prices", and the observables of the book.
        simulation_steps: largest time steps of the simulation up to the horizon; None takes the dates alone under
            models that are simulated exactly, else 100.
        scheme: discretisation, one of the model's; None takes its first.
        noise: of the paths that are trained on: "pseudo", "antithetic" or "sobol". What is judged are independent
            paths, without which there is no standard error.
        drift: expected return of the asset above that of the forward, continuous, per year.
        reference_vol: the unit of volatility of the features; None: the standard deviation of the log price at the
            horizon, per root of a year, under the model.

    Raises:
        ConfigError: settings that break a rule.

    Example:
        >>> market = ModelMarket(
        ...     {"kind": "heston", "v0": 0.04, "kappa": 2.0, "theta": 0.04, "sigma": 0.5, "rho": -0.7},
        ...     {"spot": 100.0}, n_steps=4, horizon=0.1, information=("log_moneyness", "vol"),
        ... )
        >>> book = Book(((1.0, pr.European(100.0, 0.1)),))
        >>> paths = market.paths(16, book, seed=1)
        >>> paths.prices.shape, paths.feature_names
        (torch.Size([16, 5, 1]), ('log_moneyness', 'vol'))
    """

    model: Any
    market: Any
    instruments: tuple[Annotated[Any, OneOf(HEDGES)], ...] = (Spot(),)
    n_steps: int | None = None
    horizon: float | str | None = None
    dates: tuple[float | str, ...] | None = None
    information: tuple[str, ...] = ("log_moneyness", "time_to_horizon")
    simulation_steps: int | None = None
    scheme: str | None = None
    noise: str = "pseudo"
    drift: float = 0.0
    reference_vol: float | None = None
    kind: ClassVar[str] = "model"

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the class is frozen
        set_field(self, "model", settings_of(built("model", self.model, pr.MODELS)))
        market = {"kind": "market", **self.market} if isinstance(self.market, Mapping) else self.market
        set_field(self, "market", settings_of(built("market", market, {"market": pr.Market})))
        check_each("instruments", self.instruments, _is_hedge, "hedging instruments, such as (Spot(),)")
        check_names("information", self.information)
        set_field(self, "instruments", tuple(self.instruments))
        set_field(self, "horizon", years_of("horizon", self.horizon))
        if self.dates is not None:
            set_field(self, "dates", _years_of_all(self.dates))
        if not self.instruments:
            raise ConfigError("`instruments` must name at least one hedging instrument, such as {kind: spot}")
        names = [hedge.name for hedge in self.instruments]
        if len(set(names)) < len(names):
            raise ConfigError(f"`instruments` must differ, got {', '.join(names)}")
        if not self.information:
            raise ConfigError("`information` must name at least one feature, such as 'time_to_horizon'")
        self._check_numbers()
        self.prepared(None)  # whatever does not fit together is told here

    def _check_numbers(self) -> None:
        try:
            number("drift", self.drift)
            if self.simulation_steps is not None:
                whole("simulation_steps", self.simulation_steps, at_least=1)
            if self.reference_vol is not None:
                number("reference_vol", self.reference_vol, above=0.0)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.drift and self.model["kind"] in ("local_vol", "sabr"):
            raise ConfigError(
                f"`drift` is for models of returns; under {self.model['kind']} the volatility depends on the price "
                "itself: leave it out"
            )

    @cached_property
    def times(self) -> Tensor:
        """Trading dates in years, from 0, shape `(L,)`."""
        return trading_dates(self.n_steps, self.horizon, self.dates)

    @cached_property
    def simulated_model(self) -> pr.Model:
        """The model."""
        return built("model", self.model, pr.MODELS)

    @cached_property
    def simulated_market(self) -> pr.Market:
        """Spot, rate and dividends."""
        return built("market", {"kind": "market", **self.market}, {"market": pr.Market})

    @property
    def vol(self) -> float:
        """The unit of volatility of the features, per year."""
        return self._vol if self.reference_vol is None else self.reference_vol

    @cached_property
    def _vol(self) -> float:
        model, last = self.simulated_model, self.times[-1]
        if isinstance(model, Characteristic):
            return math.sqrt(float(model.cumulants(last)[1]) / float(last))
        made = pr.simulate(model, self.simulated_market, last.reshape(1), PILOT_PATHS, seed=0, scheme=self.scheme)
        return float(made.spot[:, -1].log().std()) / math.sqrt(float(last))

    @property
    def martingale(self) -> bool:
        """Prices are those of the model, unless the asset drifts."""
        return self.drift == 0

    def paths(
        self,
        n_paths: Any,
        book: Book,
        seed: Any,
        number: Any = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> PathSet:
        """Fresh paths.

        Args:
            n_paths: how many.
            book: what is owed; its last contract ends on the last trading date.
            seed: any integer.
            number: which of the independent sets of paths of this seed.
            dtype: of prices and liability; features are float32.
            device: where they are made.

        Raises:
            DataError: a horizon that is not on the grid, an instrument that expires before it.
            ConfigError: information that is not known or cannot be seen.
        """
        check_book(book)
        made = self.prepared(book, dtype, device)
        try:
            return made.draw(n_paths, seed, number)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def prepared(
        self, book: Book | None, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> _Prepared:
        """All that does not depend on the noise; the last few are kept. Without a book: of the market alone."""
        kept: list[tuple[Any, _Prepared]] = self.__dict__.setdefault("_kept", [])
        key = (book, dtype, torch.device(device))
        for other, made in kept:
            if other[0] is book and other[1:] == key[1:]:
                return made
        if book is not None:
            book.check_dates(self.times)
        made = self._prepared(book, dtype, torch.device(device))
        if book is not None:
            kept.append((key, made))
            del kept[:-BOOKS_KEPT]
        return made

    def sight(self, book: Book) -> Sight:
        """How the features follow from what is observed on a trading date."""
        book.check_dates(self.times)
        market, spot, times = self.simulated_market, float(self.simulated_market.spot), self.times
        today = market.discount(times).double()
        horizon = float(times[-1])
        state = self.prepared(book).simulation.draw(1, seed=0).state
        return Sight(
            times,
            (market.growth(times[-1]) / market.growth(times)).double(),
            torch.tensor(book.strike or float(market.forward(times[-1])), dtype=torch.float64),
            torch.tensor(self.vol, dtype=torch.float64),
            {
                hedge.name: today / hedge.typical_size(spot, self.vol, horizon)
                for hedge in self.instruments
                if not isinstance(hedge, Spot)
            },
            self.information,
            tuple(hedge.name for hedge in self.instruments),
            book.observable_names,
            "variance" if "variance" in state else "relative_vol" if "vol" in state else None,
            options_of(book, self.information, market.growth, market.discount),
        )

    def _simulation(self, book: Book | None, dtype: torch.dtype, device: torch.device | str) -> pr.Simulation:
        dates = self.times if book is None else torch.cat([self.times, book.dates]).unique()
        try:
            return pr.Simulation(
                self.simulated_model,
                self.simulated_market,
                _merged(dates),
                n_steps=self.simulation_steps,
                noise=self.noise,
                scheme=self.scheme,
                every_step=any(hedge.needs_variance for hedge in self.instruments)
                or (book is not None and book.continuous),
                bridge_uniforms=book is not None and book.bridge_uniforms,
                dtype=dtype,
                device=device,
            )
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _prepared(self, book: Book | None, dtype: torch.dtype, device: torch.device) -> _Prepared:
        today = self.simulated_market
        options = None if book is None else options_of(book, self.information, today.growth, today.discount)
        return _Prepared(
            self,
            None if book is None else book.to(device),
            converted(today, torch.float64, device),
            self.times.to(device),
            self._simulation(book, dtype, device),
            self._pricers(),
            None if options is None else options.to(device),
        )

    def _pricers(self) -> tuple[Pricer, ...]:
        """Pricers of the instruments, which no book changes."""
        made: tuple[Pricer, ...] | None = self.__dict__.get("_made_pricers")
        if made is None:
            model, market = self.simulated_model, self.simulated_market
            made = tuple(hedge.pricer(model, market, self.times) for hedge in self.instruments)
            self.__dict__["_made_pricers"] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        """The settings alone: what was prepared is made anew elsewhere."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A market and a book, ready to draw from; all tensors are on the device of the paths."""

    owner: ModelMarket
    book: Book | None
    market: pr.Market
    times: Tensor
    simulation: pr.Simulation
    pricers: tuple[Pricer, ...]
    options: Options | None

    def draw(self, n_paths: Any, seed: Any, number: Any) -> PathSet:
        assert self.book is not None
        owner = self.owner
        made = self._drifted(self.simulation.draw(n_paths, seed=seed, number=number))
        on_dates = made.on(self.times)
        prices = torch.stack([price(on_dates) for price in self.pricers], dim=-1)
        liability = self.book.liability(made.paths, self.market.discount)
        all_seen = self._seen(made, on_dates, prices)
        seen, called = features(owner.information, all_seen)
        names = tuple(hedge.name for hedge in owner.instruments)
        known = {name: value for name, value in all_seen.observables.items() if name.startswith("alive")}
        known |= {} if all_seen.variance is None else {"variance": all_seen.variance}
        known = {name: value for name, value in known.items() if name not in called}
        return PathSet(owner.times, prices, liability.to(made.spot.dtype), seen, names, called, self.book, known)

    def _drifted(self, made: pr.Scenarios) -> pr.Scenarios:
        if not self.owner.drift:
            return made
        spot = made.spot * torch.exp(self.owner.drift * made.times).to(made.spot)
        return pr.Scenarios(made.times, spot, made.state, made.bridge_uniforms)

    def _seen(self, made: pr.Scenarios, on_dates: pr.Scenarios, prices: Tensor) -> Seen:
        assert self.book is not None
        owner, times, market = self.owner, self.times, self.market
        to_horizon = market.growth(times[-1]) / market.growth(times)
        spot, vol, horizon = float(owner.simulated_market.spot), owner.vol, float(owner.times[-1])
        sizes = [hedge.typical_size(spot, vol, horizon) for hedge in owner.instruments]
        relative = on_dates.state["vol"] / on_dates.state["vol"][:, :1] if "vol" in on_dates.state else None
        return Seen(
            times,
            on_dates.spot * to_horizon.to(on_dates.spot),
            self.book.strike or float(owner.simulated_market.forward(owner.times[-1])),
            vol,
            {
                hedge.name: prices[..., place] / sizes[place]
                for place, hedge in enumerate(owner.instruments)
                if not isinstance(hedge, Spot)
            },
            self.book.observables(made.paths, times),
            on_dates.state.get("variance"),
            relative,
            options=self.options,
        )


def _is_hedge(value: Any) -> bool:
    return isinstance(value, Hedge) and not isinstance(value, type)


def _years_of_all(dates: Any) -> tuple[Any, ...]:
    """Dates in years, of which each is a number or a duration."""
    listed = dates.tolist() if hasattr(dates, "tolist") else dates
    what = "times in years, or durations such as '30D'"
    check_each("dates", listed, lambda date: isinstance(date, str) or is_number(date), what)
    return tuple(years_of("dates", date) for date in listed)


def _merged(dates: Tensor) -> Tensor:
    """Distinct dates, of which those that differ by rounding are one."""
    first = torch.cat([torch.ones(1, dtype=torch.bool), dates.diff() > SAME_DATE])
    return dates[first]
