"""The task `calibration`: a model fitted to one surface or many, with errors, a posterior, and a judgement ahead."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import polars as pl
import torch
from pydantic_core import core_schema

import pricers as pr
from qfml import config
from qfml.calibration import CALIBRATION_MODELS, Surface, SurfaceHistory, as_quotes, calibrate
from qfml.calibration.inverse import InverseMap, InverseTraining
from qfml.calibration.layout import Layout
from qfml.calibration.posterior import Posterior, half_spreads, posterior, residual_std
from qfml.calibration.result import Calibration
from qfml.calibration.sources import SURFACE_SOURCES, SurfaceSource
from qfml.calibration.walk_forward import walk_forward_calibration
from qfml.config import OneOf, Section, build, build_kind
from qfml.engine import Callback
from qfml.engine.provenance import provenance
from qfml.errors import ConfigError, DataError
from qfml.report.calibration import shown_surfaces
from qfml.task.base import Say, as_settings

CURVE_POINTS = 61  # of a drawn smile
CURVE_ROOM = 0.15  # beyond the outermost quotes, share of their range
MOST_FINDINGS = 5  # that are said; the report has all
MOST_CURVES = 400  # last surfaces whose smiles are written, beside those that the page shows


@dataclass(frozen=True)
class SurrogateOnly:
    """A model without an exact calibration, such as rough Bergomi: its surrogate is calibrated in its place.

    Args:
        kind: of `pricers.MODELS`.
    """

    kind: str


class _Fitted(OneOf):
    """One of `CALIBRATION_MODELS`, or a model of `pricers` that only a surrogate can stand for."""

    def __init__(self) -> None:
        super().__init__(CALIBRATION_MODELS)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._built)

    def _built(self, value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else value
        if isinstance(kind, str) and kind in pr.MODELS and kind not in self.registry:
            return build(SurrogateOnly, {"kind": kind} if isinstance(value, str) else value)
        return value if isinstance(value, SurrogateOnly) else build_kind(self.registry, value)


@dataclass(frozen=True)
class PosteriorConfig:
    """Draws from the posterior of the first surface's parameters by Hamiltonian Monte Carlo.

    Under the method "neural" they go through the surrogate and stay in its box, else through the exact model.

    Args:
        noise: the error of a vol: "residual", the standard deviation of the fit's residuals, or "half_spread", half of
            ask less bid of each quote.
        n_chains: chains.
        n_draws: kept draws of each.
        n_warmup: draws before, that choose the step.
    """

    noise: str = "residual"
    n_chains: int = 4
    n_draws: int = 500
    n_warmup: int = 250

    def __post_init__(self) -> None:
        if self.noise not in ("residual", "half_spread"):
            raise ConfigError(f"`noise` must be residual or half_spread, got {self.noise!r}")
        for name, least in (("n_chains", 1), ("n_draws", 8), ("n_warmup", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"`{name}` must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class AheadConfig:
    """Parameters of one surface judged on later ones.

    Args:
        horizons: how many surfaces ahead.
        every: surfaces from one calibration to the next.
        warm: start from the parameters of the one before.
    """

    horizons: tuple[int, ...] = (1, 5)
    every: int = 1
    warm: bool = True


@dataclass(frozen=True)
class CalibrationTask:
    """A calibration: the root of a config with `task: calibration`.

    Args:
        surface: where the quotes come from.
        model: what is fitted to them: one of `CALIBRATION_MODELS`, or with the method "neural" any `kind` of
            `pricers.MODELS` that the surrogate stands for.
        method: "exact", "neural", "inverse", or "polished" (one of these two, then exact); None takes "polished" where
            a network is given, else "exact".
        surrogate: folder of a surrogate, for "neural" and "polished".
        inverse: folder of an inverse map, for "inverse", "neural" and "polished".
        inverse_training: train an inverse map where the first surface has its quotes, into the folder `inverse` of the
            run, and take that.
        n_starts: starts that are looked at for each surface; None leaves it to the model.
        seed: of the starts, the posterior and the bootstrap.
        smoothness: weight of the squared changes of the parameters from surface to surface.
        posterior: draw from that of the first surface.
        walk_forward: judge the parameters of each surface on later ones.
        name: names the run folder.
    """

    task: ClassVar[str] = "calibration"
    surface: Annotated[SurfaceSource, OneOf(SURFACE_SOURCES)]
    model: Annotated[Any, _Fitted()]
    method: str | None = None
    surrogate: str | None = None
    inverse: str | None = None
    inverse_training: Annotated[InverseTraining, Section(InverseTraining)] | None = None
    n_starts: int | None = None
    seed: int = 0
    smoothness: float = 0.0
    posterior: Annotated[PosteriorConfig, Section(PosteriorConfig)] | None = None
    walk_forward: Annotated[AheadConfig, Section(AheadConfig)] | None = None
    name: str = "calibration"

    def __post_init__(self) -> None:
        if self.inverse is not None and self.inverse_training is not None:
            raise ConfigError("`inverse` names a map and `inverse_training` trains one: leave out one of the two")
        if isinstance(self.model, SurrogateOnly):
            self._check_surrogate_only()
        by_expiry = hasattr(self.model, "fit_surfaces")
        for name in ("inverse_training", "posterior", "walk_forward"):
            if by_expiry and getattr(self, name) is not None:
                raise ConfigError(
                    f"`{name}` is for models with parameters of a whole surface, such as heston and bates, and "
                    f"{self.model.kind} has none: leave it out, or take another model"
                )

    def _check_surrogate_only(self) -> None:
        kind, known = self.model.kind, ", ".join(sorted(CALIBRATION_MODELS))
        if self.surrogate is None or self.method != "neural":
            raise ConfigError(
                f"`model: {kind}` is calibrated through a surrogate only: name its folder as `surrogate`, with the "
                f"method neural; exactly are calibrated {known}"
            )
        if self.inverse_training is not None:
            raise ConfigError(
                f"`inverse_training` needs exact vols, and {kind} has only those of its surrogate: leave it out, or "
                f"take one of {known}"
            )

    @property
    def _model(self) -> Any:
        """The model as `calibrate` takes it: by name where only the surrogate knows it."""
        return self.model.kind if isinstance(self.model, SurrogateOnly) else self.model

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Read, calibrate, judge and write everything but the report; a calibration that was killed starts anew."""
        begin = time.perf_counter()
        named = self.surface.read()
        surfaces = list(named.values())
        n_quotes = sum(len(surface) for surface in surfaces)
        say(f"{self.surface.describe()}: {len(surfaces)} surface(s), {n_quotes:,} quotes")
        findings = [f"{name}: {line}" for name, surface in named.items() for line in surface.notes]
        for line in findings[:MOST_FINDINGS]:
            say(line)
        if len(findings) > MOST_FINDINGS:
            say(f"... and {len(findings) - MOST_FINDINGS} more findings about the quotes: see the report")
        seconds = {"data": time.perf_counter() - begin}
        start = time.perf_counter()
        networks = self._networks(folder, surfaces, say)
        seconds["networks"] = time.perf_counter() - start
        start = time.perf_counter()
        found = self._calibrated(surfaces, networks)
        seconds["calibration"] = time.perf_counter() - start
        metrics: dict[str, Any] = {"fit": _fit(self, found, named)}
        metrics |= {f"sse_{name}": entry["sse"] for name, entry in zip(named, metrics["fit"]["surfaces"])}
        _replace(folder / "quotes.parquet", _quotes(found, named).write_parquet)
        _replace(folder / "curves.parquet", _curves(found, named, metrics["fit"]["surfaces"]).write_parquet)
        if self.posterior is not None:
            start = time.perf_counter()
            metrics["posterior"] = self._posterior(folder, found, networks)
            seconds["posterior"] = time.perf_counter() - start
        if self.walk_forward is not None:
            start = time.perf_counter()
            metrics["out_of_sample"] = self._ahead(folder, surfaces, networks)
            seconds["walk_forward"] = time.perf_counter() - start
        data_hash, config_hash = _data_hash(surfaces), config.config_hash(as_settings(self))
        made = provenance(
            seeds=[self.seed], data_hash=data_hash, config_hash=config_hash, threads=torch.get_num_threads()
        )
        metrics |= {
            "task": self.task,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.surface.describe(),
            "data_hash": data_hash,
            "config_hash": config_hash,
            "versions": made["versions"],
            "provenance": made,
            "seconds": seconds | {"total": time.perf_counter() - begin},
        }
        text = json.dumps(_plain(metrics), indent=1, allow_nan=False)
        _replace(folder / "metrics.json", lambda new: new.write_text(text, encoding="utf-8"))

    def _networks(self, folder: Path, surfaces: Sequence[Surface], say: Say) -> dict[str, Any]:
        """The networks that the config names, loaded; or the inverse map that it asks for, trained once."""
        found: dict[str, Any] = {}
        if self.surrogate is not None:
            from qfml.surrogate import Surrogate  # loaded where it is asked for

            found["surrogate"] = Surrogate.load(self.surrogate)
        if self.inverse is not None:
            found["inverse"] = InverseMap.load(self.inverse)
        if self.inverse_training is not None:
            place = folder / "inverse"
            if not place.exists():
                layout = _layout(surfaces[0], say)
                made = InverseMap.train(self.model, layout, self.inverse_training)
                error = made.report["vol_error_bps"]["0.5"]
                say(f"inverse map trained: on fresh surfaces off by {error:.1f} bps of vol in the median")
                made.save(place)
            found["inverse"] = InverseMap.load(place)
        return found

    def _calibrated(self, surfaces: Sequence[Surface], networks: Mapping[str, Any]) -> Any:
        settings: dict[str, Any] = {"n_starts": self.n_starts, "seed": self.seed, "smoothness": self.smoothness}
        return calibrate(surfaces, self._model, self.method, **settings, **networks)

    def _posterior(self, folder: Path, found: Any, networks: Mapping[str, Any]) -> dict[str, Any]:
        """Draws for the first surface, into `posterior.parquet`, and their summary; or why there are none."""
        settings = self.posterior
        assert settings is not None
        try:
            drawn = self._drawn(settings, found, networks)
        except (DataError, ConfigError, torch.linalg.LinAlgError) as error:  # pyright: ignore[reportPrivateImportUsage]
            return {"failed": str(error)}
        flat = drawn.draws[0].flatten(0, 1).numpy()
        chain = np.repeat(np.arange(settings.n_chains), settings.n_draws)
        table = pl.DataFrame({"chain": chain} | {name: flat[:, i] for i, name in enumerate(drawn.names)})
        _replace(folder / "posterior.parquet", table.write_parquet)
        return drawn.to_dict()[0] | {
            "through": "surrogate" if self.method == "neural" else "exact model",
            "n_chains": settings.n_chains,
            "n_draws": settings.n_draws,
            "noise_bps": 1e4 * drawn.vol_std.mean().item(),
        }

    def _drawn(self, settings: PosteriorConfig, found: Calibration, networks: Mapping[str, Any]) -> Posterior:
        model = found.model
        if self.method == "neural":
            from qfml.calibration.neural import SurrogateModel  # loaded where it is asked for

            model = SurrogateModel(networks["surrogate"])
        place = list(found.params)
        x = torch.as_tensor(found.x[:1])[:, [place.index(one.name) for one in model.parameters]]
        if not bool(x.isfinite().all()):
            raise DataError(f"the first surface has no parameters: {found.status[0]}")
        first = found.surfaces[0].where(found.surfaces[0].weight > 0.0)
        quotes = as_quotes([first])  # without the padding of the batch
        std = half_spreads(first) if settings.noise == "half_spread" else residual_std(model, quotes, x)
        return posterior(
            model,
            quotes,
            x,
            vol_std=std,
            n_chains=settings.n_chains,
            n_draws=settings.n_draws,
            n_warmup=settings.n_warmup,
            seed=self.seed,
        )

    def _ahead(self, folder: Path, surfaces: Sequence[Surface], networks: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.walk_forward
        assert settings is not None
        found = walk_forward_calibration(
            SurfaceHistory(surfaces),
            self._model,
            horizons=settings.horizons,
            every=settings.every,
            warm=settings.warm,
            method=self.method,
            seed=self.seed,
            **networks,
        )
        found.save(folder / "walk_forward")
        return found.metrics


def _layout(surface: Surface, say: Say) -> Layout:
    """Where the surface has its quotes, or evenly over its expiries where their strikes differ in number."""
    try:
        return Layout.of(as_quotes([surface]))
    except DataError as error:
        expiries = surface.expiries
        say(f"the inverse map reads surfaces at places of its own: {error}")
        return Layout.standard(float(expiries[0]), float(expiries[-1]), n_expiries=min(len(expiries), 8))


def _fit(task: CalibrationTask, found: Any, named: Mapping[str, Surface]) -> dict[str, Any]:
    """The result in plain types: a list entry for each surface; by expiry a list in it."""
    n, params = len(named), _params(found)
    surfaces = []
    for i, (name, surface) in enumerate(named.items()):
        status = found.status[i]
        surfaces.append(
            {
                "name": name,
                "date": surface.date_text or None,
                "n_quotes": len(surface),
                "rmse_bps": _rmse(found.residuals[i]),
                "max_bps": 1e4 * float(np.nanmax(np.abs(found.residuals[i])))
                if np.isfinite(found.residuals[i]).any()
                else None,
                "sse": float(np.asarray(found.sse)[i]),
                "inside_bid_ask": float(np.asarray(found.inside_bid_ask)[i]),
                "converged": _converged(found, i),
                "status": status if isinstance(status, str) else "; ".join(dict.fromkeys(filter(None, status))),
                "warnings": list(found.warnings[i]),
                "notes": list(surface.notes),
            }
        )
    fit: dict[str, Any] = {
        "model": task.model.kind,
        "settings": config.to_dict(task.model),
        "method": found.method,
        "surfaces": surfaces,
        "parameters": _parameters(found),
        "params": {name: [_values(values, i) for i in range(n)] for name, values in params.items()},
        "std_error": {name: [_values(found.std_error[name], i) for i in range(n)] for name in params},
        # JSON has no infinity: null in `std_error` is one where this is false, and else a number that does not exist
        "identified": {name: (~np.isinf(found.std_error[name])).tolist() for name in params},
    }
    per_expiry = any(np.ndim(values) == 2 for values in params.values())
    if per_expiry:
        fit["expiries"] = [_values(found.expiries, i) for i in range(n)]
    elif isinstance(found, Calibration) and np.isfinite(found.correlation[0]).all():
        fit["correlation"] = found.correlation[0].tolist()
    return fit


def _converged(found: Any, place: int) -> bool:
    """Whether all fits of a surface ended at a minimum: of smiles, those that it has."""
    one = np.asarray(found.converged[place])
    if one.ndim == 0:
        return bool(one)
    exists = np.isfinite(found.expiries[place])
    return bool(exists.any() and one[exists].all())


def _parameters(found: Any) -> list[dict[str, Any]]:
    """Names and bounds of what was fitted."""
    bounds = {p.name: p for p in found.model.parameters} if isinstance(found, Calibration) else {}
    return [
        {"name": name, "lower": bounds[name].lower, "upper": bounds[name].upper} if name in bounds else {"name": name}
        for name in _params(found)
    ]


def _params(found: Any) -> dict[str, Any]:
    """Numbers of each surface (S,) or of each of its expiries (S, E) by name; SSVI has both."""
    return found.params | ({"theta": found.theta} if hasattr(found, "theta") else {})


def _values(values: Any, place: int) -> Any:
    one = np.asarray(values)[place]
    return float(one) if np.ndim(one) == 0 else [float(value) for value in one]


def _rmse(residuals: np.ndarray) -> float | None:
    known = residuals[np.isfinite(residuals)]
    return 1e4 * float(np.sqrt(np.mean(known**2))) if len(known) else None


def _quotes(found: Any, named: Mapping[str, Surface]) -> pl.DataFrame:
    """Every quote beside the model."""
    frames = []
    for i, (name, surface) in enumerate(named.items()):
        n = len(surface)
        residual = found.residuals[i, :n]
        absent = np.full(n, np.nan)
        columns = {
            "expiry": surface.expiry,
            "strike": surface.strike,
            "forward": surface.forward,
            "log_moneyness": surface.log_moneyness,
            "vol": surface.vol,
            "bid": absent if surface.bid is None else surface.bid,
            "ask": absent if surface.ask is None else surface.ask,
            "weight": surface.weight,
            "model_vol": surface.vol + residual,
            "residual_bps": 1e4 * residual,
        }
        frames.append(pl.DataFrame({"surface": [name] * n} | columns))
    return pl.concat(frames)


def _curves(found: Any, named: Mapping[str, Surface], fitted: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The fitted smiles between and beside the quotes; where no quote of an expiry has a weight there is none."""
    columns: dict[str, list[Any]] = {"surface": [], "expiry": [], "log_moneyness": [], "model_vol": []}
    every, drawn = list(named.items()), {*shown_surfaces(fitted), *range(max(len(named) - MOST_CURVES, 0), len(named))}
    for i in sorted(drawn):
        name, surface = every[i]
        used = surface.weight > 0.0
        for expiry in np.unique(surface.expiry[used]):
            k = surface.log_moneyness[used & (surface.expiry == expiry)]
            room = CURVE_ROOM * (k.max() - k.min()) or 0.1
            grid = np.linspace(k.min() - room, k.max() + room, CURVE_POINTS)
            columns["surface"] += [name] * len(grid)
            columns["expiry"] += [float(expiry)] * len(grid)
            columns["log_moneyness"] += grid.tolist()
            columns["model_vol"] += found.smile(grid, float(expiry), surface=i).tolist()
    types = {name: pl.String if name == "surface" else pl.Float64 for name in columns}
    return pl.DataFrame(columns, schema=types)


def _data_hash(surfaces: Sequence[Surface]) -> str:
    """16 hex digits of all quotes."""
    digest = hashlib.sha256()
    for surface in surfaces:
        for name in ("strike", "expiry", "vol", "weight", "forward", "discount"):
            digest.update(np.ascontiguousarray(getattr(surface, name)).tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _replace(path: Path, write: Any) -> None:
    """Write beside, then rename: a file is never half there."""
    new = path.with_name(path.name + ".new")
    write(new)
    os.replace(new, path)
