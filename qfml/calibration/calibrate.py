"""`calibrate`: a model fitted to one surface, to many at once, or to a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qfml.calibration.exact import GOOD
from qfml.calibration.fourier_vols import LEAST_PRICE, black_out_of_the_money
from qfml.calibration.history import SurfaceHistory
from qfml.calibration.least_squares import NOT_FINITE
from qfml.calibration.method_options import check_options, chosen_method
from qfml.calibration.methods import METHODS, SENTENCES, Asked, Found
from qfml.calibration.model import CALIBRATION_MODELS, Quotes, model_of
from qfml.calibration.result import Calibration, calibration
from qfml.calibration.smoothing import FROM_NEIGHBOURS
from qfml.calibration.surface import Surface, as_quotes
from qfml.calibration.swaption_cube import SwaptionCube
from qfml.calibration.uncertainty import uncertainty
from qfml.errors import ConfigError, DataError

__all__ = ["calibrate"]

NO_QUOTES = "failed: the surface has no quotes"


def calibrate(
    surface: Any,
    model: Any = "heston",
    method: Any = None,
    *,
    n_starts: Any = None,
    n_polished: Any = None,
    seed: Any = 0,
    start: Any = None,
    warm: Any = False,
    smoothness: Any = 0.0,
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
        DataError: surfaces that are none, surfaces that are no history (`SurfaceHistory`) under `warm` or `smoothness`,
            a start outside the bounds.

    >>> from qfml.calibration.surface import Surface
    >>> fitted = calibrate(Surface.dax_2002("week_rounded"), "heston")
    >>> round(fitted.sse, 2), round(fitted.params["kappa"], 2), fitted.converged.tolist()
    (177.23, 15.66, [True])
    """
    surfaces, quotes, single = _surfaces(surface)
    by_surrogate = surrogate is not None and isinstance(model, str) and model not in CALIBRATION_MODELS
    made: Any = None if by_surrogate else model_of(model)
    method = chosen_method(method, surrogate=surrogate is not None, inverse=inverse is not None)
    options = {
        "n_starts": n_starts,
        "n_polished": n_polished,
        "max_steps": max_steps,
        "tolerance": tolerance,
        "seed": seed,
    }
    asked_for = {"start": start, "warm": warm, "smoothness": smoothness}
    check_options(made, method, options, inverse=inverse is not None, **asked_for)
    if hasattr(made, "fit_surfaces"):
        if not surfaces:
            raise DataError(f"{made.kind} is fitted to surfaces, not to `Quotes`")
        return made.fit_surfaces(surfaces, single=single, **options)
    _check_networks(model if made is None else made.kind, surrogate, inverse)
    if (warm or smoothness) and len(surfaces) > 1:
        try:
            SurfaceHistory(surfaces)  # dates that ascend, of one underlying
        except DataError as error:
            raise DataError(f"`warm` and `smoothness` go from day to day: {error}") from None
    asked = Asked(quotes, made, surrogate, inverse, start, warm, smoothness, options)
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


def _surfaces(surface: Any) -> tuple[tuple[Surface, ...], Quotes, bool]:
    if isinstance(surface, Quotes):
        if surface.n_surfaces == 0:
            raise DataError("`surface` must hold one surface at least, got quotes of none")
        return (), surface, False
    if isinstance(surface, SwaptionCube):
        raise DataError("`surface` is a SwaptionCube, whose nodes are fitted by `calibrate_cube(cube, beta=...)`")
    single = isinstance(surface, Surface)
    if not single and (isinstance(surface, str | Mapping) or not hasattr(surface, "__iter__")):
        raise DataError(
            f"`surface` must be a Surface, a SurfaceHistory, a sequence of surfaces or Quotes, got "
            f"{type(surface).__name__}; Surface.read(path) reads a file"
        )
    surfaces = (surface,) if single else tuple(surface)
    if not surfaces:
        raise DataError("`surface` must hold one surface at least, got none")
    other = next((i for i, one in enumerate(surfaces) if not isinstance(one, Surface)), None)
    if other is not None:
        raise DataError(
            f"`surface` must hold surfaces, got {type(surfaces[other]).__name__} at place {other}; Surface.from_frame "
            "makes one of a table"
        )
    return surfaces, as_quotes(surfaces), single


def _check_networks(kind: str, surrogate: Any, inverse: Any) -> None:
    """Refuses what is no network, and a surrogate of another model than the `kind` that is fitted."""
    if surrogate is None and inverse is None:
        return
    from qfml.calibration.inverse import InverseMap  # loads networks: only where they are asked for
    from qfml.surrogate.surrogate import Surrogate

    for name, network, wanted in (("surrogate", surrogate, Surrogate), ("inverse", inverse, InverseMap)):
        if not (network is None or isinstance(network, wanted)):
            raise ConfigError(
                f"`{name}` must be a trained {wanted.__name__}, got {network!r:.80}; {wanted.__name__}.load(folder) "
                "reads one"
            )
    own = None if surrogate is None else surrogate.problem.model["kind"]
    if own is not None and own != kind:
        raise ConfigError(f"`surrogate` is one of the model {own!r}, got the `model` {kind!r}; name the same model")
