"""A network from a surface to the parameters of a model: where a calibration starts, or all of it where that will do.

The network is trained on surfaces that the model itself makes, at parameters spread over a box, and judged by the vols
that its parameters give: directions in which the vols hardly move cost it next to nothing.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from qfml import config
from qfml.calibration.layout import Layout
from qfml.calibration.model import CALIBRATION_MODELS, CalibrationModel, Quotes, model_of, ranges_of, whole_surface
from qfml.config import OneOf
from qfml.data.dataset import TimeDataset
from qfml.data.transforms import Standardise
from qfml.engine import Cosine, Member, Muon, Trainer
from qfml.engine.checkpoint import read_folder, write_folder
from qfml.engine.stack import Layout as ParameterLayout
from qfml.engine.streams import stream
from qfml.errors import CheckpointError, ConfigError, DataError
from qfml.finished import task_of
from qfml.losses.base import Additive, Rows
from qfml.networks import MLP, NETWORKS, Network

__all__ = ["Box", "InverseMap", "InverseTraining"]

FOLDER_IN_A_RUN = "inverse"  # of the map that a run has trained
VERSION = 2  # of the files; a map of another version is refused
SURFACES_AT_A_TIME = 1024
ROWS_AT_A_TIME = 4096  # of one forward pass
RIDGE = 1e-3  # what the network's own coordinates count beside the vols, relative to the mean
EDGE = 0.01  # share of a parameter's range within which an answer counts as at the edge
_TENSORS = ("parameters", "centre", "scale", "lowest", "highest")
_SMALLEST = 1e-6  # share of the box that stays between a prediction and its edge


@dataclass(frozen=True)
class Box:
    """Ranges of parameters, each with free coordinates: normal quantiles of the place in the range.

    Args:
        names: of the P parameters.
        low: lower ends.
        high: upper ends.
        log: whether places are spread evenly in the logarithm.

    >>> box = Box(("kappa",), (1.0,), (100.0,), (True,))
    >>> box.inside(torch.zeros(1, 1, dtype=torch.float64))
    tensor([[10.]], dtype=torch.float64)
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log: tuple[bool, ...]

    def __post_init__(self) -> None:
        for name, low, high, log in zip(self.names, self.low, self.high, self.log, strict=True):
            if not -math.inf < low < high < math.inf or (log and low <= 0):
                rule = "0 < low < high" if log else "low < high"
                raise ConfigError(f"the range of `{name}` must be finite with {rule}, got {low} to {high}")

    @classmethod
    def of(cls, model: CalibrationModel, ranges: Mapping[str, Any] | None = None) -> Box:
        """The model's ranges of starts, or other ones by name: `{"kappa": (0.1, 10.0)}`."""
        parameters = model.parameters
        named = {one.name: (one.start_lower, one.start_upper) for one in parameters}
        pairs = [*(named | ranges_of(model, {} if ranges is None else ranges)).values()]
        for one, (low, high) in zip(parameters, pairs):
            if low < one.lower or high > one.upper:
                raise ConfigError(
                    f"the range of `{one.name}` must lie within its bounds, {one.lower:g} to {one.upper:g}, got "
                    f"{low:g} to {high:g}"
                )
        low, high = zip(*pairs)
        return cls(tuple(p.name for p in parameters), low, high, tuple(p.scale == "log" for p in parameters))

    def draw(self, n: int, seed: int) -> Float64[Tensor, "n P"]:
        """Scrambled Sobol points, in free coordinates."""
        scramble = int(torch.randint(2**31 - 1, (1,), generator=stream(seed, "inverse map", "scramble")))
        points = torch.quasirandom.SobolEngine(len(self.names), scramble=True, seed=scramble)
        return torch.special.ndtri(points.draw(n, dtype=torch.float64).clamp(_SMALLEST, 1 - _SMALLEST))

    def inside(self, z: Float64[Tensor, "n P"]) -> Float64[Tensor, "n P"]:
        """The parameters of free coordinates, strictly inside."""
        low, high, log = self._ends()
        place = low + (high - low) * torch.special.ndtr(z).clamp(_SMALLEST, 1 - _SMALLEST)
        return torch.where(log, place.exp(), place)

    def slope(self, z: Float64[Tensor, "n P"]) -> Float64[Tensor, "n P"]:
        """Derivatives of `inside`."""
        low, high, log = self._ends()
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
        return (high - low) * density * torch.where(log, self.inside(z), 1.0)

    def _ends(self) -> tuple[Tensor, Tensor, Tensor]:
        log = torch.tensor(self.log)
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (self.low, self.high))
        return torch.where(log, low.abs().log(), low), torch.where(log, high.abs().log(), high), log


@dataclass(frozen=True)
class InverseTraining:
    """How an inverse map is trained.

    Args:
        n_surfaces: surfaces that the model makes.
        network: its architecture.
        n_seeds: networks, whose mean is the answer.
        max_epochs: passes over the surfaces.
        batch_size: surfaces of a step.
        lr: learning rate at the start; it falls to 0 by half a cosine.
        vol_noise: standard deviation of noise added to the vols, annual decimal; 0 for exact surfaces.
        n_judged: fresh surfaces on which the map is judged.
        seed: of all that is drawn.
    """

    n_surfaces: int = 100_000
    network: Annotated[Network, OneOf(NETWORKS)] = MLP(hidden=(128, 128, 128), activation="silu")  # noqa: RUF009
    n_seeds: int = 2
    max_epochs: int = 20
    batch_size: int = 256
    lr: float = 6e-3
    vol_noise: float = 0.0
    n_judged: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_surfaces", "n_seeds", "max_epochs", "batch_size", "n_judged"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` must be a whole number, at least 1, got {value!r}")
        if self.n_surfaces < 20:
            raise ConfigError(f"`n_surfaces` must be at least 20, of which a tenth validates, got {self.n_surfaces}")
        if not isinstance(self.network, Network):
            raise ConfigError(f"`network` must be a specification such as MLP(hidden=(128, 128)), got {self.network!r}")
        if not 0 <= self.vol_noise < math.inf:
            raise ConfigError(f"`vol_noise` must be 0 or more, annual decimal, got {self.vol_noise}")


@dataclass(frozen=True, eq=False)
class InverseMap:
    """A trained network from surfaces to parameters.

    Attributes:
        model: what the parameters are of.
        layout: where surfaces are read.
        box: the parameters lie strictly inside.
        network: architecture of the members.
        parameters: one flat row a member, float32.
        centre: means of the logarithms of the vols at the places, float32.
        scale: their standard deviations.
        lowest: the least of those logarithms that the training saw, float32.
        highest: the greatest.
        report: how it was trained, and how well it does on fresh surfaces: `vol_error_bps`, quantiles over surfaces of
            the root mean square difference between the model's vols at the predicted parameters and the surface's.

    Example:
        >>> from qfml.calibration import HestonCalibration
        >>> layout = Layout.standard(0.25, 1.0, n_expiries=2)
        >>> small = InverseTraining(n_surfaces=100, max_epochs=1, n_judged=10)
        >>> inverse = InverseMap.train(HestonCalibration(), layout, small)
        >>> inverse.box.names
        ('v0', 'kappa', 'theta', 'sigma', 'rho')
    """

    model: Any
    layout: Layout
    box: Box
    network: Network
    parameters: Tensor
    centre: Tensor
    scale: Tensor
    lowest: Tensor
    highest: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def train(
        cls,
        model: Any,
        layout: Layout,
        training: InverseTraining = InverseTraining(),
        box: Mapping[str, Any] | None = None,
    ) -> InverseMap:
        """Make surfaces, train on nine tenths of them, choose the best epoch by the others, judge on fresh ones.

        Args:
            model: a model of `CALIBRATION_MODELS`, or its name.
            layout: where surfaces are read.
            training: the settings.
            box: ranges of parameters by name, in place of the model's ranges of starts.

        Raises:
            ConfigError: no model, ranges that are not the model's, or a model without parameters of a whole surface.
            DataError: the model gives no vols at the layout.
        """
        model = model_of(model)
        whole_surface(model, "an inverse map")
        ranges = Box.of(model, box)
        made = _surfaces(model, layout, ranges, training)
        fits = _fits(made, training)
        affine, seen = fits[0].transforms, _log_vols(made.vols)
        inverse = cls(
            model=model,
            layout=layout,
            box=ranges,
            network=training.network,
            parameters=torch.stack([fit.parameters for fit in fits]).float(),
            centre=affine.centre,
            scale=affine.scale,
            lowest=seen.amin(0),
            highest=seen.amax(0),
        )
        facts = {
            "training": config.to_dict(training),
            "n_surfaces": len(made.z),
            "n_dropped": training.n_surfaces - len(made.z),
            "val_loss": [fit.best_val_loss for fit in fits],
        }
        inverse.report.update(facts | inverse._judged(training))
        return inverse

    def start(self, quotes: Quotes) -> Float64[Tensor, "S P"]:
        """Parameters (S, P) of surfaces, strictly inside the box.

        Raises:
            DataError: a surface without quotes.
        """
        return self.answer(quotes)[0]

    def answer(self, quotes: Quotes) -> tuple[Float64[Tensor, "S P"], Int64[Tensor, " S"]]:
        """Parameters (S, P), and at how many places (S,) a surface has a vol that the training never came to.

        Raises:
            DataError: a surface without quotes.
        """
        vols = self.layout.vols(quotes)
        return self._parameters(vols), self._beyond(vols).sum(1)

    @property
    def hash(self) -> str:
        """16 hex digits that change with model, layout, box, network or parameters."""
        named = {name: config.to_dict(getattr(self, name)) for name in ("model", "layout", "box", "network")}
        digest = hashlib.sha256(config.config_hash(named).encode())
        for name in _TENSORS:
            digest.update(getattr(self, name).cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _beyond(self, vols: Float64[Tensor, "S E K"]) -> Bool[Tensor, "S places"]:
        """Which vols lie outside of the range that the training saw at their place."""
        x = _log_vols(vols)
        return ~((x >= self.lowest) & (x <= self.highest))

    def _parameters(self, vols: Float64[Tensor, "S E K"]) -> Float64[Tensor, "S P"]:
        x = (_log_vols(vols) - self.centre) / self.scale
        views = self._layout().views(self.parameters)
        members = len(self.parameters)
        with torch.no_grad():
            outputs = [
                self.network.forward(views, part.expand(members, -1, -1)).mean(0) for part in x.split(ROWS_AT_A_TIME)
            ]
        z = torch.cat(outputs).double().view(len(vols), len(self.box.names))
        return self.box.inside(z)

    def _layout(self) -> ParameterLayout:
        n_places, n_outputs = self.layout.n_places, len(self.box.names)
        return ParameterLayout.of(self.network.init(n_places, None, torch.Generator(), n_outputs))

    def _judged(self, training: InverseTraining) -> dict[str, Any]:
        """Errors on fresh surfaces, in vols and in parameters as shares of the box."""
        made = _surfaces(self.model, self.layout, self.box, training, n=training.n_judged, seed=training.seed + 1)
        found = self._parameters(made.vols)
        truth = self.box.inside(made.z)
        error = (self.model.vols(found, made.quotes) - made.quotes.vol).square()
        used = made.quotes.used
        rms = 1e4 * (torch.where(used, error, 0.0).sum(1) / used.sum(1)).sqrt()
        rms = rms.nan_to_num(nan=math.inf)  # a vol that does not exist is no good one
        low, high, log = self.box._ends()
        share = [(torch.where(log, x.abs().log(), x) - low) / (high - low) for x in (found, truth)]
        mean = (share[0] - share[1]).abs().mean(0)
        levels = (0.5, 0.9, 0.99)
        quantiles = torch.quantile(rms, torch.tensor(levels, dtype=torch.float64)).tolist()
        return {
            "vol_error_bps": {f"{level:g}": value for level, value in zip(levels, quantiles)},
            "mean_error_share_of_box": dict(zip(self.box.names, mean.tolist())),
            "n_judged": len(rms),
        }

    def save(self, folder: str | Path) -> Path:
        """Write the map into a new folder: safetensors, JSON and a manifest with their hashes.

        Raises:
            ConfigError: the folder exists, or the model is not one of `CALIBRATION_MODELS`.
        """
        folder = Path(folder)
        if folder.exists():
            raise ConfigError(f"an inverse map is saved into a new folder, and {folder} exists: name another one")
        if CALIBRATION_MODELS.get(self.model.kind) is not type(self.model):
            raise ConfigError(
                f"only maps of models in CALIBRATION_MODELS are saved, and {type(self.model).__name__} is none: "
                "register it under its `kind`"
            )
        state = {
            "what": "inverse_map",
            "version": VERSION,
            "model": config.to_dict(self.model),
            "layout": config.to_dict(self.layout),
            "box": config.to_dict(self.box),
            "network": config.to_dict(self.network),
            "report": self.report,
        }
        tensors = {name: getattr(self, name) for name in _TENSORS}
        unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")  # the folder is never half there
        try:
            write_folder(unfinished, tensors, state)
            os.replace(unfinished, folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> InverseMap:
        """The map that `save` wrote.

        Args:
            folder: of the map, or of a run that has trained one.

        Raises:
            CheckpointError: a file was changed since, is missing, or is of another version.
        """
        folder = Path(folder)
        if (folder / "config.yaml").is_file():  # a run, of which the map is a part
            folder = folder / FOLDER_IN_A_RUN
            if not folder.is_dir():
                run, task = folder.parent, task_of(folder.parent)
                if task != "calibration":
                    raise CheckpointError(f"{run} is a run of the task {task}, which trains no inverse map")
                raise CheckpointError(
                    f"{run} holds no inverse map: its config has no `inverse_training`, or it is not finished "
                    f"(`qfml resume {run}`)"
                )
        tensors, state = read_folder(folder)
        if state.get("what") != "inverse_map":
            raise CheckpointError(f"{folder.name} holds no inverse map")
        if state.get("version") != VERSION:
            raise CheckpointError(
                f"{folder.name} has version {state.get('version')} of inverse maps, this library reads {VERSION}: "
                "train it anew"
            )
        try:
            found = cls(
                model=config.build_kind(CALIBRATION_MODELS, state["model"]),
                layout=config.build(Layout, state["layout"]),
                box=config.build(Box, state["box"]),
                network=config.build_kind(NETWORKS, state["network"]),
                **{name: tensors[name] for name in _TENSORS},
                report=state["report"],
            )
            expected = (found._layout().width, found.layout.n_places)
        except (KeyError, ConfigError) as error:
            raise CheckpointError(f"{folder.name} is no inverse map of this library: {error}") from None
        widths = {tuple(getattr(found, name).shape) for name in _TENSORS[1:]}
        shapes = (found.parameters.shape[-1], len(found.centre))
        names = tuple(one.name for one in found.model.parameters)
        if shapes != expected or len(widths) != 1 or found.box.names != names:
            raise CheckpointError(f"{folder.name} is damaged: its tensors do not fit its network, layout and model")
        return found


def _log_vols(vols: Float64[Tensor, "S E K"]) -> Float32[Tensor, "S places"]:
    """What the network sees of a surface, before it is standardised."""
    return vols.flatten(1).log().float()


@dataclass(frozen=True, eq=False)
class _Made:
    """Surfaces that a model made."""

    z: Tensor  # free coordinates (S, P)
    quotes: Quotes
    vols: Tensor  # at the places (S, E, K)
    metric: Tensor  # of relative errors of the vols in the free coordinates, (S, P, P)


def _surfaces(
    model: CalibrationModel,
    layout: Layout,
    box: Box,
    training: InverseTraining,
    n: int | None = None,
    seed: int | None = None,
) -> _Made:
    """Surfaces of the model at the places of a layout; those without a single vol are left out."""
    seed = training.seed if seed is None else seed
    z = box.draw(training.n_surfaces if n is None else n, seed)
    parts = [_some_surfaces(model, layout, box, part) for part in z.split(SURFACES_AT_A_TIME)]
    z, quotes, metric = (
        torch.cat([part[0] for part in parts]),
        Quotes(**{name: torch.cat([getattr(part[1], name) for part in parts]) for name in vars(parts[0][1])}),
        torch.cat([part[2] for part in parts]),
    )
    if len(z) == 0:
        raise DataError(f"{model.kind} gives no vol at any place of the layout: take less extreme places, or ranges")
    if training.vol_noise:
        noise = torch.randn(quotes.vol.shape, generator=stream(seed, "inverse map", "noise"), dtype=torch.float64)
        # a tenth of the vol is left: noise may not turn a vol negative
        noisy = torch.maximum(quotes.vol + training.vol_noise * noise, 0.1 * quotes.vol)
        quotes = Quotes(**(vars(quotes) | {"vol": noisy}))
    return _Made(z, quotes, layout.vols(quotes), metric)


def _some_surfaces(model: CalibrationModel, layout: Layout, box: Box, z: Tensor) -> tuple[Tensor, Quotes, Tensor]:
    x = box.inside(z)
    expiry = torch.tensor(layout.expiry, dtype=torch.float64).expand(len(x), -1)
    # a short smile may have no vol that is known at the forward: 0.2 there only chooses where it is looked at
    at_the_money = model.vols(x, Quotes.bare(torch.zeros_like(expiry), expiry)).nan_to_num(nan=0.2)
    places = layout.log_moneyness(at_the_money)
    quotes = Quotes.bare(places.flatten(1), expiry[..., None].expand_as(places).flatten(1))
    vols, jacobian = model.vols_and_jacobian(x, quotes)
    known = vols.isfinite() & (vols > 0) & jacobian.isfinite().all(-1)
    kept = known.any(1)
    vols, relative = torch.where(known, vols, 1.0), torch.where(known[..., None], jacobian, 0.0)
    level = (vols * known).sum(1) / known.sum(1).clamp(min=1)
    relative = relative * box.slope(z)[:, None] / level[:, None, None]
    metric = relative.mT @ relative / known.sum(1).clamp(min=1)[:, None, None]
    found = Quotes(**(vars(quotes) | {"vol": vols, "weight": known.double()}))
    return z[kept], found.at(kept), metric[kept]


def _fits(made: _Made, training: InverseTraining) -> list[Any]:
    """The trained members; samples without a time are numbered."""
    n = len(made.z)
    rows = np.arange(n)
    ds = TimeDataset(made.vols.flatten(1).log(), torch.arange(n), time=rows, label_end=rows)
    held_out = rows % 10 == 9
    train, val = rows[~held_out], rows[held_out]
    scale = Standardise().fit(ds.features[torch.from_numpy(train)])
    trainer = Trainer(
        max_epochs=training.max_epochs,
        batch_size=min(training.batch_size, len(train)),
        optimizer=Muon(lr=training.lr, weight_decay=0.0),
        schedule=Cosine(),
        seed=training.seed,
    )
    members = [Member(training.network, train, val, seed=seed, transforms=scale) for seed in range(training.n_seeds)]
    return trainer.fit_many(members, _VolError.of(made), ds)


@dataclass(frozen=True, eq=False)
class _VolError(Additive):
    r"""Mean square error of the vols over their mean, to first order: $e^\top (G + \lambda) e$ of free coordinates.

    The label of a row is its number in the tables of coordinates and of G, the Gauss-Newton metric there.
    """

    kind: ClassVar[str] = "vol_error"
    z: Tensor
    metric: Tensor

    @classmethod
    def of(cls, made: _Made) -> _VolError:
        n_parameters = made.z.shape[1]
        size = made.metric.diagonal(dim1=1, dim2=2).mean()
        metric = made.metric / size + RIDGE * torch.eye(n_parameters, dtype=torch.float64)
        return cls(made.z.float(), metric.float())

    @property
    def n_outputs(self) -> int:
        return self.z.shape[1]

    def _error(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        row = y.long()
        error = (output if self.n_outputs > 1 else output[..., None]) - self.z[row]
        return error, (self.metric[row] * error[..., None, :]).sum(-1)

    def rows(self, output: Tensor, y: Tensor) -> Rows:
        error, weighed = self._error(output, y)
        return (error * weighed).sum(-1)

    def slopes(self, output: Tensor, y: Tensor) -> Tensor:
        return (2 * self._error(output, y)[1]).view(output.shape)

    def prediction(self, output: Tensor) -> Tensor:
        return output

    def check_labels(self, y: Tensor) -> None:
        """Numbers of rows, which are ours."""
