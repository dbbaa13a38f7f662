"""What the runs of the task `hedging` write alike: the head of their metrics, the training, the log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qfml import config
from qfml.engine.provenance import provenance
from qfml.files import replace_text
from qfml.hedging.hedger import Hedger
from qfml.task.base import as_settings, plain

__all__ = ["MODEL", "head", "log_rows", "member_rows", "numbers_of", "trained", "write_log"]

MODEL = "model"  # folder of the trained policies in that of the run


def head(task: Any, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Where the figures of a hedging task come from."""
    settings = as_settings(task)
    config_hash = config.config_hash(settings)
    data_hash = config.config_hash([settings["market"], settings["book"], task.trainer.batch_size])
    made = provenance(
        seeds=[*task.seeds, task.trainer.seed, (task.walk_forward or task.judgement).seed],
        data_hash=data_hash,
        config_hash=config_hash,
        threads=torch.get_num_threads(),
    )
    return {
        "task": task.task,
        "name": task.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "book": settings["book"]["positions"],
        "data_hash": data_hash,
        "config_hash": config_hash,
        "versions": made["versions"],
        "provenance": made,
        "seconds": dict(seconds),
    }


def trained(settings: Mapping[str, Any], hedger: Hedger) -> dict[str, Any]:
    """How policies were trained."""
    return {
        "policy": config.to_dict(hedger.policy),
        "objective": settings["objective"],
        "costs": settings["costs"],
        "unwind": settings["unwind"],
        "n_parameters": hedger.fits[0].parameters.numel(),
        "paths_per_step": settings["trainer"]["batch_size"],
        "steps_per_epoch": settings["steps_per_epoch"],
        "n_validation": settings["n_validation"],
    }


def member_rows(hedger: Hedger) -> list[dict[str, Any]]:
    """How the training of each policy ended."""
    return [
        {
            "seed": member.seed,
            **numbers_of(hedger, place),
            "status": fit.status,
            "n_epochs": fit.n_epochs,
            "best_epoch": fit.best_epoch,
            "validation_risk": fit.best_val_loss,
        }
        for place, (member, fit) in enumerate(zip(hedger.members, hedger.fits, strict=True))
    ]


def log_rows(hedger: Hedger) -> list[dict[str, Any]]:
    """A row for each member and epoch."""
    return [
        {"member": place, "seed": member.seed, **numbers_of(hedger, place), **row}
        for place, (member, fit) in enumerate(zip(hedger.members, hedger.fits, strict=True))
        for row in fit.history
    ]


def write_log(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """`log.jsonl`: a line for each row."""
    replace_text(folder / "log.jsonl", "".join(f"{json.dumps(plain(row))}\n" for row in rows))


def numbers_of(hedger: Hedger, place: int) -> dict[str, float | None]:
    """What the members differ in beside the seed."""
    member = hedger.members[place]
    return {"aversion": None if hedger.aversions is None else member.aversion, "cost_level": member.cost_level}
