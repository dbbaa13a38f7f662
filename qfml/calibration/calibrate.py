"""`calibrate`: a model fitted to one surface, to many at once, or to a history."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qfml.calibration.exact import GOOD
from qfml.calibration.fourier_vols import LEAST_PRICE, black_out_of_the_money
from qfml.calibration.least_squares import NOT_FINITE
from qfml.calibration.methods import METHODS, SENTENCES, Asked, Found
from qfml.calibration.model import CALIBRATION_MODELS, Quotes
from qfml.calibration.result import Calibration, calibration
from qfml.calibration.smoothing import FROM_NEIGHBOURS
from qfml.calibration.surface import as_quotes
from qfml.calibration.uncertainty import uncertainty
from qfml.errors import ConfigError, DataError

__all__ = ["calibrate"]

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
    max_steps: Any = None,
    tolerance: Any = None,
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
        method: "exact"; "neural", through a surrogate; "inverse", by a network from quotes to parameters and a few
            exact steps, for thousands of surfaces at once; "polished", one of the networks and then exact to the end.
            None: "polished" where `surrogate` or `inverse` is given, else "exact".
        n_starts: starts that a search looks at for each surface; None: 16 for each parameter, 64 through a surrogate.
        n_polished: starts that it follows to the end; None: one for two parameters, 4 through a surrogate.
        seed: of the starts of a search.
        start: parameters to start from, in place of a search: by name, or (P,), or (S, P).
        warm: a search goes through a history day by day, each from the day before, and looks everywhere where that
            fits badly; else all days are searched at once, which is faster for many days on many cores.
        smoothness: weight $\lambda$ of the squared changes from day to day: $\lambda \sum (y_t - y_{t-1})^2$ is added
            to the sum of squared vol errors, where y goes from 0 to 1 over a parameter's range of starts; all days
            are then solved together. Unlike the errors it has the unit of a squared vol: 1e-4 makes a change
            through the whole range as dear as one quote that is off by one vol point. A day without quotes gets the
            parameters that its neighbours give it, and a status that says so. Standard errors are those of the
            penalised problem, see `uncertainty`.
        max_steps: of the least squares, from each start; None: 100, through a surrogate 50, and 3 of the method
            "inverse", for which 0 leaves the network's answer as it is.
        tolerance: of the least squares, relative; None: 1e-10, through a surrogate and by "inverse" 1e-6. With
            "polished" the steps and the tolerance are those of the exact fit.
        surrogate: a trained `Surrogate`, for "neural" and "polished".
        inverse: an `InverseMap`, for "inverse", "neural" and "polished".

    An option that a method cannot heed is refused, and models that are fitted by a search of their own (`sabr`, `svi`,
    `ssvi`, `local_vol`) say which options they have.

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
    made = _model(model, surrogate)
    options = {
        "n_starts": n_starts,
        "n_polished": n_polished,
        "max_steps": max_steps,
        "tolerance": tolerance,
        "seed": seed,
    }
    if hasattr(made, "fit_surfaces"):
        others = {"start": start, "warm": warm or None, "smoothness": smoothness or None}
        given = {name: value for name, value in (options | others).items() if value is not None}
        return _by_expiry(made, surfaces, single, method, given)
    asked = Asked(quotes, made, surrogate, inverse, start, warm, smoothness, options)
    _check(method, asked)
    return _result(method, quotes, surfaces, single, METHODS[method](asked))


def _result(method: str, quotes: Quotes, surfaces: Sequence[Any], single: bool, answer: Found) -> Calibration:
    model, found = answer.model, answer.fit
    empty = quotes.used.sum(-1) == 0
    from_neighbours = empty & (found.status == FROM_NEIGHBOURS)
    status = [
        NO_QUOTES if lost else SENTENCES[code]
        for lost, code in zip((empty & ~from_neighbours).tolist(), found.status.tolist(), strict=True)
    ]
    known = uncertainty(
        found.x, found.vols - quotes.vol, found.jacobian, quotes.weight, model.parameters, answer.penalty
    )
    differs = (found.kernel_error > GOOD) & ~empty & (found.status != NOT_FINITE)
    notes = [[] if lost else list(said) for lost, said in zip(empty.tolist(), answer.warnings, strict=True)]
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
        from_neighbours=from_neighbours,
    )


def _faint(vols: Tensor, quotes: Quotes) -> Tensor:
    """How many quotes of each surface have the vol of the least price that tells one."""
    total = torch.where(quotes.used, vols * quotes.expiry.sqrt(), 1.0)
    price = black_out_of_the_money(torch.where(quotes.used, quotes.log_moneyness, 0.0), total)
    return (quotes.used & (price < 1.0001 * LEAST_PRICE)).sum(-1)


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


def _model(model: Any, surrogate: Any) -> Any:
    """The model; None where only a surrogate knows it."""
    if not isinstance(model, str):
        return model
    if surrogate is not None:
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
    if method == "inverse" and surrogate is not None:
        raise ConfigError(
            "the method 'inverse' uses no surrogate; leave out `surrogate`, or take 'neural' or 'polished'"
        )
    if method == "inverse" and inverse is None:
        raise ConfigError("the method 'inverse' needs `inverse`: a trained `InverseMap`")
    if method == "polished" and not networks:
        raise ConfigError("the method 'polished' starts from a network: give `surrogate` or `inverse`")
    if method == "exact" and networks:
        raise ConfigError("the method 'exact' uses no network; leave out `surrogate` and `inverse`, or the method")
    return method


def _by_expiry(model: Any, surfaces: tuple[Any, ...], single: bool, method: str, options: Mapping[str, Any]) -> Any:
    """A model that fits surfaces by itself, and knows which options it has."""
    if method != "exact":
        raise ConfigError(f"{model.kind} is fitted exactly, by itself; the method {method!r} does not apply")
    if not surfaces:
        raise DataError(f"{model.kind} is fitted to surfaces, not to `Quotes`")
    return model.fit_surfaces(surfaces, single=single, **options)


def _check(method: str, asked: Asked) -> None:
    """Refuses options that the method would not heed."""
    options, start, network = asked.options, asked.start, asked.inverse
    if network is not None and start is not None:
        raise ConfigError("the inverse map reads the parameters off the quotes and starts nowhere: leave out `start`")
    giver = "`start`" if start is not None else "the inverse map" if network is not None else None
    for name in ("n_starts", "n_polished"):
        if giver is not None and options[name] is not None:
            raise ConfigError(f"`{name}` is of a search for starts, and {giver} gives the start: leave out one of them")
        _whole(name, options[name], 1)
    _whole("max_steps", options["max_steps"], 0 if method == "inverse" else 1)
    _whole("seed", options["seed"], 0)
    tolerance = options["tolerance"]
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0.0 < tolerance < 1.0):
        raise ConfigError(f"`tolerance` must be a number between 0 and 1, such as 1e-10, got {tolerance!r}")
    if asked.warm and giver is not None:
        raise ConfigError(f"`warm` starts each day from the one before, and {giver} gives its start: leave out one")
    if asked.warm and method == "polished":
        raise ConfigError("`warm` starts each day from the one before, 'polished' from a network: leave out one")
    if asked.warm and asked.smoothness:
        raise ConfigError("`warm` goes through the days one by one, `smoothness` solves them together; choose one")
    if not 0.0 <= asked.smoothness < math.inf:
        raise ConfigError(f"`smoothness` must be a finite number, 0 or more, got {asked.smoothness}")
    if asked.smoothness and method == "inverse":
        raise ConfigError(
            "the method 'inverse' answers for each day by itself, `smoothness` solves all days together: take the "
            "method 'polished'"
        )


def _whole(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ConfigError(f"`{name}` must be a whole number, {least} or more, got {value!r}")
