"""What a surrogate stands for: a model, an instrument, a market, and the box in which they vary."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any

import torch
from torch import Tensor

import pricers as pr
from pricers.normal import normal_cdf
from pricers.parameters import broadcast_shape, converted
from pricers.pricing import WITHOUT_SIMULATION, capable_engines
from qfml.config import Section, build, contract_in_years
from qfml.errors import ConfigError, DataError
from qfml.surrogate.box import STRIKE_COORDINATES, Coordinate, Range, argument_names, nearest, resolved
from qfml.surrogate.reference_vol import REFERENCE_VOLS

__all__ = ["TARGETS", "Problem"]

TARGETS = ("implied_vol", "price", "time_value")
Triple = tuple[pr.Instrument, pr.Model, pr.Market]
Columns = Mapping[str, Tensor]  # by the name of the input; the shapes broadcast

CURVES: dict[tuple[str, str], type] = {
    ("market", "rate"): pr.ZeroCurve,
    ("market", "dividend_yield"): pr.ZeroCurve,
    ("market", "dividends"): pr.CashDividends,
    ("model", "xi"): pr.ForwardVarianceCurve,
}
UNITS = {
    "expiry": "years",
    "strike": "unit of the spot",
    "barrier": "unit of the spot",
    "rebate": "unit of the spot",
    "spot": "cash",
    "log_moneyness": "log(strike / forward)",
    "standard_moneyness": "log(strike / forward) per reference vol and root of the expiry",
    "delta": "call delta on the forward, N(d1)",
    "rate": "continuous, per year, decimal",
    "dividend_yield": "continuous, per year, decimal",
    "vol": "per year, decimal",
    "v0": "variance per year",
    "theta": "variance per year",
    "xi": "variance per year",
    "kappa": "per year",
    "sigma": "vol of variance, per year",
    "rho": "correlation",
    "hurst": "Hurst exponent",
    "eta": "vol of log variance",
    "intensity": "jumps per year",
    "jump_mean": "log return",
    "jump_std": "log return",
    "nu": "vol of vol, per root of a year",
}
MOST_CORNERS = 12  # coordinates of which every corner of the box is built
DELTA_SLACK = 1e-4  # how far a strike may miss the delta that it was looked for


@dataclass(frozen=True)
class Problem:
    """A number to be learned as a function of a few inputs.

    Args:
        model: `kind` of `pricers.MODELS` and fixed parameters.
        instrument: `kind` of `pricers.INSTRUMENTS` and fixed terms; times may be durations such as "90D".
        market: `spot`, `rate`, `dividend_yield`; a rate may be a curve `{times: [...], rates: [...]}`.
        box: ranges of the coordinates, by name: arguments of model, instrument or market (`model.rho` where several
            have it). In place of `strike` may stand `log_moneyness` = log(strike / forward); `standard_moneyness`, that
            divided by the reference vol and the root of the expiry; or `delta`, the call's on the forward with the
            point's own vol. The last two become the input `log_moneyness`.
        target: "implied_vol" (annual, decimal), "price" per unit of spot, or "time_value", the price per unit of spot
            above what exercise is worth (of a European: above the discounted intrinsic value of the forward).

    Raises:
        ConfigError: a name that is not known, missing, or given twice; a range outside of the domain of the model; a
            target that the instrument does not have; a triple that no engine prices.

    >>> problem = Problem(
    ...     model={"kind": "black_scholes"},
    ...     instrument={"kind": "european"},
    ...     market={"spot": 1.0},
    ...     box={"vol": {"low": 0.1, "high": 0.5}, "expiry": {"low": "30D", "high": 2.0}, "strike": Range(0.5, 2.0)},
    ...     target="price",
    ... )
    >>> problem.inputs
    ('vol', 'expiry', 'strike')
    >>> round(problem.exact(torch.tensor([[0.2, 1.0, 1.0]], dtype=torch.float64)).item(), 10)
    0.0796556746
    """

    model: dict[str, Any]
    instrument: dict[str, Any]
    market: dict[str, Any] = field(default_factory=lambda: {"spot": 1.0})
    box: dict[str, Annotated[Any, Section(Range)]] = field(default_factory=dict)  # of `Range`; settings of one will do
    target: str = "implied_vol"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"`target` must be one of {', '.join(TARGETS)}, got {self.target!r}")
        for owner in ("model", "instrument", "market", "box"):
            settings = getattr(self, owner)
            if not isinstance(settings, Mapping):
                raise ConfigError(f"`{owner}` must be a mapping, got {settings!r}")
            plain = {str(key): _plain(value) for key, value in settings.items()}
            object.__setattr__(self, owner, contract_in_years(owner, plain) if owner == "instrument" else plain)
        if not self.box:
            raise ConfigError("`box` must have at least one coordinate, such as `expiry: {low: 7D, high: 3.0}`")
        object.__setattr__(self, "box", {name: _range(name, value) for name, value in self.box.items()})
        self._check_names()
        self._check_strike()
        self._check_corners()

    # ------------------------------------------------------------------ names

    @cached_property
    def classes(self) -> dict[str, type]:
        """The classes of instrument, model and market."""
        return {
            "instrument": _registered("instrument", self.instrument, pr.INSTRUMENTS),
            "model": _registered("model", self.model, pr.MODELS),
            "market": pr.Market,
        }

    @cached_property
    def coordinates(self) -> tuple[Coordinate, ...]:
        """The axes of the box, in its order."""
        known: dict[str, dict[str, Any]] = {o: dict(argument_names(cls)) for o, cls in self.classes.items()}
        if "strike" in known["instrument"]:
            known["instrument"] |= dict.fromkeys(STRIKE_COORDINATES)
        return tuple(resolved(name, known) for name in self.box)

    @cached_property
    def strike_coordinate(self) -> Coordinate | None:
        """The axis that tells strikes of one law apart; None if the strike is fixed or there is none."""
        return next((axis for axis in self.coordinates if axis.is_strike), None)

    @property
    def law_coordinates(self) -> tuple[Coordinate, ...]:
        """All other axes: the law of the asset and the terms of the contract."""
        return tuple(axis for axis in self.coordinates if not axis.is_strike)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns of an input row, in natural units and in the order of the box."""
        return tuple(axis.input for axis in self.coordinates)

    @property
    def units(self) -> dict[str, str]:
        """Unit of each input."""
        found = {axis.input: axis.input if axis.input in UNITS else axis.argument for axis in self.coordinates}
        return {name: UNITS.get(argument, "as the model states it") for name, argument in found.items()}

    @property
    def target_unit(self) -> str:
        """Unit of the target."""
        return "vol per year, decimal" if self.target == "implied_vol" else "per unit of spot"

    # ------------------------------------------------------------------ what the inputs stand for

    def columns(self, inputs: Tensor) -> dict[str, Tensor]:
        """The columns of a table of inputs, by name.

        Args:
            inputs: shape `(*batch, d)`, in natural units.

        Raises:
            DataError: another number of columns.
        """
        if inputs.ndim < 1 or inputs.shape[-1] != len(self.inputs):
            raise DataError(
                f"inputs must have {len(self.inputs)} columns ({', '.join(self.inputs)}), got {tuple(inputs.shape)}"
            )
        return dict(zip(self.inputs, inputs.unbind(-1), strict=True))

    def triple(self, inputs: Tensor) -> Triple:
        """Instrument, model and market of a batch of inputs.

        Args:
            inputs: shape `(N, d)`, in natural units, any dtype and device.

        Raises:
            DataError: another number of columns.
            ValueError: an input outside of the domain of the model.
        """
        return self.assembled(self.columns(inputs))

    def assembled(self, columns: Columns) -> Triple:
        """The same of columns whose shapes broadcast: strikes of one law may be an axis of their own."""
        like = next(iter(columns.values()))
        arguments = {owner: self._fixed(owner) for owner in self.classes}
        for axis in self.coordinates:
            if axis.argument not in STRIKE_COORDINATES:
                arguments[axis.owner][axis.argument] = columns[axis.input]
        market = converted(pr.Market(**_called(pr.Market, arguments["market"])), like.dtype, like.device)
        if self.strike_coordinate is not None and self.strike_coordinate.argument in STRIKE_COORDINATES:
            forward = market.forward(_horizon(arguments["instrument"], like))
            arguments["instrument"]["strike"] = forward * torch.exp(columns["log_moneyness"])
        instrument, model = (
            converted(self.classes[owner](**_called(self.classes[owner], arguments[owner])), like.dtype, like.device)
            for owner in ("instrument", "model")
        )
        return instrument, model, market

    def reference_vol(self, inputs: Tensor) -> Tensor:
        """A closed-form scale of the implied vol, above 0, shape `(N,)`: pure tensor code, differentiable.

        Raises:
            ConfigError: the model has none in `REFERENCE_VOLS`.
        """
        return self.reference(self.columns(inputs))

    def reference(self, columns: Columns) -> Tensor:
        """`reference_vol` of columns whose shapes broadcast."""
        kind = self.model["kind"]
        if kind not in REFERENCE_VOLS or any(isinstance(value, dict) for value in self.model.values()):
            raise ConfigError(
                f"no reference vol of `{kind}` with these settings is known; models that have one: "
                f"{', '.join(REFERENCE_VOLS)}, with numbers for parameters"
            )
        like = next(iter(columns.values()))
        parameters, market = (self._numbers(owner, columns, like) for owner in ("model", "market"))
        expiry = self.expiry(columns)
        carry = [market.get(name, like.new_zeros(())) for name in ("rate", "dividend_yield")]
        forward = market["spot"] * torch.exp((carry[0] - carry[1]) * expiry)
        vol = REFERENCE_VOLS[kind](parameters, expiry, forward)
        return vol.expand(torch.broadcast_shapes(*(column.shape for column in columns.values())))

    def exact(self, inputs: Tensor) -> Tensor:
        """The target by the best engine that draws nothing, shape `(N,)`; NaN where there is no implied vol.

        Raises:
            ConfigError: such an engine is not known; labels are simulated then.
        """
        from qfml.surrogate.exact_labels import target_values

        return target_values(self, self.columns(inputs)).value

    # ------------------------------------------------------------------ the box

    def outside(self, inputs: Tensor, vol: Tensor | None = None) -> Tensor:
        """Which inputs lie outside of each range of the box, shape `(N, d)`; NaN is outside.

        Args:
            inputs: shape `(N, d)`.
            vol: implied vols, shape `(N,)`: a range of deltas needs them; without them it is not looked at.
        """
        columns = self.columns(inputs)
        limits = list(self.box.values())
        slack = [1e-9 * max(abs(one.low), abs(one.high)) for one in limits]
        low = inputs.new_tensor([one.low - more for one, more in zip(limits, slack, strict=True)])
        high = inputs.new_tensor([one.high + more for one, more in zip(limits, slack, strict=True)])
        found = ~((inputs >= low) & (inputs <= high))
        for place, axis in enumerate(self.coordinates):  # the ranges of what is no input itself
            if axis.argument == "standard_moneyness":
                value = columns[axis.input] / (self.reference(columns) * self.expiry(columns).sqrt())
                found[..., place] = ~((value >= low[place]) & (value <= high[place]))
            elif axis.argument == "delta":
                found[..., place] = ~columns[axis.input].isfinite()
                if vol is not None:
                    d1, (least, most) = self.d1(columns, vol), _delta_quantiles(limits[place])
                    found[..., place] = ~((d1 >= least) & (d1 <= most))
        return found

    def delta(self, columns: Columns, vol: Tensor) -> Tensor:
        """Call delta on the forward, N(d1), of the columns `log_moneyness` and expiry with the vol of each."""
        return normal_cdf(self.d1(columns, vol))

    def d1(self, columns: Columns, vol: Tensor) -> Tensor:
        """Black's d1 of the columns `log_moneyness` and expiry with the vol of each."""
        total = vol * self.expiry(columns).to(vol.dtype).sqrt()
        return 0.5 * total - columns["log_moneyness"].to(vol.dtype) / total

    def expiry(self, columns: Columns) -> Tensor:
        """The expiry of each row, years."""
        like = next(iter(columns.values()))
        terms = self._fixed("instrument")
        for axis in self.coordinates:
            if axis.owner == "instrument" and axis.argument not in STRIKE_COORDINATES:
                terms[axis.argument] = columns[axis.input]
        return _horizon(terms, like)

    # ------------------------------------------------------------------ checks and parts

    def _fixed(self, owner: str) -> dict[str, Any]:
        settings = {name: value for name, value in getattr(self, owner).items() if name != "kind"}
        return {name: _fixed_value(owner, name, value) for name, value in settings.items()}

    def _numbers(self, owner: str, columns: Columns, like: Tensor) -> dict[str, Tensor]:
        """All numeric arguments of an owner, defaults included, as tensors; nothing is checked."""
        defaults = {name: p.default for name, p in argument_names(self.classes[owner]).items() if _is_number(p.default)}
        given = defaults | {n: v for n, v in getattr(self, owner).items() if _is_number(v) or isinstance(v, list)}
        numbers = {
            name: torch.tensor(value, dtype=like.dtype, device=like.device)
            for name, value in given.items()
            if _is_number(value) or all(_is_number(item) for item in value)
        }
        axes = (axis for axis in self.coordinates if axis.owner == owner and axis.argument not in STRIKE_COORDINATES)
        return numbers | {axis.argument: columns[axis.input] for axis in axes}

    def _check_names(self) -> None:
        for owner, cls in self.classes.items():
            known, given = argument_names(cls), {name for name in getattr(self, owner) if name != "kind"}
            for name in given - set(known):
                raise ConfigError(
                    f"{owner}.{name} is not known{nearest(name, known)}; {cls.__name__} has: {', '.join(known)}"
                )
            varied = {axis.argument for axis in self.coordinates if axis.owner == owner}
            for name in sorted(given & varied):
                raise ConfigError(f"`{name}` is both fixed in `{owner}` and varied in `box`: remove one of the two")
            if varied & set(STRIKE_COORDINATES):
                varied.add("strike")
            needed = {name for name, argument in known.items() if argument.default is argument.empty}
            missing = [name for name in known if name in needed - given - varied]
            if missing:
                raise ConfigError(
                    f"{cls.__name__} needs {', '.join(f'`{name}`' for name in missing)}: fix it in `{owner}` "
                    "or vary it in `box`"
                )
        for axis, limits in zip(self.coordinates, self.box.values(), strict=True):
            if limits.of_time and axis.argument not in _date_fields(self.classes["instrument"]):
                raise ConfigError(f"box.{axis.name} is no time: give its range as numbers, not as durations")

    def _check_strike(self) -> None:
        axes = [axis for axis in self.coordinates if axis.is_strike]
        if len(axes) > 1:
            names = " and ".join(f"`{axis.name}`" for axis in axes)
            raise ConfigError(f"{names} both say what the strike is: keep one of them in `box`")
        for axis in axes:
            if axis.argument in STRIKE_COORDINATES and "strike" in self.instrument:
                raise ConfigError(
                    f"`strike` is fixed in `instrument` and varied as `{axis.name}` in `box`: remove one of the two"
                )
        european = issubclass(self.classes["instrument"], pr.European)
        if self.target == "implied_vol" and not european:
            raise ConfigError(
                f"`target: implied_vol` is for European options, not for {self.classes['instrument'].__name__}: "
                "use target: price"
            )
        if self.target == "time_value" and not (european or issubclass(self.classes["instrument"], pr.American)):
            raise ConfigError(
                "`target: time_value` is for European and American options, not for "
                f"{self.classes['instrument'].__name__}: use target: price"
            )
        if axes and axes[0].argument == "delta":
            limits = self.box[axes[0].name]
            if self.target != "implied_vol":
                raise ConfigError(f"box.delta needs `target: implied_vol`, got {self.target}: use log_moneyness")
            if not (limits.low > 0.0 and limits.high < 1.0) or limits.scale != "linear":
                raise ConfigError(
                    f"box.delta must lie in (0, 1) on a linear scale, got {limits.low:g} to {limits.high:g}, "
                    f"scale: {limits.scale}"
                )

    def corners(self) -> Tensor:
        """Corners of the box as inputs; the strike is at the forward where its ends depend on the law."""
        ends = [
            (0.0, 0.0) if axis.argument in ("delta", "standard_moneyness") else (limits.low, limits.high)
            for axis, limits in zip(self.coordinates, self.box.values(), strict=True)
        ]
        if len(ends) <= MOST_CORNERS:
            rows = list(itertools.product(*(dict.fromkeys(end) for end in ends)))
        else:
            low = [end[0] for end in ends]
            rows = [low, [end[1] for end in ends]]
            rows += [[*low[:i], end[1], *low[i + 1 :]] for i, end in enumerate(ends)]
        return torch.tensor(rows, dtype=torch.float64)

    def _check_corners(self) -> None:
        try:
            triple = self.triple(self.corners())
            broadcast_shape(
                instrument=triple[0].batch_shape,
                model=triple[1].batch_shape,
                market=triple[2].batch_shape(triple[1].n_assets),
            )
            able = capable_engines(*triple)
        except (ValueError, TypeError) as error:
            message = re.sub(r" at index [^;]*", "", str(error))
            raise ConfigError(f"the box leaves what can be priced: {message}; narrow its range or mend it") from error
        if triple[1].n_assets != 1:
            raise ConfigError(
                f"a surrogate is of contracts on one asset, and the model has {triple[1].n_assets}: price it with "
                "`pricers.price`, or give the model and the market one asset"
            )
        names = [cls.__name__ for cls in (self.classes["instrument"], self.classes["model"])]
        if not able:
            reasons = "; ".join(f"{n}: {engine.refusal(*triple)}" for n, engine in pr.ENGINES.items())
            raise ConfigError(f"no engine prices {names[0]} under {names[1]} ({reasons})")
        by_delta = self.strike_coordinate is not None and self.strike_coordinate.argument == "delta"
        if by_delta and not set(able) & set(WITHOUT_SIMULATION):
            raise ConfigError(
                f"box.delta needs the exact vol, and {names[1]} has to be simulated: use standard_moneyness"
            )
        if self.strike_coordinate is not None and self.strike_coordinate.argument == "standard_moneyness":
            self.reference(self.columns(self.corners()))


def _delta_quantiles(limits: Range) -> tuple[float, float]:
    """The ends of a range of deltas as normal quantiles, which are compared with d1: no distribution function a row."""
    ends = (limits.low - DELTA_SLACK, limits.high + DELTA_SLACK)
    low, high = (NormalDist().inv_cdf(end) if 0 < end < 1 else math.copysign(math.inf, end - 0.5) for end in ends)
    return low, high


def _horizon(terms: Mapping[str, Any], like: Tensor) -> Tensor:
    """Years to the last date of a contract, from its terms."""
    value = terms.get("expiry")
    if value is None:
        times = terms.get("times")
        if times is None or isinstance(times, str):
            raise ConfigError("`log_moneyness` needs the expiry of the contract: use `strike`")
        value = torch.as_tensor(times, dtype=like.dtype, device=like.device)[..., -1]
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _range(name: str, value: Any) -> Range:
    try:
        return build(Range, value)
    except ConfigError as error:
        raise ConfigError(f"box.{name}: {error}") from None


def _registered(owner: str, settings: Mapping[str, Any], registry: Mapping[str, type]) -> type:
    kind = settings.get("kind")
    if not isinstance(kind, str) or kind not in registry:
        raise ConfigError(
            f"{owner}.kind is not known{nearest(str(kind), registry)}; choose one of: {', '.join(sorted(registry))}"
        )
    return registry[kind]


def _date_fields(cls: type) -> tuple[str, ...]:
    return (*getattr(cls, "date_fields", ()), "expiry")


def _plain(value: Any) -> Any:
    """Arrays as lists, so that the settings can be written and hashed."""
    if isinstance(value, Range):
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fixed_value(owner: str, name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if (owner, name) not in CURVES:
            raise ConfigError(f"{owner}.{name} must be a number or a list of numbers, got a mapping")
        return CURVES[owner, name](**value)
    return value


def _called(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the constructor."""
    names = {name: argument.name for name, argument in argument_names(cls).items()}
    return {names[name]: value for name, value in arguments.items()}
