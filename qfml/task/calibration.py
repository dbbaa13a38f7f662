"""The task `calibration`: a model fitted to one surface or many, with errors, a posterior, and a judgement ahead."""

from __future__ import annotations

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
from qfml.calibration.inverse import FOLDER_IN_A_RUN, InverseMap, InverseTraining
from qfml.calibration.layout import Layout
from qfml.calibration.local_vol import LocalVolCalibration
from qfml.calibration.local_vol_table import local_vol_table
from qfml.calibration.method_options import check_options, chosen_method
from qfml.calibration.posterior import Posterior, half_spreads, posterior, residual_std
from qfml.calibration.result import Calibration
from qfml.calibration.sources import CUBE_SOURCES, SURFACE_SOURCES
from qfml.calibration.walk_forward import (
    _checked,  # pyright: ignore[reportPrivateUsage]
    walk_forward_calibration,
)
from qfml.config import OneOf, Section, build, build_kind
from qfml.engine import Callback
from qfml.engine.provenance import provenance
from qfml.errors import ConfigError, DataError
from qfml.files import replace_file
from qfml.task.base import Say, as_settings, write_metrics
from qfml.task.begun import claimed
from qfml.task.calibration_cube import check_cube, fitted_cube
from qfml.task.calibration_inputs import load_networks
from qfml.task.calibration_tables import curve_table, data_hash, fit_entry, quote_table

MOST_FINDINGS = 5  # that are said; the report has all


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
        warm: start from the parameters of the one before; None does so unless a network gives the starts.
    """

    horizons: tuple[int, ...] = (1, 5)
    every: int = 1
    warm: bool | None = None


@dataclass(frozen=True)
class CalibrationTask:
    """A calibration: the root of a config with `task: calibration`.

    Args:
        surface: where the quotes come from: surfaces of `SURFACE_SOURCES`, or a swaption cube of `CUBE_SOURCES`.
        model: what is fitted to them: one of `CALIBRATION_MODELS`, or with the method "neural" any `kind` of
            `pricers.MODELS` that the surrogate stands for.
        method: "exact", "neural", "inverse", or "polished" (one of these two, then exact); None takes "polished" where
            a network is given, else "exact".
        surrogate: folder of a surrogate, for "neural" and "polished".
        inverse: folder of an inverse map, for "inverse", "neural" and "polished".
        inverse_training: train an inverse map where the first surface has its quotes, into the folder `inverse` of the
            run, and take that.
        n_starts: starts that are looked at for each surface; None leaves it to the model. Not with an inverse map.
        n_polished: starts that are followed to the end; likewise.
        max_steps: of the least squares; None is the method's own, 3 for "inverse".
        tolerance: of the least squares, relative; None is the method's own.
        seed: of the starts, the posterior and the bootstrap.
        warm: go through the surfaces one by one, each from the parameters of the one before; else all are searched at
            once. Not with an inverse map or the method "polished".
        smoothness: weight of the squared changes of the parameters from surface to surface; 1e-4 makes a change through
            the whole range of a parameter as dear as one quote that is off by one vol point.
        posterior: draw from that of the first surface.
        walk_forward: judge the parameters of each surface on later ones.
        name: names the run folder.
    """

    task: ClassVar[str] = "calibration"
    surface: Annotated[Any, OneOf(SURFACE_SOURCES | CUBE_SOURCES)]
    model: Annotated[Any, _Fitted()]
    method: str | None = None
    surrogate: str | None = None
    inverse: str | None = None
    inverse_training: Annotated[InverseTraining, Section(InverseTraining)] | None = None
    n_starts: int | None = None
    n_polished: int | None = None
    max_steps: int | None = None
    tolerance: float | None = None
    seed: int = 0
    warm: bool = False
    smoothness: float = 0.0
    posterior: Annotated[PosteriorConfig, Section(PosteriorConfig)] | None = None
    walk_forward: Annotated[AheadConfig, Section(AheadConfig)] | None = None
    name: str = "calibration"

    def __post_init__(self) -> None:
        if self.inverse is not None and self.inverse_training is not None:
            raise ConfigError("`inverse` names a map and `inverse_training` trains one: leave out one of the two")
        if self._of_cube:
            check_cube(self)
        if isinstance(self.model, SurrogateOnly):
            self._check_surrogate_only()
        by_expiry = hasattr(self.model, "fit_surfaces")
        for name in ("inverse_training", "posterior", "walk_forward"):
            if by_expiry and getattr(self, name) is not None:
                raise ConfigError(
                    f"`{name}` is for models with parameters of a whole surface, such as heston and bates, and "
                    f"{self.model.kind} has none: leave it out, or take another model"
                )
        self._check_starts()

    def _check_starts(self) -> None:
        """Refuse a method without what it needs, and what would do nothing under it."""
        mapped = self.inverse is not None or self.inverse_training is not None
        method = chosen_method(self.method, surrogate=self.surrogate is not None, inverse=mapped)
        known = None if isinstance(self.model, SurrogateOnly) else self.model
        check_options(known, method, self._options, inverse=mapped, warm=self.warm, smoothness=self.smoothness)
        ahead = self.walk_forward
        if ahead is None:
            return
        if ahead.warm and method != "exact":
            raise ConfigError(
                f"`walk_forward.warm` is for the method exact, and under {method} a network gives the starts of every "
                "day: leave it out"
            )
        given = [name for name in ("n_starts", "n_polished") if getattr(self, name) is not None]
        if given and method == "exact" and ahead.warm is not False:
            raise ConfigError(
                f"`{given[0]}` is of a search, and each day of `walk_forward` starts from the one before: leave it out "
                "or set `walk_forward.warm: false`"
            )
        if self.smoothness:
            raise ConfigError(
                "`smoothness` solves all days together, and `walk_forward` judges a day by what came after it: leave "
                "out one of the two"
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
    def _options(self) -> dict[str, Any]:
        """What `calibrate` and a walk-forward calibration are asked for besides the method."""
        return {name: getattr(self, name) for name in ("n_starts", "n_polished", "max_steps", "tolerance", "seed")}

    @property
    def _of_cube(self) -> bool:
        return self.surface.kind in CUBE_SOURCES

    @property
    def _model(self) -> Any:
        """The model as `calibrate` takes it: by name where only the surrogate knows it."""
        return self.model.kind if isinstance(self.model, SurrogateOnly) else self.model

    def execute(self, folder: Path, *, resume: bool, callbacks: Sequence[Callback], say: Say) -> None:
        """Read, calibrate, judge and write everything but the report; a calibration that was killed starts anew."""
        begin = time.perf_counter()
        found = fitted_cube(self, folder, say) if self._of_cube else self._fitted(folder, say)
        config_hash = config.config_hash(as_settings(self))
        total = "total_since_resume" if "networks_since_resume" in found["seconds"] else "total"
        made = provenance(
            seeds=[self.seed], data_hash=found["data_hash"], config_hash=config_hash, threads=torch.get_num_threads()
        )
        metrics = found | {
            "task": self.task,
            "name": self.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.surface.describe(),
            "config_hash": config_hash,
            "versions": made["versions"],
            "provenance": made,
            "seconds": found["seconds"] | {total: time.perf_counter() - begin},
        }
        write_metrics(folder, metrics)

    def _fitted(self, folder: Path, say: Say) -> dict[str, Any]:
        """Calibrate surfaces and write their tables; what `metrics.json` says of them."""
        begin = time.perf_counter()
        named = self.surface.read()
        surfaces = list(named.values())
        n_quotes = sum(len(surface) for surface in surfaces)
        say(f"{self.surface.describe()}: {len(surfaces)} surface(s), {n_quotes:,} quotes")
        for line in named.remarks:  # dates that are not there at all: none of them is passed over
            say(line)
        findings = [f"{name}: {line}" for name, surface in named.items() for line in surface.notes]
        for line in findings[:MOST_FINDINGS]:
            say(line)
        if len(findings) > MOST_FINDINGS:
            say(f"... and {len(findings) - MOST_FINDINGS} more findings about the quotes: see the report")
        self._check_history(surfaces)
        seconds = {"data": time.perf_counter() - begin}
        start = time.perf_counter()
        networks, used = load_networks({"surrogate": self.surrogate, "inverse": self.inverse})
        hashed = data_hash(surfaces)
        hashes = {name: one["hash"] for name, one in used.items()} | {"surface": hashed}
        claimed(folder, hashes | {"config.yaml": config.config_hash(as_settings(self))})
        reused = self.inverse_training is not None and (folder / FOLDER_IN_A_RUN).exists()
        if self.inverse_training is not None:
            networks["inverse"], used["inverse"] = self._own_map(folder, surfaces, say)
        seconds["networks_since_resume" if reused else "networks"] = time.perf_counter() - start
        start = time.perf_counter()
        found = self._calibrated(surfaces, networks)
        seconds["calibration"] = time.perf_counter() - start
        metrics: dict[str, Any] = {"fit": fit_entry(self.model, found, named), "notes": list(named.remarks)}
        _refuse_failure(metrics["fit"])
        metrics |= {f"sse_{name}": entry["sse"] for name, entry in zip(named, metrics["fit"]["surfaces"])}
        replace_file(folder / "quotes.parquet", quote_table(found, named).write_parquet)
        tables = {"curves": curve_table(found, named, metrics["fit"]["surfaces"])}
        if isinstance(found, LocalVolCalibration):
            tables["local_vol"] = local_vol_table(found, list(named))
        for name, table in tables.items():
            if len(table):  # the surfaces that are drawn may all have failed
                replace_file(folder / f"{name}.parquet", table.write_parquet)
        if self.posterior is not None:
            start = time.perf_counter()
            metrics["posterior"] = self._posterior(folder, found, networks)
            seconds["posterior"] = time.perf_counter() - start
        if self.walk_forward is not None:
            start = time.perf_counter()
            metrics["out_of_sample"] = self._ahead(folder, surfaces, networks)
            seconds["walk_forward"] = time.perf_counter() - start
        return metrics | {"networks": used, "data_hash": hashed, "seconds": seconds}

    def _check_history(self, surfaces: Sequence[Surface]) -> None:
        """Refuse surfaces that are no history where one is asked for, before anything is calibrated."""
        if self.walk_forward is not None:
            _checked(SurfaceHistory(surfaces), self.walk_forward.horizons, self.walk_forward.every)
        for name in ("warm", "smoothness"):
            if getattr(self, name) and len(SurfaceHistory(surfaces)) < 2:
                raise DataError(f"`{name}` goes from day to day, and there is one surface: leave it out, or give more")

    def _own_map(self, folder: Path, surfaces: Sequence[Surface], say: Say) -> tuple[InverseMap, dict[str, str]]:
        """The inverse map that the config asks for, trained once, and what is noted of it."""
        assert self.inverse_training is not None
        place = folder / FOLDER_IN_A_RUN
        if not place.exists():
            made = InverseMap.train(self.model, _layout(surfaces[0], say), self.inverse_training)
            error = made.report["vol_error_bps"]["0.5"]
            say(f"inverse map trained: on fresh surfaces off by {error:.1f} bps of vol in the median")
            made.save(place)
        found = InverseMap.load(place)
        return found, {"path": FOLDER_IN_A_RUN, "hash": found.hash}

    def _calibrated(self, surfaces: Sequence[Surface], networks: Mapping[str, Any]) -> Any:
        settings: dict[str, Any] = {"warm": self.warm, "smoothness": self.smoothness} | self._options
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
        replace_file(folder / "posterior.parquet", table.write_parquet)
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
            warm=settings.warm is not False,
            method=self.method,
            **self._options,
            **networks,
        )
        found.save(folder / "walk_forward")
        return found.metrics


def _refuse_failure(fit: Mapping[str, Any]) -> None:
    """DataError where no surface was fitted: there is nothing to show."""
    surfaces = fit["surfaces"]
    if all(surface["rmse_bps"] is None for surface in surfaces):
        said = "; ".join(f"{one['name']}: {one['status']}" for one in surfaces[:MOST_FINDINGS])
        more = f"; and {len(surfaces) - MOST_FINDINGS} more" if len(surfaces) > MOST_FINDINGS else ""
        raise DataError(f"{fit['model']} fits none of the {len(surfaces)} surface(s): {said}{more}")


def _layout(surface: Surface, say: Say) -> Layout:
    """Where the surface has its quotes, or evenly over its expiries where their strikes differ in number."""
    try:
        return Layout.of(as_quotes([surface]))
    except DataError as error:
        expiries = surface.expiries
        say(f"the inverse map reads surfaces at places of its own: {error}")
        return Layout.standard(float(expiries[0]), float(expiries[-1]), n_expiries=min(len(expiries), 8))
