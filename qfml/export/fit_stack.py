"""Fits of one architecture as the function that one graph holds: transforms, network, and what the loss makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from qfml import config
from qfml.engine import Fit
from qfml.engine.stack import Layout
from qfml.errors import DataError, UserError
from qfml.export.trace import Template, trace
from qfml.export.transforms import Step, applied, raw_points, steps_of
from qfml.networks import NETWORKS

__all__ = ["FitStack", "Seen", "library_version"]

INPUT, OUTPUT = "features", "prediction"
AS_GIVEN = "as given"  # the unit of a feature that nobody has named
# of what a loss predicts, where that is not the label's own
_UNITS = {
    "probability": "probability",
    "class_probabilities": "probability",
    "position": "position, fraction of capital",
}


@dataclass(frozen=True)
class Seen:
    """What a network is given: named raw features, in windows or not, with the units of some and of its label."""

    names: tuple[str, ...]
    window: int | None
    units: dict[str, str]
    label: str = "label"

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names) or not self.names:
            raise DataError(f"`feature_names` must be different names, one a feature, got {list(self.names)}")
        if unknown := sorted(set(self.units) - set(self.names)):
            raise DataError(f"`units` names {unknown[0]!r}, which is no feature; these are: {list(self.names)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, (F,) or (L, F)."""
        return (len(self.names),) if self.window is None else (self.window, len(self.names))


@dataclass(frozen=True, eq=False)
class FitStack:
    """M fits of one architecture, with the distinct transforms among them."""

    fits: tuple[Fit, ...]
    steps: tuple[tuple[Step, ...], ...]  # of each distinct transform
    place: tuple[int, ...]  # of each member's transform among them
    seen: Seen

    @classmethod
    def of(cls, fits: tuple[Fit, ...], seen: Seen) -> FitStack:
        """The stack of `fits` that see the same features; UserError if they cannot be exported."""
        first = fits[0]
        if type(first.network) not in NETWORKS.values():
            raise UserError(
                f"a network of kind {first.network.kind!r} cannot be exported: its code is yours; for a Module take "
                "torch.onnx.export on `fit.network.module(fit.named_parameters())`"
            )
        if any((each.network, each.loss, each.layout) != (first.network, first.loss, first.layout) for each in fits):
            raise UserError("the members of an ensemble must have one network and one loss: export each on its own")
        for fit in fits:
            _check_shape(fit, seen)
        distinct = list({id(fit.transforms): fit.transforms for fit in fits}.values())
        places = {id(each): i for i, each in enumerate(distinct)}
        steps = tuple(steps_of(each) for each in distinct)
        return cls(fits, steps, tuple(places[id(fit.transforms)] for fit in fits), seen)

    @property
    def what(self) -> str:
        """What the graph computes, in words."""
        first = self.fits[0]
        averaged = f" averaged over {len(self.fits)} members" if len(self.fits) > 1 else ""
        return f"{first.loss.predicts} of {first.network.kind}{averaged}"

    @property
    def key(self) -> Any:
        """Stacks of the same key are the same graph."""
        shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in self.tensors.items())
        kinds = tuple(tuple(step.kind for step in steps) for steps in self.steps)
        return self.fits[0].network, self.fits[0].loss, shapes, kinds, self.place, self.seen.shape

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that differs from member to member, by its name in the graph."""
        flat = torch.stack([fit.parameters.cpu() for fit in self.fits])
        found = {f"network.{name}": value for name, value in self.fits[0].layout.views(flat).items()}
        for i, steps in enumerate(self.steps):
            for j, step in enumerate(steps):
                found |= {f"transform{i}.{j}.{name}": value.cpu() for name, value in step.tensors.items()}
        return found

    def template(self) -> Template:
        """The traced graph."""
        n_outputs = self.fits[0].loss.n_outputs
        # the constants that a loss keeps are made here: made while the exporter runs, they would be its own tensors
        self.fits[0].loss.prediction(torch.zeros(1, 2) if n_outputs == 1 else torch.zeros(1, 2, n_outputs))
        example = torch.zeros(3, *self.seen.shape)
        return trace(self.forward, example, self.tensors, input_name=INPUT, output_names=[OUTPUT])

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Predictions (N,) or (N, K) for raw features, all in plain operations."""
        network, loss = self.fits[0].network, self.fits[0].loss
        views = []
        for i, steps in enumerate(self.steps):
            own = [{name: tensors[f"transform{i}.{j}.{name}"] for name in step.tensors} for j, step in enumerate(steps)]
            views.append(applied(x, [step.kind for step in steps], own))
        stacked = torch.stack([views[place] for place in self.place])
        parameters = {name: tensors[f"network.{name}"] for name, _ in self.fits[0].layout.shapes}
        prediction = loss.prediction(network.forward(parameters, stacked)).mean(0)
        known = torch.isfinite(x).flatten(1).all(1)  # a maximum of ONNX may turn a NaN into a number
        return torch.where(known if prediction.ndim == 1 else known[:, None], prediction, torch.nan)

    def reference(self, x: Tensor) -> dict[str, Tensor]:
        """The same by the fits themselves."""
        found = []
        for fit in self.fits:
            seen = x if fit.transforms is None else fit.transforms.apply(x)
            output = fit.network.forward(fit.layout.views(fit.parameters[None].cpu()), seen[None])
            found.append(fit.loss.prediction(output)[0])
        return {OUTPUT: torch.stack(found).mean(0)}

    def points(self, n: int) -> Tensor:
        """Raw features to compare at, as wide as those of the training rows."""
        return raw_points(self.steps[0], len(self.seen.names), (n, *self.seen.shape[:-1]), torch.Generator())

    def metadata(self) -> dict[str, Any]:
        """What the file says of itself, in JSON types."""
        first = self.fits[0]
        return {
            "kind": "network",
            "qfml": library_version(),
            "inputs": [{"name": name, "unit": self.seen.units.get(name, AS_GIVEN)} for name in self.seen.names],
            "window": self.seen.window,
            "outputs": {OUTPUT: first.loss.predicts},
            "output_units": {OUTPUT: _UNITS.get(first.loss.predicts, self.seen.label)},
            "network": config.to_dict(first.network),
            "loss": config.to_dict(first.loss),
        }


def library_version() -> str | None:
    """The version of qfml that is installed; None where it is run from a folder of sources."""
    try:
        return metadata.version("qfml")
    except metadata.PackageNotFoundError:
        return None


def _check_shape(fit: Fit, seen: Seen) -> None:
    """Refuse names or a window that the network was not trained on."""
    n_features = len(seen.names)
    if fit.transforms is not None:
        if fit.transforms.n_features_in != n_features:
            raise DataError(
                f"`feature_names` holds {n_features} names, but the transforms were fitted on "
                f"{fit.transforms.n_features_in} features: name each of these"
            )
        n_features = fit.transforms.n_features
    expected = fit.network.init(n_features, seen.window, torch.Generator(), fit.loss.n_outputs)
    if Layout.of(expected) != fit.layout:
        raise DataError(
            f"the network was trained on other features than {n_features} in a window of {seen.window}: its parameters "
            f"are {dict(fit.layout.shapes)}; give the `feature_names` and the `window` of the data set"
        )
