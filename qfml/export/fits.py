"""Trained networks as ONNX files: transforms, network and what the loss makes of its outputs, in one graph."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml.engine import Fit
from qfml.errors import DataError, UserError
from qfml.export.fit_stack import FitStack, Seen
from qfml.export.model_file import Export, sealed, written
from qfml.export.parity import N_POINTS, Parity, parity
from qfml.export.trace import Template

__all__ = ["export_fits"]


def export_fits(
    fits: Sequence[Fit],
    to: Any,
    *,
    feature_names: Sequence[str],
    window: int | None = None,
    units: Mapping[str, str] | None = None,
    label_unit: str = "label",
    ensemble: bool = False,
    members: Sequence[Mapping[str, int]] | None = None,
    config_hash: str | None = None,
    points: Any = None,
) -> list[Export]:
    """Write trained networks as ONNX files that turn raw features into what `Fit.predict` gives.

    A file takes features (N, F), or (N, L, F) in windows, in float32, and gives `prediction` (N,), or (N, K) of a loss
    with K outputs. A row with a NaN or an infinite feature gives NaN. Each file is compared with torch before it is
    written (see `parity`), and none is written unless all agree. Fits of one architecture share one trace.

    Args:
        fits: what `Trainer.fit` gave.
        to: a path, of the single fit or of the ensemble, or a sequence with a path for each fit.
        feature_names: of the raw features, in the order in which the network was trained on them.
        window: rows of a feature window, as in the data set; None for single rows.
        units: of features by name, for the readers of the file; "as given" for those left out.
        label_unit: what a prediction of the label is in, for the readers of the file.
        ensemble: one graph with the mean of the fits' predictions.
        members: what names each fit, such as {"fold": 3, "seed": 0}; its seed if omitted.
        config_hash: of the settings that the fits came from.
        points: raw features to compare on, shaped as the inputs, beside the 10,000 that are always drawn about as wide
            as those that the transforms were fitted on.

    Returns:
        What was written, in the order of `to`.

    Raises:
        UserError: a network or a transform that cannot be exported, or a difference from torch.

    Example:
        >>> import tempfile, numpy as np, qfml
        >>> from qfml.data import TimeDataset
        >>> from qfml.export import export_fits, load_exported
        >>> X, days = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200)
        >>> ds = TimeDataset(X, X[:, 0], time=days, label_end=days + 1)
        >>> trainer = qfml.Trainer(max_epochs=1, batch_size=64)
        >>> fit = trainer.fit(qfml.MLP(hidden=(4,)), qfml.MSE(), ds, train=np.arange(200))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [export] = export_fits([fit], f"{folder}/model.onnx", feature_names=["carry", "value"])
        ...     model = load_exported(export.path)
        >>> found = model.predict({"carry": X[:, 0], "value": X[:, 1]})["prediction"]
        >>> bool(np.abs(found - fit.predict(ds)).max() < 1e-5)
        True
    """
    begin = time.perf_counter()
    fits = list(fits)
    paths = [Path(to)] if isinstance(to, (str, Path)) else [Path(each) for each in to]
    members = [{"seed": fit.seed} for fit in fits] if members is None else members
    groups = [tuple(fits)] if ensemble else [(fit,) for fit in fits]
    named = [list(members)] if ensemble else [[member] for member in members]
    if not fits or len(paths) != len(groups) or len(members) != len(fits):
        raise UserError(
            f"`to` must name a file for each of the {len(groups)} graphs, and `members` each of the {len(fits)} fits; "
            f"got {len(paths)} files and {len(members)} members"
        )
    if len(set(paths)) < len(paths):
        raise UserError("`to` names one file twice: give each fit a file of its own")
    seen = Seen(tuple(str(name) for name in feature_names), window, dict(units or {}), label_unit)
    stacks = [FitStack.of(group, seen) for group in groups]  # what cannot be exported is refused before the first trace
    at = None if points is None else _checked_points(points, seen)
    templates: dict[Any, Template] = {}
    contents, exports = [], []
    for path, stack, who in zip(paths, stacks, named, strict=True):
        if stack.key not in templates:
            templates[stack.key] = stack.template()
        model = templates[stack.key].filled(stack.tensors)
        agreement = _agreement(model.SerializeToString(), stack, at)
        about = stack.metadata() | {"members": [dict(each) for each in who], "config_hash": config_hash}
        contents.append((path, sealed(model, about | {"parity": agreement.as_metadata()})))
        now = time.perf_counter()
        exports.append(Export(path, f"{stack.what} ({_listed(who)})", agreement, now - begin))
        begin = now
    written(contents)
    return exports


def _agreement(model: bytes, stack: FitStack, at: Tensor | None) -> Parity:
    """On the points drawn, and again with the user's beside them."""
    drawn = stack.points(N_POINTS)
    alone = parity(model, stack.reference, drawn)
    if at is None:
        return alone
    # not the user's alone: a single one has no standard deviation to hold differences against
    return parity(model, stack.reference, torch.cat([drawn, at]))


def _checked_points(points: Any, seen: Seen) -> Tensor:
    try:
        rows = torch.as_tensor(points).to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"`points` must be an array of features: {error}") from None
    if rows.ndim != len(seen.shape) + 1 or tuple(rows.shape[1:]) != seen.shape or not len(rows):
        raise DataError(f"`points` must have shape (n, {', '.join(map(str, seen.shape))}), got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()):
        raise DataError("`points` hold a NaN or an infinite value: leave those rows out")
    return rows


def _listed(members: Sequence[Mapping[str, int]]) -> str:
    return "; ".join(" ".join(f"{name} {value}" for name, value in each.items()) for each in members)
