"""The methods of `calibrate` for models with parameters of a whole surface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qfml.calibration.exact import Fit, checked, refined
from qfml.calibration.least_squares import MAX_STEPS, STATUS
from qfml.calibration.model import CalibrationModel, Quotes
from qfml.calibration.search import Search
from qfml.calibration.smoothing import FROM_NEIGHBOURS, NOT_SMOOTHED, neighbours_information, smoothed
from qfml.calibration.surface_checks import float_column, floats
from qfml.errors import ConfigError, DataError

__all__ = ["METHODS", "SENTENCES", "Asked", "Found"]

N_STEPS, TOLERANCE = 3, 1e-6  # of the method "inverse"
READ_OFF, FEW_STEPS = -3, -4  # codes besides those of the least squares

SENTENCES: dict[int, str] = STATUS | {
    READ_OFF: "read off by the network from quotes to parameters, not searched",
    FEW_STEPS: "refined: the network's answer and as many exact steps as `max_steps` allows; not followed to the end",
    NOT_SMOOTHED: "not smoothed: the objective of all days together is not finite where it starts; the parameters are "
    "those of the day on its own",
    FROM_NEIGHBOURS: "no quotes: the parameters are those that the penalty on changes gives from the days around it",
}
"""How a fit ended, by its code."""


@dataclass(frozen=True)
class Asked:
    """What `calibrate` is asked for.

    Args:
        quotes: of S surfaces.
        model: None where only a surrogate knows it.
        surrogate: a trained `Surrogate`.
        inverse: an `InverseMap`.
        start: as the user gives it.
        warm: day by day.
        smoothness: weight of the penalty on changes.
        options: of `Search`; None: as the method has it.
    """

    quotes: Quotes
    model: CalibrationModel | None
    surrogate: Any
    inverse: Any
    start: Any
    warm: bool
    smoothness: float
    options: Mapping[str, Any]


class Found(NamedTuple):
    """What a method has found."""

    model: CalibrationModel  # which the fit is of
    fit: Fit
    warnings: Sequence[Sequence[str]]  # for each surface
    penalty: Tensor | None = None  # what a smoothed day knows from its neighbours, (S, P, P)


def exact(asked: Asked) -> Found:
    """A search by the exact vols, or a fit from the user's start."""
    assert asked.model is not None
    start = None if asked.start is None else _given(asked.start, asked.model, asked.quotes.n_surfaces)
    search = Search.exact(len(asked.model.parameters)).changed(asked.options)
    return _searched(asked, asked.model, search, start)


def neural(asked: Asked) -> Found:
    """The same through a surrogate; judged by the exact vols where the model has some."""
    found = _through_surrogate(asked, Search.neural().changed(asked.options))
    model, names = asked.model, _names(found.model)
    if model is None or set(names) != set(_names(model)):
        return found
    order = [names.index(name) for name in _names(model)]
    penalty = None if found.penalty is None else found.penalty[:, order][:, :, order]
    own = refined(model, asked.quotes, _inside(found.fit.x[:, order], model), max_steps=0)
    own = replace(own, x=found.fit.x[:, order], status=found.fit.status, n_steps=found.fit.n_steps)
    own = replace(checked(model, asked.quotes, own), kernel_error=torch.zeros_like(own.cost))  # no search relied on it
    return Found(model, own, found.warnings, penalty)


def inverse(asked: Asked) -> Found:
    """The answer of a network from quotes to parameters, and a few exact steps from there."""
    from qfml.calibration.neural import inverse_answer, inverse_warnings

    model, quotes = asked.model, asked.quotes
    assert model is not None
    max_steps, tolerance = asked.options["max_steps"], asked.options["tolerance"]
    max_steps = N_STEPS if max_steps is None else max_steps
    answer, beyond = inverse_answer(quotes, asked.inverse, model)
    found = refined(model, quotes, answer, max_steps, TOLERANCE if tolerance is None else tolerance)
    found = checked(model, quotes, found)
    status = torch.where(found.status == MAX_STEPS, FEW_STEPS if max_steps else READ_OFF, found.status)
    said, after = (inverse_warnings(x, asked.inverse, model, beyond) for x in (answer, found.x))
    # where steps have led to the edge or beyond it, what is said of the answer may be said twice
    both = tuple(tuple(dict.fromkeys((*first, *then))) for first, then in zip(said, after, strict=True))
    said_of_quotes = _off_the_layout(quotes, asked.inverse)
    both = tuple((*own, *lines) for own, lines in zip(both, said_of_quotes, strict=True))
    return Found(model, replace(found, status=status), both)


def _off_the_layout(quotes: Quotes, inverse: Any) -> list[list[str]]:
    """What is to be said of each surface whose quotes are not where the map looks."""
    said: list[list[str]] = [[] for _ in range(quotes.n_surfaces)]
    some = quotes.used.any(1)
    if not bool(some.any()):
        return said
    filled, unseen = (count.tolist() for count in inverse.layout.apart(quotes.at(some)))
    n_quotes = quotes.used.sum(1).tolist()
    for surface, lost, unread in zip(some.nonzero().squeeze(1).tolist(), filled, unseen, strict=True):
        if lost:
            said[surface].append(
                f"{lost} of {inverse.layout.n_places} places at which the inverse map looks lie beyond the quotes, and "
                "the vols of the nearest stand in: take a map whose layout fits, or the method exact"
            )
        if unread:
            said[surface].append(
                f"{unread} of {n_quotes[surface]} quotes lie beyond the places at which the inverse map looks: its "
                "answer does not depend on them"
            )
    return said


def polished(asked: Asked) -> Found:
    """An exact fit from where a surrogate or an inverse map leads to."""
    from qfml.calibration.neural import SurrogateModel, inverse_answer, inverse_warnings

    model, quotes = asked.model, asked.quotes
    if asked.surrogate is not None:
        names = _names(SurrogateModel(asked.surrogate))
        if model is None or set(names) != set(_names(model)):
            raise ConfigError(
                f"the surrogate has the parameters {', '.join(names)}, from which no exact fit can start; take "
                "the method 'neural', or a model with these parameters"
            )
        of_search = {name: asked.options[name] for name in ("n_starts", "n_polished", "seed")}
        through = _through_surrogate(replace(asked, smoothness=0.0), Search.neural().changed(of_search))
        x, said = through.fit.x[:, [names.index(name) for name in _names(model)]], through.warnings
    else:
        assert model is not None
        x, beyond = inverse_answer(quotes, asked.inverse, model)
        said = inverse_warnings(x, asked.inverse, model, beyond)
    steps = {name: asked.options[name] for name in ("max_steps", "tolerance")}
    search = Search.exact(len(model.parameters)).changed(steps)
    found = _searched(asked, model, search, _inside(x, model))
    return found._replace(warnings=tuple(tuple(f"the network's start: {line}" for line in lines) for lines in said))


METHODS: dict[str, Callable[[Asked], Found]] = {
    "exact": exact,
    "neural": neural,
    "inverse": inverse,
    "polished": polished,
}


def _through_surrogate(asked: Asked, search: Search) -> Found:
    from qfml.calibration.neural import SurrogateModel, neural_start  # loads networks: only where they are asked for

    through, start = SurrogateModel(asked.surrogate), None
    if asked.inverse is not None:
        start = neural_start(asked.quotes, asked.inverse, through)
    elif asked.start is not None:
        # in the order of the user's model where that has the same parameters
        same = asked.model is not None and set(_names(asked.model)) == set(_names(through))
        like = asked.model if asked.model is not None and same else through
        given = _given(asked.start, like, asked.quotes.n_surfaces)
        start = _inside(given[:, [_names(like).index(name) for name in _names(through)]], through)
    found = _searched(asked, through, search, start)
    return found._replace(warnings=through.warnings(found.fit.x, asked.quotes))


def _searched(asked: Asked, model: CalibrationModel, search: Search, start: Tensor | None) -> Found:
    """A fit from the start, or from a search, smoothed where that was asked for."""
    quotes = asked.quotes
    if start is not None:
        found = search.from_(model, quotes, start)
    else:
        found = (search.day_by_day if asked.warm else search.everywhere)(model, quotes)
    none: Sequence[Sequence[str]] = [()] * quotes.n_surfaces
    if not asked.smoothness:
        return Found(model, found, none)
    found = smoothed(model, quotes, found, asked.smoothness, **search.steps)
    if bool((found.status == NOT_SMOOTHED).any()):
        return Found(model, found, none)
    known = neighbours_information(found.x, found.jacobian, quotes.weight, model.parameters, asked.smoothness)
    return Found(model, found, none, known)


def _names(model: Any) -> list[str]:
    return [parameter.name for parameter in model.parameters]


def _inside(x: Tensor, model: CalibrationModel) -> Tensor:
    from qfml.calibration.neural import inside_bounds

    return inside_bounds(x, model.parameters)


def _given(start: Any, model: CalibrationModel, n_surfaces: int) -> Tensor:
    """Starts (S, P) as the user gives them, which must lie inside the bounds."""
    names = [parameter.name for parameter in model.parameters]
    if isinstance(start, Mapping):
        if set(start) != set(names):
            raise DataError(f"`start` must name the parameters {', '.join(names)}, got {', '.join(map(str, start))}")
        columns = [float_column(f"start[{name!r}]", np.atleast_1d(floats(name, start[name]))) for name in names]
        for name, column in zip(names, columns, strict=True):
            if len(column) not in (1, n_surfaces):
                raise DataError(
                    f"`start` of `{name}` must be one number, or one for each of the {n_surfaces} surfaces, got "
                    f"{len(column)}"
                )
        x = torch.stack([torch.from_numpy(column).expand(n_surfaces) for column in columns], dim=-1)
    else:
        x = torch.from_numpy(floats("start", start))
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
