"""`calibrate`: a model fitted to one surface, to many at once, or to a history."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from qfml.calibration.exact import GOOD, Fit, exact_vols, fit, screened
from qfml.calibration.fourier_vols import LEAST_PRICE, black_out_of_the_money
from qfml.calibration.least_squares import NOT_FINITE, STATUS
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Quotes
from qfml.calibration.result import Calibration, calibration
from qfml.calibration.smoothing import NOT_SMOOTHED, NOT_SMOOTHED_STATUS, smoothed
from qfml.calibration.surface import as_quotes
from qfml.calibration.uncertainty import uncertainty
from qfml.errors import ConfigError, DataError

__all__ = ["METHODS", "calibrate"]

METHODS = ("exact", "neural", "inverse", "polished")
WORSE = 4.0  # mean squared error, over that of the day before, from which on a warm start is not trusted
NO_QUOTES = "failed: the surface has no quotes"


def calibrate(
    surface: Any,
    model: Any = "heston",
    method: str | None = None,
    *,
    n_starts: Any = None,
    n_polished: Any = None,
    seed: int = 0,
    start: Any = None,
    warm: bool = False,
    smoothness: float = 0.0,
    max_steps: Any = 100,
    tolerance: float = 1e-10,
    surrogate: Any = None,
    inverse: Any = None,
) -> Any:
    r"""Fits a model to implied vols by least squares: $\min_x \sum_i w_i\,(\sigma_i(x) - \sigma_i)^2$.

    The method "exact" searches from many starts at once: scrambled Sobol points in the usual range of the parameters,
    of which the best are followed by a batched Levenberg-Marquardt with a written-out Jacobian. Vols and errors of the
    result come from the exact engine. A surface that fails leaves the others alone: its status says why.

    Args:
        surface: a `Surface`, a `SurfaceHistory`, a sequence of surfaces, or `Quotes`.
        model: a name in `CALIBRATION_MODELS`, or a model.
        method: "exact"; "neural", through a surrogate; "inverse", by a network from quotes to parameters; "polished",
            one of these two and then exact. None: "polished" where `surrogate` or `inverse` is given, else "exact".
        n_starts: starts that are looked at for each surface; None: 16 for each parameter.
        n_polished: starts that are followed to the end; None: one for two parameters.
        seed: of the starts.
        start: parameters to start from, in place of a search: by name, or (P,), or (S, P).
        warm: go through a history day by day, each from the day before, and search where that fits badly; else all
            days are searched at once, which is faster for many days on many cores.
        smoothness: weight $\lambda$ of the squared changes from day to day: $\lambda \sum (y_t - y_{t-1})^2$ is added
            to the sum of squared vol errors, where y goes from 0 to 1 over a parameter's range of starts; all days
            are then solved together. Unlike the errors it has the unit of a squared vol: 1e-4 makes a change
            through the whole range as dear as one quote that is off by one vol point.
        max_steps: of the least squares, from each start.
        tolerance: of the least squares, relative.
        surrogate: a trained `Surrogate`, for "neural" and "polished".
        inverse: an `InverseMap`, for "inverse", "neural" and "polished".

    Returns:
        A `Calibration`; models that are fitted expiry by expiry return their own kind of result.

    Raises:
        ConfigError: an unknown model or method, settings that do not go together.
        DataError: surfaces that are none, a start outside the bounds.

    >>> from qfml.calibration.surface import Surface
    >>> fitted = calibrate(Surface.dax_2002("week_rounded"), "heston")
    >>> round(fitted.sse, 2), round(fitted.params["kappa"], 2), fitted.converged.tolist()
    (177.23, 15.66, [True])
    """
    surfaces, quotes, single = _surfaces(surface)
    method = _method(method, surrogate, inverse)
    made = _model(model, surrogate, method)
    if hasattr(made, "fit_surfaces"):
        return _by_expiry(made, surfaces, single, method, n_starts, seed, start, warm, smoothness)
    if warm and smoothness:
        raise ConfigError("`warm` goes through the days one by one, `smoothness` solves them together; choose one")
    if not smoothness >= 0.0:
        raise ConfigError(f"`smoothness` must be 0 or more, got {smoothness}")
    settings = {"max_steps": _count("max_steps", max_steps, 100), "tolerance": tolerance}
    if method == "inverse" and start is not None:
        raise ConfigError(
            "the method 'inverse' reads the parameters off the quotes and starts nowhere: leave out `start`"
        )
    given = None if start is None else _given(start, made, quotes.n_surfaces)
    network = _Found(cast("CalibrationModel", made), given, None)
    if method != "exact":
        network = _through_networks(made, method, quotes, surrogate, inverse, given, seed)
    fitted, found = network.model, network.fit
    if found is None:
        search = _Search(fitted, n_starts, n_polished, seed, settings)
        found = search(quotes, network.start, warm)
    if smoothness:
        found = smoothed(fitted, quotes, found, smoothness, **settings)
    return _result(fitted, method, quotes, surfaces, single, found, network.warnings)


class _Found(NamedTuple):
    """What networks have found."""

    model: CalibrationModel  # which the fit is of
    start: Tensor | None  # (S, P), of an exact fit that follows
    fit: Fit | None
    warnings: tuple[tuple[str, ...], ...] = ()


class _Search:
    """Multi-start fits of a batch of surfaces."""

    def __init__(
        self, model: CalibrationModel, n_starts: Any, n_polished: Any, seed: int, settings: dict[str, Any]
    ) -> None:
        n_parameters = len(model.parameters)
        self.model, self.seed, self.settings = model, seed, settings
        self.n_starts = _count("n_starts", n_starts, 16 * n_parameters)
        self.n_polished = min(_count("n_polished", n_polished, (n_parameters + 1) // 2), self.n_starts)

    def __call__(self, quotes: Quotes, given: Tensor | None = None, warm: bool = False) -> Fit:
        if given is not None:
            return fit(self.model, quotes, given.unsqueeze(1), **self.settings)
        return self.day_by_day(quotes) if warm else self.everywhere(quotes)

    def everywhere(self, quotes: Quotes) -> Fit:
        """The best fits from many starts."""
        generator = torch.Generator().manual_seed(self.seed)
        starts = self.model.starts(quotes, self.n_starts, generator)
        return fit(self.model, quotes, screened(self.model, quotes, starts, self.n_polished), **self.settings)

    def day_by_day(self, quotes: Quotes) -> Fit:
        """Each surface from the parameters of the one before, and searched where that fits badly."""
        days: list[Fit] = []
        error_before = torch.inf
        for day in range(quotes.n_surfaces):
            today = quotes.at([day])
            count = today.used.sum().clamp(min=1)
            found = None
            if days and bool(days[-1].converged):
                found = fit(self.model, today, days[-1].x.unsqueeze(1), **self.settings)
                error = (found.cost / count).item()
                if not (bool(found.converged) and error <= WORSE * error_before):
                    found = None
            if found is None:
                found = self.everywhere(today)
            error_before = (found.cost / count).item()
            days.append(found)
        return Fit(*(torch.cat([getattr(day, name) for day in days]) for name in Fit.__dataclass_fields__))


def _through_networks(
    model: Any, method: str, quotes: Quotes, surrogate: Any, inverse: Any, start: Tensor | None, seed: int
) -> _Found:
    """The fit that networks give, or where an exact one is to start."""
    from qfml.calibration import neural  # loads the networks: only where they are asked for

    if surrogate is not None and method != "inverse":
        through = neural.neural_calibration(quotes, surrogate, start, inverse=inverse, seed=seed)
        names = [parameter.name for parameter in through.model.parameters]
        if model is None or set(names) != {parameter.name for parameter in model.parameters}:
            if method == "polished":
                raise ConfigError(
                    f"the surrogate has the parameters {', '.join(names)}, from which no exact fit can start; take "
                    "the method 'neural', or a model with these parameters"
                )
            return _Found(through.model, None, through.fit, through.warnings)
        order = [names.index(parameter.name) for parameter in model.parameters]
        x = through.fit.x[:, order]
        if method == "polished":
            return _Found(model, neural.inside_bounds(x, model.parameters), None)
        return _Found(model, None, _judged(model, x, quotes, through.fit.status, through.fit.n_steps), through.warnings)
    if method == "polished":
        return _Found(model, neural.neural_start(quotes, inverse, model) if start is None else start, None)
    x = neural.inverse_answer(quotes, inverse, model)
    zeros = torch.zeros(quotes.n_surfaces, dtype=torch.int64)
    said = tuple(neural.inverse_warnings(x, inverse, model))
    return _Found(model, None, _judged(model, x, quotes, zeros, zeros), said)


def _judged(model: CalibrationModel, x: Tensor, quotes: Quotes, status: Tensor, n_steps: Tensor) -> Fit:
    """Parameters from elsewhere, with the model's own vols."""
    with torch.no_grad():
        _, jacobian = model.vols_and_jacobian(x, quotes)
        vols = exact_vols(model, x, quotes, floor=True)
    cost = torch.where(quotes.used, quotes.weight * (vols - quotes.vol).square(), 0.0).sum(-1)
    return Fit(x, vols, jacobian, cost, status, n_steps, torch.zeros_like(cost))


def _result(
    model: CalibrationModel,
    method: str,
    quotes: Quotes,
    surfaces: Sequence[Any],
    single: bool,
    found: Fit,
    said: Sequence[Sequence[str]],
) -> Calibration:
    empty = quotes.used.sum(-1) == 0
    status = [
        NO_QUOTES if none else _STATUS[code] for none, code in zip(empty.tolist(), found.status.tolist(), strict=True)
    ]
    known = uncertainty(found.x, found.vols - quotes.vol, found.jacobian, quotes.weight, model.parameters)
    differs = (found.kernel_error > GOOD) & ~empty & (found.status != NOT_FINITE)
    notes = [list(before) for before in said] if said else [[] for _ in status]
    for row in differs.nonzero().squeeze(-1).tolist():
        error = 1e4 * found.kernel_error[row].item()
        notes[row].append(
            f"the search was off the exact engine by up to {error:.2g} bps: it may have missed the minimum"
        )
    for row, count in enumerate(_faint(found.vols, quotes).tolist()):
        if count and not empty[row]:
            notes[row].append(
                f"{count} quotes lie where the model's price is below 1e-11 of the forward and tells no vol"
            )
    return calibration(
        model,
        method,
        quotes,
        surfaces,
        single=single,
        x=found.x,
        vols=found.vols,
        known=known,
        converged=found.converged & ~empty,
        status=status,
        n_steps=found.n_steps,
        warnings=notes,
    )


def _faint(vols: Tensor, quotes: Quotes) -> Tensor:
    """How many quotes of each surface have the vol of the least price that tells one."""
    total = torch.where(quotes.used, vols * quotes.expiry.sqrt(), 1.0)
    price = black_out_of_the_money(torch.where(quotes.used, quotes.log_moneyness, 0.0), total)
    return (quotes.used & (price < 1.0001 * LEAST_PRICE)).sum(-1)


INVERSE_STATUS = "read off by the network from quotes to parameters, not searched"
_STATUS = {0: INVERSE_STATUS, NOT_SMOOTHED: NOT_SMOOTHED_STATUS} | STATUS


def _surfaces(surface: Any) -> tuple[tuple[Any, ...], Quotes, bool]:
    if isinstance(surface, Quotes):
        if surface.n_surfaces == 0:
            raise DataError("`surface` must hold one surface at least, got quotes of none")
        return (), surface, False
    single = hasattr(surface, "strike")
    if not single and (isinstance(surface, str | Mapping) or not hasattr(surface, "__iter__")):
        raise DataError(
            f"`surface` must be a Surface, a SurfaceHistory, a sequence of surfaces or Quotes, got "
            f"{type(surface).__name__}; Surface.read(path) reads a file"
        )
    surfaces = (surface,) if single else tuple(surface)
    if not surfaces:
        raise DataError("`surface` must hold one surface at least, got none")
    return surfaces, as_quotes(surfaces), single


def _model(model: Any, surrogate: Any, method: str) -> Any:
    """The model; None where only a surrogate knows it."""
    if not isinstance(model, str):
        return model
    if surrogate is not None and method != "inverse":
        kind = surrogate.problem.model["kind"]
        if kind != model:
            raise ConfigError(f"`surrogate` is one of the model {kind!r}, got `model` {model!r}; name the same model")
        if model not in CALIBRATION_MODELS:
            return None
    if model not in CALIBRATION_MODELS:
        near = difflib.get_close_matches(model, CALIBRATION_MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(
            f"`model` {model!r} is not known{hint}; choose one of: {', '.join(sorted(CALIBRATION_MODELS))}"
        )
    return CALIBRATION_MODELS[model]()


def _method(method: str | None, surrogate: Any, inverse: Any) -> str:
    networks = surrogate is not None or inverse is not None
    if method is None:
        return "polished" if networks else "exact"
    if method not in METHODS:
        raise ConfigError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "neural" and surrogate is None:
        raise ConfigError("the method 'neural' needs a `surrogate`: a trained network that gives the model's vols")
    if method == "inverse" and inverse is None:
        raise ConfigError("the method 'inverse' needs `inverse`: a trained `InverseMap`")
    if method == "polished" and not networks:
        raise ConfigError("the method 'polished' starts from a network: give `surrogate` or `inverse`")
    if method == "exact" and networks:
        raise ConfigError("the method 'exact' uses no network; leave out `surrogate` and `inverse`, or the method")
    return method


def _by_expiry(
    model: Any,
    surfaces: tuple[Any, ...],
    single: bool,
    method: str,
    n_starts: int | None,
    seed: int,
    start: Any,
    warm: bool,
    smooth: float,
) -> Any:
    kind = type(model).__name__
    if method != "exact":
        raise ConfigError(f"{kind} is fitted exactly, expiry by expiry; the method {method!r} does not apply")
    if start is not None or warm or smooth:
        raise ConfigError(f"{kind} is fitted expiry by expiry; `start`, `warm` and `smoothness` do not apply")
    if not surfaces:
        raise DataError(f"{kind} is fitted to surfaces, not to `Quotes`")
    return model.fit_surfaces(surfaces, n_starts=n_starts, seed=seed, single=single)


def _count(name: str, value: Any, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"`{name}` must be a whole number, 1 or more, got {value!r}")
    return value


def _given(start: Any, model: CalibrationModel, n_surfaces: int) -> Tensor:
    """Starts (S, P) as the user gives them, which must lie inside the bounds."""
    names = [parameter.name for parameter in model.parameters]
    if isinstance(start, Mapping):
        if set(start) != set(names):
            raise DataError(f"`start` must name the parameters {', '.join(names)}, got {', '.join(map(str, start))}")
        columns = [torch.as_tensor(start[name], dtype=torch.float64).expand(n_surfaces) for name in names]
        x = torch.stack(columns, dim=-1)
    else:
        x = torch.as_tensor(start, dtype=torch.float64)
        if x.shape not in ((len(names),), (n_surfaces, len(names))):
            raise DataError(
                f"`start` must have the shape ({len(names)},) or ({n_surfaces}, {len(names)}), got {tuple(x.shape)}"
            )
        x = x.expand(n_surfaces, len(names))
    for parameter, column in zip(model.parameters, x.unbind(-1), strict=True):
        outside = ~((column > parameter.lower) & (column < parameter.upper))
        if bool(outside.any()):
            raise DataError(
                f"`start` of `{parameter.name}` must lie between {parameter.lower:g} and {parameter.upper:g}, got "
                f"{column[outside][0].item():g}"
            )
    return x
