"""Files of a surrogate: safetensors, JSON and a manifest of their hashes."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml import config
from qfml.engine.checkpoint import read_folder, write_folder
from qfml.engine.fit import Fit
from qfml.engine.stack import Layout
from qfml.errors import CheckpointError, UserError
from qfml.finished import task_of
from qfml.losses import LOSSES
from qfml.networks import NETWORKS
from qfml.surrogate.bounded import Bounded
from qfml.surrogate.conformal import ErrorBound
from qfml.surrogate.problem import Problem
from qfml.surrogate.target import Target

VERSION = 2  # of the file; a file of another one is refused
RUN_CONFIG, OF_RUN = "config.yaml", "surrogate"  # what tells the folder of a run, and where that keeps its surrogate


def write_surrogate(surrogate: Any, folder: Path) -> None:
    """Write a surrogate into a new folder; see `Surrogate.save`."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists: a surrogate is saved into a new folder; remove it or name another")
    tensors = {"parameters": torch.stack([fit.parameters.cpu() for fit in surrogate.fits])}
    names = ("seed", "status", "history", "best_epoch", "failure")
    state = surrogate.description | {
        "format": "qfml.surrogate",
        "version": VERSION,
        "hash": surrogate.hash,
        "loss": config.to_dict(surrogate.fits[0].loss),
        "shapes": surrogate.fits[0].layout.shapes,
        "members": [{name: getattr(fit, name) for name in names} for fit in surrogate.fits],
        "bound": None if surrogate.bound is None else asdict(surrogate.bound),
        "report": surrogate.report,
        "moneyness": surrogate.moneyness,
    }
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(unfinished, tensors, state)
        os.replace(unfinished, folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"cannot write the surrogate into {folder}: {error.strerror or error}") from error


def read_surrogate(cls: Any, folder: Path) -> Any:
    """The surrogate of a folder, an object of `cls`; see `Surrogate.load`."""
    folder = _place(folder)
    tensors, state = read_folder(folder)
    if state.get("format") != "qfml.surrogate":
        raise CheckpointError(f"{folder} holds no surrogate, but {state.get('format', 'a checkpoint of a training')}")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{folder} is of version {state.get('version')} of surrogate files, and this qfml reads {VERSION}: "
            "train it again from its labels, or read it with the qfml that wrote it"
        )
    try:
        surrogate = _restored(cls, tensors, state)
    except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} does not describe a surrogate: {error}") from error
    if surrogate.hash != state["hash"]:
        raise CheckpointError(
            f"{folder} says that its hash is {state['hash']}, and what it holds has {surrogate.hash}: problem, "
            "network or labels were changed since it was trained"
        )
    return surrogate


def _restored(cls: Any, tensors: dict[str, Tensor], state: dict[str, Any]) -> Any:
    problem = config.build(Problem, state["problem"])
    network = config.build_kind({**NETWORKS, Bounded.kind: Bounded}, state["network"])
    loss = config.build_kind(LOSSES, state["loss"])
    layout = Layout(tuple((name, tuple(shape)) for name, shape in state["shapes"]))
    expected = network.init(len(problem.inputs), None, torch.Generator(), 1)
    if Layout.of(expected) != layout or tensors["parameters"].shape[1:] != (layout.width,):
        raise ValueError("its parameters are not those of its network")
    members = [member | {"history": tuple(member["history"])} for member in state["members"]]
    fits = tuple(
        Fit(network, loss, row, layout, None, **member)
        for row, member in zip(tensors["parameters"], members, strict=True)
    )
    bound = None if state["bound"] is None else ErrorBound(**state["bound"])
    target = Target(problem, state["target"]["kind"], state["target"]["scale"])
    moneyness = None if state["moneyness"] is None else tuple(state["moneyness"])
    return cls(problem, target, fits, bound, state["report"], moneyness)


def _place(folder: Path) -> Path:
    """Where a surrogate lies: in the folder that was named, or inside it if that is a run's."""
    if not folder.is_dir():
        raise CheckpointError(f"no surrogate at {folder}: there is no such folder")
    if not (folder / RUN_CONFIG).exists():
        return folder
    if not (folder / OF_RUN).is_dir():
        if (task := task_of(folder)) != "surrogate":
            raise CheckpointError(f"{folder} is a run of the task {task}, which trains no surrogate")
        raise CheckpointError(f"{folder} is not finished: continue it with `qfml resume {folder}`")
    return folder / OF_RUN
