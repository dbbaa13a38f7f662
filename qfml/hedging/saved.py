"""Trained policies in a folder: safetensors, JSON and a manifest of their hashes; nothing is ever unpickled."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml import config
from qfml.engine.checkpoint import read_folder, write_folder
from qfml.engine.fit import Fit
from qfml.engine.stack import Layout
from qfml.errors import CheckpointError, ConfigError, UserError
from qfml.hedging.book import Book
from qfml.hedging.costs import COSTS
from qfml.hedging.drift import DriftRemoved
from qfml.hedging.hedger import Hedger
from qfml.hedging.loss import Risk, RiskRows
from qfml.hedging.markets import MARKETS
from qfml.hedging.measure import Measure
from qfml.hedging.objectives import OBJECTIVES
from qfml.hedging.policies import POLICIES
from qfml.hedging.training import PathMember

__all__ = ["load_hedger", "save_hedger"]

FORMAT, VERSION = "qfml.hedger", 1
LOSSES = {cls.kind: cls for cls in (RiskRows, Risk)}
OF_MEMBER = ("seed", "aversion", "cost_level", "centre", "scale")
OF_MEASURE = "measure."  # its parameters, among the tensors
OF_FIT = ("status", "history", "best_epoch", "failure")


def save_hedger(hedger: Hedger, folder: str | Path) -> None:
    """Write policies, and all that they hedge, into a new folder.

    Raises:
        CheckpointError: the folder exists, or cannot be written.
        ConfigError: a market that is no plain settings, such as paths of an array.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists: policies are saved into a new folder; remove it or name another")
    tensors = {"parameters": torch.stack([fit.parameters.cpu() for fit in hedger.fits])}
    measure = hedger.market.measure(hedger.book) if isinstance(hedger.market, DriftRemoved) else None
    tensors |= {} if measure is None else {f"{OF_MEASURE}{name}": value for name, value in measure.parameters.items()}
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    state = _state(hedger) | ({} if measure is None else {"measure": measure.state()})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(unfinished, tensors, state)
        os.replace(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"cannot write the policies into {folder}: {error.strerror or error}") from error


def load_hedger(folder: str | Path) -> Hedger:
    """Read what `save_hedger` wrote, every hash checked.

    Args:
        folder: that was saved into, or of a finished run of the task `hedging`, which keeps its own in `model/`.

    Raises:
        CheckpointError: a changed byte, a file of another version, or no policies.
    """
    folder = Path(folder)
    folder = folder if (folder / "manifest.json").is_file() else folder / "model"
    if not (folder / "manifest.json").is_file():
        raise CheckpointError(
            f"{folder.parent if folder.name == 'model' else folder} holds no policies: name a folder that "
            "`save_hedger` wrote, or that of a finished run"
        )
    tensors, state = read_folder(folder)
    if state.get("format") != FORMAT or state.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} holds {state.get('format', 'no policies')}, version {state.get('version')}; this qfml reads "
            f"{FORMAT}, version {VERSION}: name the folder of a hedging run, or train it again"
        )
    try:
        return _restored(tensors, state)
    except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not describe trained policies: {error}") from error


def _state(hedger: Hedger) -> dict[str, Any]:
    loss = hedger.loss
    pairs = zip(hedger.members, hedger.fits, strict=True)
    try:
        market = config.to_dict(hedger.market)
    except TypeError as error:
        raise ConfigError(f"the market cannot be saved: {error}; record its paths in a file") from None
    return {
        "format": FORMAT,
        "version": VERSION,
        "market": market,
        "book": config.to_dict(hedger.book),
        "loss": {
            "kind": loss.kind,
            "objective": config.to_dict(loss.objective),
            "costs": config.to_dict(loss.costs),
            "unwind": loss.unwind,
            "n_steps": loss.n_steps,
            "n_instruments": loss.n_instruments,
            "martingale": loss.martingale,
        },
        "policy": config.to_dict(hedger.policy),
        "shapes": hedger.fits[0].layout.shapes,
        "members": [
            {name: getattr(member, name) for name in OF_MEMBER} | {name: getattr(fit, name) for name in OF_FIT}
            for member, fit in pairs
        ],
    }


def _restored(tensors: dict[str, Tensor], state: dict[str, Any]) -> Hedger:
    policy = config.build_kind(POLICIES, state["policy"])
    given = dict(state["loss"])
    given["objective"] = config.build_kind(OBJECTIVES, given["objective"])
    given["costs"] = tuple(config.build_kind(COSTS, cost) for cost in given["costs"])
    loss = LOSSES[given.pop("kind")](**given)
    layout = Layout(tuple((name, tuple(shape)) for name, shape in state["shapes"]))
    window, n_features = loss.n_steps + 1, len(policy.feature_names)
    expected = policy.init(n_features, window, torch.Generator(), loss.n_outputs)
    if Layout.of(expected) != layout or tensors["parameters"].shape != (len(state["members"]), layout.width):
        raise ValueError("its parameters are not those of its policy")
    members = [PathMember(policy, **{name: one[name] for name in OF_MEMBER}) for one in state["members"]]
    fits = [
        Fit(policy, loss, row, layout, None, seed=one["seed"], **{name: one[name] for name in OF_FIT} | _history(one))
        for row, one in zip(tensors["parameters"], state["members"], strict=True)
    ]
    market, book = config.build_kind(MARKETS, state["market"]), config.build(Book, state["book"])
    if isinstance(market, DriftRemoved):
        own = {name.removeprefix(OF_MEASURE): value for name, value in tensors.items() if name.startswith(OF_MEASURE)}
        market.keep(book, Measure.of_state(state["measure"], own))
    return Hedger(market, book, loss, tuple(members), tuple(fits))


def _history(member: dict[str, Any]) -> dict[str, Any]:
    return {"history": tuple(member["history"])}
