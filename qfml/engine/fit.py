"""The result of training one member, and a folder of such results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qfml import config
from qfml.data.dataset import TimeDataset, gather_windows
from qfml.data.fitted_transforms import FittedTransform, load_transform
from qfml.engine.checkpoint import read_folder, write_folder
from qfml.engine.inputs import ROWS_AT_A_TIME
from qfml.engine.stack import Layout
from qfml.errors import UserError
from qfml.losses import LOSSES, Loss
from qfml.networks import NETWORKS, Module, Network


@dataclass(frozen=True, eq=False)
class Fit:
    """A trained network.

    Attributes:
        network: the specification.
        loss: the loss it was trained with; it says what the output means.
        parameters: one flat row of parameters, those of the best epoch.
        layout: where each parameter lies in that row.
        transforms: what was fitted on the training rows, or None.
        seed: the member's seed.
        status: "finished" (all epochs or steps), "early_stopped", "stopped" (by a callback), "max_time", or "nan"
            (stopped at the last finite parameters).
        history: per epoch "epoch", "train_loss", "val_loss" and "val_" and each metric (None without validation rows).
        best_epoch: the epoch whose parameters were kept, counted from 1.
        failure: of a member that ended as "nan": step, epoch and the first place that was not finite; else None.
    """

    network: Network
    loss: Loss
    parameters: Tensor
    layout: Layout
    transforms: FittedTransform | None
    seed: int
    status: str
    history: tuple[dict[str, Any], ...]
    best_epoch: int
    failure: str | None = None

    @property
    def n_epochs(self) -> int:
        """Epochs that were trained."""
        return len(self.history)

    @property
    def best_val_loss(self) -> float | None:
        """Validation loss of the best epoch."""
        return self.history[self.best_epoch - 1]["val_loss"] if self.history and self.best_epoch else None

    def named_parameters(self) -> dict[str, Tensor]:
        """Each parameter by name, without the member axis."""
        return {name: value[0] for name, value in self.layout.views(self.parameters[None]).items()}

    def predict(self, ds: TimeDataset, rows: np.ndarray | None = None) -> np.ndarray:
        """Predictions for the samples `rows` of `ds` (all of them if omitted): what `loss.predicts` says.

        Returns:
            float64 of shape (n,), or (n, K) for a loss of K outputs: a probability a class, a quantile a level.
        """
        if rows is not None and len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(ds.ends):
            raise UserError(
                f"`rows` must be row ids from 0 to {len(ds.ends) - 1}, got {np.min(rows)} to {np.max(rows)}"
            )
        ends = ds.ends if rows is None else ds.ends[torch.as_tensor(rows)]
        return self.predict_windows(ds.features, ends, ds.window)

    def predict_windows(self, features: Tensor, ends: Tensor, window: int | None) -> np.ndarray:
        """Predictions (n,) or (n, K) for the windows of `features` (R, F) that end at the rows `ends` (n,)."""
        if self.transforms is not None:
            features = self.transforms.apply(features)
        self._check_shape(features.shape[-1], window)
        views = self.layout.views(self.parameters[None].to(features.device))
        outputs = [torch.empty(0) if self.loss.n_outputs == 1 else torch.empty(0, self.loss.n_outputs)]
        with torch.no_grad():
            for chunk in ends.split(ROWS_AT_A_TIME) if len(ends) else ():
                full = torch.cat([chunk, chunk[:1].expand(ROWS_AT_A_TIME - len(chunk))])
                output = self.network.forward(views, gather_windows(features, full, window)[None])
                outputs.append(self.loss.prediction(output)[0, : len(chunk)].cpu())
        return torch.cat(outputs).double().numpy()

    def _check_shape(self, n_features: int, window: int | None) -> None:
        """A layer of width 1 takes any number of features, and makes nonsense of it."""
        if isinstance(self.network, Module):  # its factory decides, whatever the features
            return
        expected = self.network.init(n_features, window, torch.Generator(), self.loss.n_outputs)
        if Layout.of(expected) != self.layout:
            seen = f"{n_features} features" + (f" in windows of {window} rows" if window else "")
            raise UserError(
                f"the network was trained on features of another shape than these, {seen}: its parameters are "
                f"{dict(self.layout.shapes)}; predict with the features and the window that it was trained on"
            )


def save_fits(folder: Path, fits: Sequence[Fit], extra: dict[str, Any] | None = None) -> None:
    """Write fits of one architecture, and `extra` JSON beside them, into the new `folder`."""
    if isinstance(fits[0].network, Module):
        raise UserError(
            "fits of a Module are not saved: its factory is code, which no file of a run holds; keep "
            "`fit.named_parameters()`, and give them to a module that the factory builds"
        )
    if any(fit.network != fits[0].network for fit in fits):
        raise UserError("the fits are of different networks: save those of each network in a folder of their own")
    tensors = {"parameters": torch.stack([fit.parameters.cpu() for fit in fits])}
    distinct = list({id(fit.transforms): fit.transforms for fit in fits if fit.transforms is not None}.values())
    for i, transforms in enumerate(distinct):  # the seeds of a fold share theirs
        tensors |= {f"transforms.{i}.{name}": value for name, value in transforms.state().items()}
    place = {id(transforms): i for i, transforms in enumerate(distinct)}
    names = ("seed", "status", "history", "best_epoch", "failure")
    members = [
        {name: getattr(fit, name) for name in names} | {"transforms": place.get(id(fit.transforms))} for fit in fits
    ]
    state = {
        "network": config.to_dict(fits[0].network),
        "loss": config.to_dict(fits[0].loss),
        "shapes": fits[0].layout.shapes,
        "transforms": [transforms.meta() for transforms in distinct],
        "members": members,
        "extra": extra or {},
    }
    write_folder(folder, tensors, state)


def load_fits(folder: Path) -> tuple[list[Fit], dict[str, Any]]:
    """The fits that `save_fits` wrote, and its `extra`; CheckpointError if anything was changed since."""
    tensors, state = read_folder(folder)
    network = config.build_kind(NETWORKS, state["network"])
    loss = config.build_kind(LOSSES, state["loss"])
    layout = Layout(tuple((name, tuple(shape)) for name, shape in state["shapes"]))
    distinct = []
    for i, meta in enumerate(state["transforms"]):
        prefix = f"transforms.{i}."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        distinct.append(load_transform(meta, own))
    fits = []
    for parameters, member in zip(tensors["parameters"], state["members"]):
        place = member.pop("transforms")
        member["history"] = tuple(member["history"])
        fits.append(Fit(network, loss, parameters, layout, None if place is None else distinct[place], **member))
    return fits, state["extra"]
